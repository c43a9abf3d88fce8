"""An estimate of the time of a launch on an H100, from the machine code of its kernel.

The programs of a launch are dealt evenly to the multiprocessors, and the one with the most of them
decides. There each of four schedulers has a quarter of a program's warps; they are alike, so one is
simulated. It issues an instruction a cycle, of the first warp that can go on: the stall count of the
instruction before has passed, the scoreboards that it waits for are clear, its unit is free, and it is
not at a barrier.

Latencies and throughputs are those of published measurements; :data:`NEW_LINE`, :data:`FROM_L2` and
:data:`START` are fitted to the profile of a step. Bank conflicts, masked accesses, divergence within a
warp and the load that other multiprocessors put on the L2 are left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.cuda.machine_code import SCOREBOARDS, Instruction

MULTIPROCESSORS = 132
SCHEDULERS = 4
REGISTERS, SHARED, WARPS = 65536, 227 << 10, 64  # of a multiprocessor
SYSTEM_SHARED = 1 << 10  # of every program
CLOCK = 1.98  # cycles a ns, under load

# Cycles that an instruction of a warp occupies a unit of its scheduler.
ALU, FMA, SPECIAL, MMA = 2, 1, 8, 8
WAVEFRONT = 4  # 128 bytes, of a unit that the schedulers share
_FMA = ("FFMA", "FADD", "FMUL", "IMAD")
_SPECIAL = ("MUFU", "F2I", "I2F", "FRND", "F2F", "POPC", "FLO", "BREV")
_COMPARED = ("FSETP", "FSEL", "FMNMX", "ISETP", "SEL", "VIMNMX", "PLOP3", "P2R", "R2P")
_INTEGER = ("LOP3", "IADD3", "VIADD", "IABS", "SHF", "LEA", "PRMT", "MOV", "BMSK", "SGXT", "I2FP", "F2FP")
_MEMORY = ("LDS", "LDSM", "STS", "LDG", "STG", "LDGSTS", "SHFL", "LDL", "STL")
BUSY = (
    dict.fromkeys(_FMA, ("fma", FMA))
    | dict.fromkeys(_SPECIAL, ("special", SPECIAL))
    | dict.fromkeys(_COMPARED + _INTEGER, ("alu", ALU))
    | dict.fromkeys(_MEMORY, ("memory", WAVEFRONT))
    | dict.fromkeys(("HMMA", "HGMMA"), ("tensor", MMA))
)

# Cycles from the issue of an instruction until its scoreboard is clear.
LATENCY = {"LDG": 300, "LDGSTS": 300, "LDS": 30, "LDSM": 33, "SHFL": 25, "MUFU": 20, "LDC": 40}
OTHER_LATENCY = 20
OPERANDS_READ = 10
MMA_LATENCY = 18  # and the cycles that it occupies the unit
BARRIER = 25
TAKEN_BRANCH = 10
NEW_LINE = 10  # until 128 bytes of instructions are there that the multiprocessor has not had in this launch
FROM_L2 = 40  # bytes a cycle, to a multiprocessor
START = 1000.0  # ns of a launch in which no program computes


class Load(NamedTuple):
    """A launch as the multiprocessor sees it: all that matters but the way of its warps."""

    programs: int
    warps: int
    registers: int
    shared: int

    @property
    def resident(self) -> int:
        """The number of programs that a multiprocessor holds at a time."""
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        return min(REGISTERS // registers, SHARED // (self.shared + SYSTEM_SHARED), WARPS // self.warps)

    @property
    def most(self) -> int:
        """The number of programs of the multiprocessor that has the most."""
        return -(-self.programs // MULTIPROCESSORS)

    @property
    def waves(self) -> int:
        """Times that it takes as many as it holds."""
        return -(-self.most // self.resident)


def microseconds(load: Load, path: Sequence[Instruction]) -> float:
    """The estimated time of a launch whose warps go this way."""
    warps = -(-load.warps // SCHEDULERS)
    taken, total = 0, 0
    while taken < load.most:
        programs = min(load.resident, load.most - taken)
        total += cycles(path, warps, programs, is_cold=taken == 0)
        taken += programs
    return (START + total / CLOCK) / 1000


@dataclass
class Warp:
    """A warp on its way; times are in cycles."""

    program: int
    at: int = 0
    ready: float = 0.0
    at_barrier: bool = False
    clear_at: list[float] = field(default_factory=lambda: [0.0] * SCOREBOARDS)
    copied: float = 0.0  # when the copies to shared memory that it has asked for are there
    groups: list[float] = field(default_factory=list)  # and those of each group of them
    multiplied: float = 0.0  # when what a group of warps multiplies is done
    sums: dict[int, float] = field(default_factory=dict)  # when a register has what a warp multiplies


def cycles(path: Sequence[Instruction], warps: int, programs: int, *, is_cold: bool = True) -> int:
    """Cycles until every program is done, of several that begin together on a multiprocessor.

    Args:
        path: the instructions of each warp, in the order in which it executes them.
        warps: those of a program that a scheduler has.
        programs: the number of programs.
        is_cold: whether the first to need an instruction waits for it.
    """
    scheduler = Scheduler(path, warps, programs, is_cold)
    while scheduler.warps:
        scheduler.step()
    return int(scheduler.clock)


class Scheduler:
    """A scheduler and its warps, of which the one that issued last has the lowest priority."""

    def __init__(self, path: Sequence[Instruction], warps: int, programs: int, is_cold: bool) -> None:
        self.path = path
        self.warps = [Warp(program) for program in range(programs) for _ in range(warps)]
        self.clock = 0.0
        self._free: dict[str, float] = {}
        self._l2_free = 0.0
        self._lines: dict[int, float] | None = {} if is_cold else None
        self._fetched = 0.0

    def step(self) -> None:
        """Issue an instruction, or go on to when one can be."""
        soonest = float("inf")
        for warp in self.warps:
            if warp.at_barrier:
                continue
            if warp.ready <= self.clock:
                warp.ready = max(self.clock, self._ready(warp, self.path[warp.at]))
            if warp.ready <= self.clock:
                self._issue(warp, self.path[warp.at])
                self.clock += 1
                return
            soonest = min(soonest, warp.ready)
        self.clock = soonest

    def _ready(self, warp: Warp, instruction: Instruction) -> float:
        """When the warp's next instruction may be issued, as far as is known by now."""
        kind = instruction.kind
        times = [self._fetch(instruction), *(warp.clear_at[index] for index in instruction.waits)]
        if kind == "DEPBAR":  # "SB0, 0x1": all groups of copies but the last one
            kept = int(instruction.operands.rsplit("0x", 1)[1], 16)
            done = len(warp.groups) - kept
            times += warp.groups[: max(done, 0)]
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            times.append(warp.multiplied)
        if kind in BUSY:
            times.append(self._free.get(BUSY[kind][0], 0.0))
        if warp.sums:
            times += (warp.sums.get(register, 0.0) for register in _read(instruction))
        return max(times)

    def _issue(self, warp: Warp, instruction: Instruction) -> None:
        """Let the warp issue its next instruction."""
        kind, now = instruction.kind, self.clock
        arrives = now + LATENCY.get(kind, OTHER_LATENCY)
        if kind in BUSY:
            unit, busy = BUSY[kind]
            if unit == "memory":
                busy *= wavefronts(instruction)
            elif kind == "HGMMA":
                busy = columns_of(instruction) // 2
                warp.multiplied = now + busy + MMA_LATENCY
            elif kind == "HMMA":
                first = _registers(instruction.operands)[0]
                warp.sums |= dict.fromkeys(range(first, first + 4), now + busy + MMA_LATENCY)
            self._free[unit] = now + busy
            if kind in ("LDG", "LDGSTS", "STG"):
                # A scheduler has its quarter of the way to the L2.
                bytes_ = 128 * wavefronts(instruction)
                self._l2_free = max(self._l2_free, now) + bytes_ * SCHEDULERS / FROM_L2
                arrives = max(arrives, self._l2_free + LATENCY["LDG"] - 100)
        if kind == "LDGSTS":
            warp.copied = max(warp.copied, arrives)
        elif kind == "LDGDEPBAR":
            warp.groups.append(warp.copied)
        elif (index := instruction.write_barrier) is not None:
            warp.clear_at[index] = max(warp.clear_at[index], arrives)
        if (index := instruction.read_barrier) is not None:
            warp.clear_at[index] = max(warp.clear_at[index], now + OPERANDS_READ)
        self._move_on(warp, instruction)

    def _move_on(self, warp: Warp, instruction: Instruction) -> None:
        warp.at += 1
        warp.ready = self.clock + max(instruction.stall, 1)
        self.warps.remove(warp)
        if warp.at < len(self.path):
            self.warps.append(warp)
            if self.path[warp.at].address != instruction.address + 16:
                warp.ready += TAKEN_BRANCH
        if instruction.opcode.startswith("BAR.SYNC"):
            warp.at_barrier = True
            program = [other for other in self.warps if other.program == warp.program]
            if all(other.at_barrier for other in program):
                for other in program:
                    other.at_barrier, other.ready = False, max(other.ready, self.clock + BARRIER)

    def _fetch(self, instruction: Instruction) -> float:
        """When the instruction is there."""
        if self._lines is None:
            return 0.0
        line = instruction.address // 128
        if line not in self._lines:
            self._fetched = self._lines[line] = max(self._fetched, self.clock) + NEW_LINE
        return self._lines[line]


def wavefronts(instruction: Instruction) -> int:
    """The number of times 128 bytes that a warp reads or writes."""
    if instruction.kind == "LDSM":
        return int(instruction.opcode[-1]) if instruction.opcode[-2] == "." else 1
    width = re.search(r"\.(64|128)\b", instruction.opcode)
    return int(width[1]) // 32 if width else 1


def columns_of(instruction: Instruction) -> int:
    """The columns of what four warps multiply: "HGMMA.64x32x8" has 32."""
    return int(instruction.opcode.split("x")[1])


def _registers(operands: str) -> list[int]:
    return [int(number) for number in re.findall(r"\bR(\d+)", operands)]


def _read(instruction: Instruction) -> list[int]:
    """The registers that may hold sums of products: of another product, those that it adds to."""
    registers = _registers(instruction.operands)
    return registers[3:] if instruction.kind == "HMMA" else registers[1:]
