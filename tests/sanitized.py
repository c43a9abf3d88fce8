"""A pytest plugin, ``-p tests.sanitized``, that requires the library built with sanitizers."""

from pathlib import Path

import pytest
import torch

SYMBOLS = (b"__asan_init", b"__ubsan_handle")


def pytest_sessionstart() -> None:
    """Stop if another library is loaded, or none."""
    import dmm_fast

    package = Path(dmm_fast.__file__).parent
    loaded = [path for path in map(Path, torch.ops.loaded_libraries) if path.parent == package]
    content = b"".join(path.read_bytes() for path in loaded)
    if not all(symbol in content for symbol in SYMBOLS):
        got = dmm_fast._extension.missing or ", ".join(map(str, loaded))
        raise pytest.UsageError(f"library: expected one built with -fsanitize=address,undefined, got {got}")
