"""Containers, strings and numbers out of pickles, read without ``pickle``: nothing a file says is called.

A pickle is a program for a stack. The reader here knows the instructions that build lists, tuples, dicts,
strings, numbers, None and bools, and numpy's integer scalars, of which the files that Pyro serves are made;
those become Python integers. Any other is refused. Source: Python's ``pickletools``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from dmm_fast import check
from dmm_fast.data.memory import Memory

_PER_INSTRUCTION = 72  # bytes of the largest thing that one instruction without contents makes
_LONGEST_LINE = 256
_INTEGER_TYPE = re.compile("[iu][1248]")
_SCALARS = (("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"))


class _Mark:
    """Where the parts of a container begin on the stack."""


class _Name(NamedTuple):
    """A name that a pickle may refer to, never looked up."""

    module: str
    name: str


class _IntegerType:
    """A numpy dtype: the width, sign and byte order of an integer."""

    def __init__(self, code: str) -> None:
        self.signed, self.width, self.order = code[0] == "i", int(code[1]), "<"


_MARK = _Mark()
_CONSTANTS = {b"N"[0]: None, 0x88: True, 0x89: False}
_NUMBERS = {b"K"[0]: "<B", b"M"[0]: "<H", b"J"[0]: "<i", b"G"[0]: ">d"}
_COUNTED = {  # strings: the format of their length, and whether they are text
    b"U"[0]: ("<B", "latin1"),
    b"T"[0]: ("<i", "latin1"),
    b"X"[0]: ("<I", "utf-8"),
    0x8C: ("<B", "utf-8"),
    0x8D: ("<Q", "utf-8"),
    b"B"[0]: ("<I", None),
    b"C"[0]: ("<B", None),
    0x8E: ("<Q", None),
}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}


class Reader:
    """Runs the pickle ``data``.

    Args:
        data: the pickle.
        memory: what it may take.
    """

    def __init__(self, data: bytes, memory: Memory) -> None:
        self._data, self._at, self._memory = data, 0, memory
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._others: dict[int, Callable[[], None]] = {
            0x80: lambda: self._skip(1),  # the protocol
            0x95: lambda: self._skip(8),  # a frame
            b"("[0]: lambda: self._stack.append(_MARK),
            b"]"[0]: lambda: self._stack.append([]),
            b"}"[0]: lambda: self._stack.append({}),
            b")"[0]: lambda: self._stack.append(()),
            b"0"[0]: lambda: self._pop() and None,
            b"a"[0]: lambda: self._extend([self._pop()]),
            b"e"[0]: lambda: self._extend(self._to_mark()),
            b"l"[0]: lambda: self._stack.append(self._to_mark()),
            b"t"[0]: lambda: self._stack.append(tuple(self._to_mark())),
            b"d"[0]: lambda: self._stack.append(self._into({}, self._to_mark())),
            b"s"[0]: lambda: self._set_items([self._pop(), self._pop()][::-1]),
            b"u"[0]: lambda: self._set_items(self._to_mark()),
            b"q"[0]: lambda: self._put(self._number("<B")),
            b"r"[0]: lambda: self._put(self._number("<I")),
            b"p"[0]: lambda: self._put(self._decimal()),
            0x94: lambda: self._put(len(self._memo)),
            b"j"[0]: lambda: self._get(self._number("<I")),
            b"g"[0]: lambda: self._get(self._decimal()),
            b"I"[0]: self._integer_line,
            b"L"[0]: lambda: self._stack.append(self._decimal("L")),
            0x8A: lambda: self._long("<B"),
            0x8B: lambda: self._long("<i"),
            b"F"[0]: lambda: self._stack.append(float(self._line())),
            b"S"[0]: lambda: self._stack.append(self._quoted()),
            b"V"[0]: lambda: self._stack.append(self._line("raw-unicode-escape")),
            b"c"[0]: lambda: self._refer(self._line(), self._line()),
            0x93: lambda: self._refer(*[self._pop(), self._pop()][::-1]),
            b"R"[0]: self._reduce,
            b"b"[0]: self._build,
        }

    def read(self) -> Any:
        """What the pickle is of.

        Raises:
            ValueError: it is truncated, has an instruction that is not known here, or takes more memory than
                is granted.
        """
        data, instructions = self._data, 0
        self._memory.take("file", len(data))
        while True:
            if self._at >= len(data):
                check.fail("file", "a whole pickle", "a truncated one")
            instruction = data[self._at]
            self._at += 1
            instructions += 1
            if instructions & 0xFFFF == 0:
                self._memory.take("file", 0x10000 * _PER_INSTRUCTION)
            if instruction == 0x2E:  # a full stop
                return self._pop()
            # The commonest comes first: there is one of these for each note.
            if instruction == 0x68:
                self._get(self._number("<B"))
            elif instruction in _COUNTED:
                self._stack.append(self._string(*_COUNTED[instruction]))
            elif instruction in _NUMBERS:
                self._stack.append(self._number(_NUMBERS[instruction]))
            elif instruction in _TUPLES:
                parts = [self._pop() for _ in range(_TUPLES[instruction])]
                self._stack.append(tuple(reversed(parts)))
            elif instruction in _CONSTANTS:
                self._stack.append(_CONSTANTS[instruction])
            elif instruction in self._others:
                self._others[instruction]()
            else:
                check.fail(
                    "file", "containers, strings and numbers", f"refused instruction {instruction:#04x}"
                )

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            check.fail("file", "a whole pickle", "an instruction without what it works on")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            check.fail("file", f"a {kind.__name__} to put parts into", "something else")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        """Take what stands above the last mark, and the mark."""
        stack, at = self._stack, len(self._stack) - 1
        while at >= 0 and stack[at] is not _MARK:
            at -= 1
        if at < 0:
            check.fail("file", "a whole pickle", "parts of a container without a beginning")
        parts = stack[at + 1 :]
        del stack[at:]
        return parts

    def _skip(self, count: int) -> None:
        self._at += count

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self._at:
            check.fail("file", "a whole pickle", "a truncated one")
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self, form: str, encoding: str | None) -> str | bytes:
        raw = self._take(self._number(form))
        return raw if encoding is None else raw.decode(encoding)

    def _line(self, encoding: str = "latin1") -> str:
        end = self._data.find(b"\n", self._at, self._at + _LONGEST_LINE)
        if end < 0:
            check.fail("file", f"lines of at most {_LONGEST_LINE} bytes", "a longer or truncated one")
        line = self._take(end - self._at)
        self._at += 1
        return line.decode(encoding)

    def _decimal(self, suffix: str = "") -> int:
        line = self._line().removesuffix(suffix)
        if not re.fullmatch("-?[0-9]{1,100}", line):
            check.fail("file", "whole numbers", repr(line)[:80])
        return int(line)

    def _integer_line(self) -> None:
        """``I01`` and ``I00`` are bools, as protocol 0 has no other."""
        if self._data[self._at : self._at + 3] in (b"01\n", b"00\n"):
            self._stack.append(self._take(3) == b"01\n")
        else:
            self._stack.append(self._decimal())

    def _long(self, form: str) -> None:
        self._stack.append(int.from_bytes(self._take(self._number(form)), "little", signed=True))

    def _quoted(self) -> str:
        line = self._line()
        if len(line) < 2 or line[0] != line[-1] or line[0] not in "'\"" or "\\" in line:
            check.fail("file", "quoted strings", repr(line)[:80])
        return line[1:-1]

    def _extend(self, parts: list[Any]) -> None:
        self._top(list).extend(parts)

    def _set_items(self, parts: list[Any]) -> None:
        self._into(self._top(dict), parts)

    def _into(self, target: dict[Any, Any], parts: list[Any]) -> dict[Any, Any]:
        # A key of nested tuples could be too deep for Python to hash.
        if len(parts) % 2 or not all(isinstance(key, str | int) for key in parts[::2]):
            check.fail("file", "keys that are strings or numbers, each with a value", "something else")
        target.update(zip(parts[::2], parts[1::2], strict=True))
        return target

    def _put(self, place: int) -> None:
        if not self._stack:
            check.fail("file", "a whole pickle", "an instruction without what it works on")
        self._memo[place] = self._stack[-1]

    def _get(self, place: int) -> None:
        if place not in self._memo:
            check.fail("file", "references to what was read", f"one to number {place}")
        self._stack.append(self._memo[place])

    def _refer(self, module: Any, name: Any) -> None:
        if (module, name) not in (("numpy", "dtype"), *_SCALARS):
            check.fail("file", "containers and integers", f"refused {module!r}, {name!r}"[:120])
        self._stack.append(_Name(module, name))

    def _reduce(self) -> None:
        """Make an integer of a dtype and bytes, or a dtype of its code."""
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple) or not arguments:
            check.fail("file", "containers and integers", "a refused call")
        if function.name == "dtype":
            code = arguments[0]
            if not isinstance(code, str) or not _INTEGER_TYPE.fullmatch(code):
                check.fail("file", "integers as notes", f"numpy's type {code!r}"[:120])
            self._stack.append(_IntegerType(code))
            return
        kind, raw = arguments if len(arguments) == 2 else (None, None)
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(kind, _IntegerType) or not isinstance(raw, bytes) or len(raw) != kind.width:
            check.fail("file", "numpy's integers", "one whose bytes do not fit its type")
        big = kind.order == ">"
        self._stack.append(int.from_bytes(raw, "big" if big else "little", signed=kind.signed))

    def _build(self) -> None:
        """Set the byte order of a dtype."""
        state, kind = self._pop(), self._top(_IntegerType)
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|"):
            check.fail("file", "the byte order of a numpy type", "another refused state")
        kind.order = state[1]
