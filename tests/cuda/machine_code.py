"""Machine code of the CUDA kernels, instruction by instruction: of the library, or of a file for one GPU.

An instruction has 128 bits. The upper 23 are the compiler's schedule, which the hardware follows: the number
of cycles before the warp issues its next instruction, and the scoreboards. An instruction of variable
latency, such as a load, marks one of six scoreboards until its result is available (a "write barrier") or
until its operands have been read (a "read barrier"). Dependent instructions wait for that scoreboard.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.cuda.resource_table import cuobjdump, demangled, library, parse

ARCH = "sm_90"  # the architecture of the committed table
SCOREBOARDS = 6
_STALL, _YIELD, _WRITE, _READ, _WAIT, _REUSE = 41, 45, 46, 49, 52, 58  # bits of the upper word
_NO_SCOREBOARD = 7


class Instruction(NamedTuple):
    """An instruction as the disassembler writes it; ``control`` is the upper of its two words."""

    address: int
    predicate: str  # "@P0", "@!UP1"; empty: none
    opcode: str  # with modifiers, "LDS.128"
    operands: str
    control: int

    @property
    def kind(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def stall(self) -> int:
        """Cycles before the warp may issue the next instruction."""
        return self.control >> _STALL & 15

    @property
    def yields(self) -> bool:
        """True if the scheduler may switch to another warp, for which the bit is 0."""
        return not self.control >> _YIELD & 1

    @property
    def write_barrier(self) -> int | None:
        """The scoreboard that is marked until the result is available."""
        return _scoreboard(self.control >> _WRITE)

    @property
    def read_barrier(self) -> int | None:
        """The scoreboard that is marked until the operands have been read."""
        return _scoreboard(self.control >> _READ)

    @property
    def waits(self) -> list[int]:
        """The scoreboards that must be clear before the instruction is issued."""
        mask = self.control >> _WAIT
        return [index for index in range(SCOREBOARDS) if mask >> index & 1]

    @property
    def reuse(self) -> int:
        """The operands reused by the next instruction, a bit for each."""
        return self.control >> _REUSE & 15

    @property
    def target(self) -> int | None:
        """The target address of a branch, if it is part of the instruction."""
        address = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(address[1], 16) if address and self.kind == "BRA" else None


def _scoreboard(bits: int) -> int | None:
    index = bits & 7
    return None if index == _NO_SCOREBOARD else index


_FUNCTION = re.compile(r"^\s+Function : (\w+)$", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/ +(@!?U?P\w+)? *([A-Z][\w.]*) *([^;]*?) *;"  # "/*8f0*/  @!P3 BRA 0x9c0 ;"
    r" */\* 0x[0-9a-f]{16} \*/\s+/\* 0x([0-9a-f]{16}) \*/"
)


def instructions(text: str, start: int = 0, end: int | None = None) -> list[Instruction]:
    """The instructions of a function in the disassembly ``text[start:end]``."""
    matches = _INSTRUCTION.finditer(text, start, len(text) if end is None else end)
    return [Instruction(int(m[1], 16), m[2] or "", m[3], m[4], int(m[5], 16)) for m in matches]


def functions(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Iterate over the functions in the output of ``cuobjdump -sass`` by their names in the library."""
    heads = list(_FUNCTION.finditer(text))
    for head, end in zip(heads, [*(h.start() for h in heads[1:]), len(text)], strict=True):
        yield head[1], instructions(text, head.end(), end)


def kernels(
    names: Sequence[str] | None = None, arch: str = ARCH, binary: Path | None = None
) -> Iterator[tuple[str, list[Instruction]]]:
    """Iterate over the kernels of a file by their names in the source.

    Args:
        names: the kernels to read; None: all.
        arch: the architecture to read.
        binary: the file; None: the library.
    """
    short = demangled(sorted({kernel.name for kernel in parse(_said(arch, binary, "-res-usage"))}))
    wanted = [long for long, name in short.items() if names is None or name in names]
    if wanted:
        flags = [] if names is None else [f"-fun={','.join(wanted)}"]
        for long, code in functions(_said(arch, binary, "-sass", *flags)):
            yield short[long], code


def compiler() -> str:
    """The version of the assembler that made the machine code, which is that of nvcc."""
    found = re.search(rb"Cuda compilation tools, release [\d.]+, (V[\d.]+)", library().read_bytes())
    if found is None:
        raise ValueError(f"{library()}: expected the version of nvcc in it, got none")
    return found[1].decode()


def _said(arch: str, binary: Path | None, *flags: str) -> str:
    said = cuobjdump("-arch", arch, *flags, binary=binary)
    if said is None:
        raise FileNotFoundError("cuobjdump: expected it on PATH or in the package triton, got none")
    return said
