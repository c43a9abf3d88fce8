"""Cell arrays of matrices out of MATLAB v5 files, without asking for more memory than the file may take.

Only what :func:`dmm_fast.data.load` needs is read: top-level variables that are matrices of numbers or
cell arrays of such. Source: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmm_fast import check
from dmm_fast.data.memory import Memory

_MATRIX, _COMPRESSED = 14, 15
_CELL, _NUMBERS = 1, range(6, 16)
_COMPLEX = 0x0800
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_PREFIX = 1024  # of a compressed variable; its dimensions and its name are within
_PER_CELL = 256  # bytes of an array and of what refers to it


class _Element(NamedTuple):
    kind: int
    data: memoryview


class _Head(NamedTuple):
    """What precedes the contents of a matrix."""

    name: str
    mat_class: int
    is_complex: bool
    shape: tuple[int, ...]
    rest: memoryview


def read_variables(file: BinaryIO, names: Collection[str], memory: Memory) -> dict[str, NDArray[Any]]:
    """The variables ``names`` of a MATLAB v5 file, as far as it has them.

    Returns:
        For a matrix of numbers an array of the dtype it is stored in, for a cell array an object array of
        such. Neither owns its data.

    Raises:
        ValueError: the file is not of that form, or takes more memory than ``memory`` grants.
    """
    memory.take("file", file.seek(0, 2))
    file.seek(0)
    content = memoryview(file.read())
    order = _byte_order(content)
    found: dict[str, NDArray[Any]] = {}
    for element in _elements(content[128:], order):
        data = element.data
        if element.kind == _COMPRESSED:
            inflated = _inflate(data, names, order, memory)
            if inflated is None:
                continue
            ((kind, data),) = _elements(inflated, order)
            element = _Element(kind, data)
        if element.kind != _MATRIX:
            check.fail("file", "variables", f"an element of type {element.kind}")
        if len(data) == 0:
            continue
        head = _head(data, order)
        if head.name in names:
            found[head.name] = _variable(head, order, memory)
    return found


def _byte_order(content: memoryview) -> str:
    if len(content) < 128:
        check.fail("file", "a header of 128 bytes", f"{len(content)}")
    mark = bytes(content[126:128])
    order = {b"IM": "<", b"MI": ">"}.get(mark)
    version = struct.unpack_from(f"{order or '<'}H", content, 124)[0]
    if order is None or version != 0x0100:
        check.fail("file", "a MATLAB v5 file", f"another: version {version:#06x}, byte order {mark!r}")
    return order


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """The elements that lie one after another in ``data``."""
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            check.fail("file", "whole elements", "a truncated tag")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:
            # Up to four bytes stand in the tag itself.
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + size if kind == _COMPRESSED else start + -(-size // 8) * 8
        if start + size > min(end, len(data)):
            check.fail(
                "file", "whole elements", f"one of {size} bytes of which {len(data) - start} are there"
            )
        yield _Element(kind, data[start : start + size])
        at = end


def _inflate(data: memoryview, names: Collection[str], order: str, memory: Memory) -> memoryview | None:
    """The element that ``data`` is compressed from, or None if it is not one of ``names``."""
    prefix = zlib.decompressobj().decompress(data, _PREFIX)
    if len(prefix) < 8:
        check.fail("file", "compressed elements", f"{len(prefix)} bytes")
    kind, size = struct.unpack_from(f"{order}II", prefix)
    if kind != _MATRIX or size == 0 or _head(memoryview(prefix)[8:], order).name not in names:
        return None
    memory.take("file", size)
    whole = zlib.decompressobj().decompress(data, 8 + size)
    if len(whole) != 8 + size:
        check.fail("file", "whole elements", f"one of {size} bytes of which {len(whole) - 8} are there")
    return memoryview(whole)


def _head(data: memoryview, order: str) -> _Head:
    parts = _elements(data, order)
    flags, dims, name = (next(parts, None) for _ in range(3))
    if flags is None or dims is None or name is None or len(flags.data) != 8 or len(dims.data) % 4:
        check.fail("file", "matrices with flags, dimensions and a name", "one without")
    (flag,) = struct.unpack_from(f"{order}I", flags.data)
    shape = struct.unpack(f"{order}{len(dims.data) // 4}i", dims.data)
    if len(shape) > 8 or min(shape, default=-1) < 0:
        check.fail("file", "matrices of up to 8 dimensions", str(shape)[:80])
    # The sizes of the parts before the contents, each with its tag: they are read again from there.
    start = _end_of(data, order, 3)
    label = bytes(name.data).decode("latin1")
    return _Head(label, flag & 0xFF, bool(flag & _COMPLEX), shape, data[start:])


def _end_of(data: memoryview, order: str, number: int) -> int:
    """Where the first ``number`` elements of ``data`` end."""
    at = 0
    for _ in range(number):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        at += 8 if kind >> 16 else 8 + -(-size // 8) * 8
    return at


def _variable(head: _Head, order: str, memory: Memory) -> NDArray[Any]:
    if head.mat_class != _CELL:
        return _matrix(head.name, head, order)
    count = math.prod(head.shape)
    if count * 8 > len(head.rest):
        check.fail(head.name, f"{count} cells as its dimensions say", f"{len(head.rest)} bytes")
    memory.take(head.name, count * _PER_CELL)
    cells = np.empty(count, dtype=object)
    at = -1
    for at, element in enumerate(_elements(head.rest, order)):
        if element.kind != _MATRIX or at == count:
            check.fail(head.name, f"{count} matrices as cells", "something else")
        # MATLAB writes an empty cell without flags or dimensions.
        empty = len(element.data) == 0
        cells[at] = (
            np.zeros((0, 0))
            if empty
            else _matrix(f"{head.name}, cell {at}", _head(element.data, order), order)
        )
    if at + 1 != count:
        check.fail(head.name, f"{count} matrices as cells", f"{at + 1}")
    return cells.reshape(head.shape, order="F")


def _matrix(name: str, head: _Head, order: str) -> NDArray[Any]:
    """The numbers of a matrix, in the dtype they are stored in, which may be narrower than its own."""
    if head.mat_class not in _NUMBERS or head.is_complex:
        check.fail(name, "real numbers", f"MATLAB class {head.mat_class}{', complex' * head.is_complex}")
    stored = next(_elements(head.rest, order), None)
    if stored is None or stored.kind not in _DTYPES:
        check.fail(name, "real numbers", "none" if stored is None else f"an element of type {stored.kind}")
    dtype = np.dtype(order + _DTYPES[stored.kind])
    if math.prod(head.shape) * dtype.itemsize != len(stored.data):
        check.fail(name, f"numbers of shape {head.shape}", f"{len(stored.data)} bytes of {dtype}")
    return np.frombuffer(stored.data, dtype).reshape(head.shape, order="F")
