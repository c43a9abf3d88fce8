"""Peak memory, tested with allocations of known size."""

import mmap

import pytest
import torch

from benchmarks import memory
from benchmarks.memory import peak_resident

MB = 2**20
PAGE = mmap.PAGESIZE

can_tell = pytest.mark.skipif(
    peak_resident(lambda: None) is None, reason="this platform does not tell its peak of resident memory"
)


def sixty_four_mb(pieces: int) -> None:
    held = [torch.ones(64 * MB // 4 // pieces) for _ in range(pieces)]
    assert len(held) == pieces


@can_tell
@pytest.mark.parametrize("pieces", [1, 1024], ids=["mapped", "on the heap"])
def test_a_known_allocation(pieces):
    assert peak_resident(lambda: sixty_four_mb(pieces)) == pytest.approx(64 * MB, rel=0.05)


@can_tell
def test_memory_kept_by_the_heap_is_counted():
    pieces, ballast = [], []
    for _ in range(1024):
        pieces.append(torch.ones(MB // 64))
        ballast.append(torch.ones(2048))  # allocated in between, so that the heap cannot shrink
    pieces.clear()
    shared = 1024 * 2 * PAGE  # each gap shares its first and last page with memory in use
    assert peak_resident(lambda: sixty_four_mb(1024)) == pytest.approx(64 * MB, abs=shared)


@can_tell
def test_an_earlier_peak_is_reset():
    sixty_four_mb(1)
    assert peak_resident(lambda: None) < 4 * MB


def test_unsupported_platforms_have_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    ran = []
    assert peak_resident(lambda: ran.append(1)) is None
    assert not ran
