"""A restricted unpickler for containers, strings and numbers, built from Python's ``pickle``.

The Python implementation is used, since the one in C allocates a memo as large as a pickle claims to need.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

from dmm_fast.data._memory import Memory

# Largest number of bytes allocated for one byte of a pickle: an entry in the memo, its index, and the memo's
# table while it grows.
_PER_INSTRUCTION = 144

# Excluded are instructions that call or change anything but the classes below, that allocate by a claimed
# size (BYTEARRAY8), and sets, whose members could be nested too deeply for Python to hash.
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES
    BINBYTES8 EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM
    SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
# Positions of the keys of dicts on the stack.
_KEYS = {"DICT": slice(None, None, 2), "SETITEMS": slice(None, None, 2), "SETITEM": slice(-2, -1)}


class _IntegerType:
    """Stand-in for ``numpy.dtype`` in a pickle: the width, sign and byte order of an integer."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch("[iu][1248]", code):
            raise pickle.UnpicklingError(f"notes are integers, not of the numpy type {code!r}"[:120])
        self.signed, self.width, self.order = code[0] == "i", int(code[1]), "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or state[1] not in ("<", ">", "|"):
            raise pickle.UnpicklingError("a refused state of a numpy type, not its byte order")
        self.order = state[1]


class _Integer:
    """Stand-in for ``numpy.core.multiarray.scalar`` in a pickle: it creates a Python integer."""

    def __new__(cls, kind: _IntegerType, raw: str | bytes) -> int:  # type: ignore[misc]
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(kind, _IntegerType) or len(data) != kind.width:
            raise pickle.UnpicklingError("a numpy scalar whose bytes do not fit its type")
        return int.from_bytes(data, "big" if kind.order == ">" else "little", signed=kind.signed)

    def __setstate__(self, state: Any) -> None:
        # If this is defined, pickle calls it instead of setting attributes, so no file can change the class.
        raise pickle.UnpicklingError("a refused state of a numpy scalar")


_CLASSES = {
    ("numpy", "dtype"): _IntegerType,
    ("numpy.core.multiarray", "scalar"): _Integer,
    ("numpy._core.multiarray", "scalar"): _Integer,
}


def _refuse(_: Any) -> None:
    raise pickle.UnpicklingError("a refused instruction: only containers, strings and numbers are read")


def _instruction(name: str) -> Callable[[Any], None]:
    """Pickle's instruction, with a check of keys, which could be nested too deeply for Python to hash."""
    run = pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
    if name not in _KEYS:
        return run

    def checked(unpickler: Any) -> None:
        if not all(isinstance(key, str | int) for key in unpickler.stack[_KEYS[name]]):
            raise pickle.UnpicklingError("refused keys: only keys that are strings or numbers are read")
        run(unpickler)

    return checked


class _NoteUnpickler(pickle._Unpickler):
    """Executes :data:`_INSTRUCTIONS` only, and converts numpy's integer scalars to Python integers.

    Pyro's files consist of these; numpy itself is not called, and every other global name is refused.
    """

    dispatch = dict.fromkeys(range(256), _refuse) | {
        getattr(pickle, name)[0]: _instruction(name) for name in _INSTRUCTIONS.split()
    }

    def find_class(self, module: str, name: str) -> Any:
        found = _CLASSES.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(
                f"refused {module}.{name}: only containers, strings and numbers are read"[:120]
            )
        return found


def unpickle(content: bytes, memory: Memory) -> Any:
    """Read a pickle of containers, strings and numbers, without looking up or calling anything it names.

    Raises:
        ValueError: the pickle is broken, contains other objects, or takes more memory than ``memory`` allows.
    """
    memory.take("file", len(content) * _PER_INSTRUCTION)
    try:
        return _NoteUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # pickle raises errors of almost any type
        got = f"{type(error).__name__}: {error}"
        raise ValueError(f"file: expected a pickle of containers, strings and numbers, got {got}") from error
