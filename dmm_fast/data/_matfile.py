"""Reading of variables in MATLAB v5 files by scipy, after their claimed sizes have been checked.

scipy allocates memory by the sizes that a file claims, recurses as deeply as cells are nested and indexes a
table by type codes, all unchecked. It is therefore given only inflated matrices of real numbers and cell
arrays of them, whose sizes and codes have been checked. Source: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, BinaryIO

from numpy.typing import NDArray

from dmm_fast import check
from dmm_fast.data._memory import Memory

_MATRIX, _COMPRESSED = 14, 15
_STORED = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)  # the types of integers and floating-point numbers
_CELL, _NUMBERS, _COMPLEX = 1, range(6, 16), 0x0800
_PREFIX = 1024  # inflated bytes of a variable that contain its dimensions and its name
_COPIES = 3  # copies of a variable in memory: inflated, as scipy's input, and as arrays
_PER_CELL = 256  # bytes of an array object and of the references to it


def read_variables(file: BinaryIO, names: Collection[str], memory: Memory) -> dict[str, NDArray[Any]]:
    """Read those variables ``names`` that a MATLAB v5 file has.

    Returns:
        For a matrix of numbers an array of its stored dtype, for a cell array an object array of such
        arrays.

    Raises:
        ImportError: scipy is not installed.
        Exception: the file does not have this format (an error of any type, as raised by scipy), or takes
            more memory than ``memory`` allows (ValueError).
    """
    # Imported here because scipy.io takes longer to import than this package.
    from scipy.io import loadmat

    memory.take("file", file.seek(0, 2))
    file.seek(0)
    content = memoryview(file.read())
    mark = bytes(content[124:128])
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(mark)
    if order is None:
        check.fail("file", "a MATLAB v5 file", f"version and byte order {mark!r}")
    found: dict[str, bytes] = {}
    for kind, data in _elements(content[128:], order):
        if kind not in (_MATRIX, _COMPRESSED):
            check.fail("file", "variables", f"an element of type {kind}")
        matrix, size = data, len(data)
        if kind == _COMPRESSED:
            # Inflate only the beginning until the name of the variable is known.
            prefix = zlib.decompressobj().decompress(data, _PREFIX)
            matrix, size = memoryview(prefix)[8:], struct.unpack_from(f"{order}I", prefix, 4)[0]
        head = list(islice(_elements(matrix, order), 3))
        name = bytes(head[2][1]).decode("latin1") if len(head) == 3 else None
        if name is None or name not in names:
            continue
        memory.take("file", size * _COPIES)
        matrix = _inflate(data, size) if kind == _COMPRESSED else data
        _check(name, matrix, order, memory, may_be_cells=True)
        found[name] = struct.pack(f"{order}II", _MATRIX, size) + matrix
    # With a new header, since scipy mistakes some headers for those of older versions.
    read = loadmat(io.BytesIO(b"MATLAB".ljust(124) + mark + b"".join(found.values())))
    return {name: read[name] for name in found}


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The types and the contents of the consecutive elements in ``data``."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            check.fail("file", "whole elements", "a truncated tag")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:
            # Up to four bytes are stored in the tag itself.
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + size if kind == _COMPRESSED else start + -(-size // 8) * 8
        if start + size > min(end, len(data)):
            there = min(end, len(data)) - start
            check.fail("file", "whole elements", f"one of {size} bytes of which only {there} are present")
        yield kind, data[start : start + size]
        at = end


def _inflate(data: memoryview, size: int) -> memoryview:
    """Inflate a matrix of ``size`` bytes, with its tag, and nothing after it."""
    # With room for one more byte zlib also reads and verifies the checksum.
    whole = zlib.decompressobj().decompress(data, 8 + size + 1)
    if len(whole) != 8 + size:
        check.fail("file", f"a variable of {size} bytes as its tag says", "another size when inflated")
    return memoryview(whole)[8:]


def _check(name: str, matrix: memoryview, order: str, memory: Memory, *, may_be_cells: bool) -> None:
    """Refuse a matrix unless its elements fill it exactly and agree with the sizes and types it claims."""
    parts = _elements(matrix, order)
    (_, flags), (_, dims), _ = islice(parts, 3)
    if len(flags) != 8:
        check.fail(name, "flags of 8 bytes", str(len(flags)))
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if not may_be_cells or flag & 0xFF != _CELL:
        if flag & 0xFF not in _NUMBERS or flag & _COMPLEX:
            check.fail(
                name, "real numbers", f"MATLAB class {flag & 0xFF}" + ", complex" * bool(flag & _COMPLEX)
            )
        stored = [kind for kind, _ in parts]
        if len(stored) != 1 or stored[0] not in _STORED:
            check.fail(name, "real numbers", f"elements of types {stored}"[:80])
        return
    count = 0
    for kind, cell in parts:
        if kind != _MATRIX:
            check.fail(name, "matrices as cells", f"an element of type {kind}")
        if len(cell):  # MATLAB writes empty cells without flags and dimensions
            _check(f"{name}, cell {count}", cell, order, memory, may_be_cells=False)
        count += 1
    claimed = math.prod(struct.unpack(f"{order}{len(dims) // 4}i", dims))
    if count != claimed:
        check.fail(name, f"{claimed} cells as its dimensions say", str(count))
    memory.take(name, count * _PER_CELL)
