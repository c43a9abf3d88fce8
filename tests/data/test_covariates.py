"""Controls and covariates of sequence sets: padding, gathering, devices, checks, and files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dmm_fast.data import Batch, ControlledBatch, Dataset, SequenceSet, load, save_npz

NAN = float("nan")
LENGTHS = torch.tensor([2, 4, 3])
X = torch.arange(24.0).reshape(3, 4, 2) * (torch.arange(4) < LENGTHS[:, None])[:, :, None]
U = torch.arange(12.0).reshape(3, 4, 1).where((torch.arange(4) < LENGTHS[:, None])[:, :, None], NAN)
S = torch.arange(6.0).reshape(3, 2)


def test_a_batch_has_the_covariates_of_its_set() -> None:
    batch = SequenceSet(X, LENGTHS, None, U, S).batch(torch.tensor([2, 0]))
    assert isinstance(batch, ControlledBatch)
    plain = SequenceSet(X, LENGTHS).batch(torch.tensor([2, 0]))
    assert type(plain) is Batch
    for ours, theirs in zip((batch[0], *batch[2:4]), (plain[0], *plain[2:4]), strict=True):
        assert torch.equal(ours, theirs)
    assert batch.annealing_factor == 1.0
    assert batch._replace(annealing_factor=0.3).annealing_factor == 0.3
    assert batch.controls is not None
    # What was NaN past the end is zero.
    assert batch.controls[:, :, 0].tolist() == [[8, 9, 10], [0, 1, 0]]
    assert batch.static is not None
    assert batch.static.tolist() == [[4, 5], [0, 1]]


def test_either_may_be_missing() -> None:
    indices = torch.tensor([1])
    with_controls = SequenceSet(X, LENGTHS, controls=U).batch(indices, T=4)
    with_static = SequenceSet(X, LENGTHS, static=S).batch(indices)
    assert isinstance(with_controls, ControlledBatch)
    assert isinstance(with_static, ControlledBatch)
    assert with_controls.static is None
    assert with_static.controls is None


def test_they_move_with_the_set() -> None:
    moved = SequenceSet(X, LENGTHS, None, U, S).to("meta")
    assert moved.controls is not None
    assert moved.static is not None
    assert (moved.controls.device.type, moved.static.device.type) == ("meta", "meta")
    batch = moved.batch(torch.zeros(2, dtype=torch.int64, device="meta"), T=4)
    assert isinstance(batch, ControlledBatch)
    assert batch.controls is not None
    assert batch.controls.shape == (2, 4, 1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("controls", U.double(), "controls: expected float32 on cpu as sequences has, got float64"),
        ("controls", U[:2], r"controls: expected shape \(3, 4, \*\) as \[N, T_max, U\], .* \(2, 4, 1\)"),
        ("controls", U[:, :, :0], r"controls: expected shape .* not empty, got float32 of shape \(3, 4, 0\)"),
        ("controls", X.masked_fill(X == 3, NAN), r"finite numbers within .*, got nan at \(0, 1, 1\)"),
        ("controls", X + 1, "controls: expected zeros past the end .* in sequence 0"),
        ("controls", [1], "controls: expected a floating-point tensor, got list"),
        ("static", S[:2], r"static: expected shape \(3, \*\) as \[N, S\], not empty"),
        ("static", S / 0, r"static: expected finite numbers .*, got nan at \(0, 0\)"),
        ("static", S.to("meta"), "static: expected float32 on cpu as sequences has"),
        ("static", "s", "static: expected a floating-point tensor"),
    ],
)
def test_invalid_arguments_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        SequenceSet(X, LENGTHS, **{name: value})


def test_files_keep_them(tmp_path: Path) -> None:
    data = SequenceSet(X, LENGTHS, None, U, S + 0.5)
    save_npz(Dataset("d", data, data, data), tmp_path / "d.npz")
    loaded = load(tmp_path / "d.npz").valid
    for name in ("sequences", "lengths", "controls", "static"):
        assert torch.equal(getattr(loaded, name), getattr(data, name)), name
