"""A pytest plugin, ``-p tests.sanitized``: only the library that was built with the sanitizers is tested."""

from pathlib import Path

import pytest
import torch

SYMBOLS = (b"__asan_init", b"__ubsan_handle")


def pytest_sessionstart() -> None:
    """Refuse to start with another library, or with none."""
    import dmm_fast

    package = Path(dmm_fast.__file__).parent
    loaded = [path for path in map(Path, torch.ops.loaded_libraries) if path.parent == package]
    content = b"".join(path.read_bytes() for path in loaded)
    if not all(symbol in content for symbol in SYMBOLS):
        got = dmm_fast._extension.missing or ", ".join(map(str, loaded))
        raise pytest.UsageError(f"library: expected one built with -fsanitize=address,undefined, got {got}")
