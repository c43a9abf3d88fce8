"""An estimate of the time of a launch on an H100, from the machine code of its kernel.

The programs of a launch are distributed evenly over the multiprocessors, and the one with the most programs
determines the time. Each of its four schedulers has a quarter of a program's warps; they are alike, so one is
simulated. It issues one instruction per cycle, of the first ready warp: the stall count of the previous
instruction has passed, the scoreboards it waits for are clear, its unit is free, and it is not at a barrier.

Latencies and throughputs are those of published measurements; :data:`NEW_LINE`, :data:`FROM_L2` and
:data:`START` are fitted to the profile of a step. Bank conflicts, masked accesses, divergence within a
warp and the load of other multiprocessors on the L2 are ignored.
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
CLOCK = 1.98  # cycles per ns, under load

# Cycles that an instruction of a warp occupies a unit of its scheduler.
ALU, FMA, SPECIAL, MMA = 2, 1, 8, 8
WAVEFRONT = 4  # per 128 bytes, in a unit shared by the schedulers
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
MMA_LATENCY = 18  # and cycles that it occupies the unit
BARRIER = 25
TAKEN_BRANCH = 10
NEW_LINE = 10  # to load 128 bytes of instructions for the first time in a launch
FROM_L2 = 40  # bytes per cycle and multiprocessor
START = 1000.0  # ns of a launch in which no program computes


class Load(NamedTuple):
    """The parameters of a launch that affect a multiprocessor, except for the path of its warps."""

    programs: int
    warps: int
    registers: int
    shared: int

    @property
    def resident(self) -> int:
        """The number of resident programs per multiprocessor."""
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        return min(REGISTERS // registers, SHARED // (self.shared + SYSTEM_SHARED), WARPS // self.warps)

    @property
    def most(self) -> int:
        """The number of programs of the multiprocessor with the most."""
        return -(-self.programs // MULTIPROCESSORS)

    @property
    def waves(self) -> int:
        """The number of waves."""
        return -(-self.most // self.resident)


def microseconds(load: Load, path: Sequence[Instruction]) -> float:
    """The estimated time of a launch whose warps follow this path."""
    warps = -(-load.warps // SCHEDULERS)
    taken, total = 0, 0
    while taken < load.most:
        programs = min(load.resident, load.most - taken)
        total += cycles(path, warps, programs, is_cold=taken == 0)
        taken += programs
    return (START + total / CLOCK) / 1000


@dataclass
class Warp:
    """The state of a warp on its path; times are in cycles."""

    program: int
    at: int = 0
    ready: float = 0.0
    at_barrier: bool = False
    clear_at: list[float] = field(default_factory=lambda: [0.0] * SCOREBOARDS)
    copied: float = 0.0  # time at which its issued copies to shared memory are complete
    groups: list[float] = field(default_factory=list)  # the same for each group of copies
    multiplied: float = 0.0  # time at which the products of a group of warps are complete
    sums: dict[int, float] = field(
        default_factory=dict
    )  # time at which a register has the result of a product


def cycles(path: Sequence[Instruction], warps: int, programs: int, *, is_cold: bool = True) -> int:
    """Cycles until all of several programs that start together on a multiprocessor are done.

    Args:
        path: the instructions of each warp, in the order in which it executes them.
        warps: warps of a program per scheduler.
        programs: the number of programs.
        is_cold: the first warp to need an instruction waits for it to be loaded.
    """
    scheduler = Scheduler(path, warps, programs, is_cold)
    while scheduler.warps:
        scheduler.step()
    return int(scheduler.clock)


class Scheduler:
    """A scheduler and its warps; the warp that issued last has the lowest priority."""

    def __init__(self, path: Sequence[Instruction], warps: int, programs: int, is_cold: bool) -> None:
        self.path = path
        self.warps = [Warp(program) for program in range(programs) for _ in range(warps)]
        self.clock = 0.0
        self._free: dict[str, float] = {}
        self._l2_free = 0.0
        self._lines: dict[int, float] | None = {} if is_cold else None
        self._fetched = 0.0

    def step(self) -> None:
        """Issue an instruction, or advance to the time at which one is ready."""
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
        """The earliest time of the next instruction of a warp, as known so far."""
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
        """Issue the next instruction of a warp."""
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
                # A scheduler has a quarter of the bandwidth to the L2.
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
        """The time at which the instruction is loaded."""
        if self._lines is None:
            return 0.0
        line = instruction.address // 128
        if line not in self._lines:
            self._fetched = self._lines[line] = max(self._fetched, self.clock) + NEW_LINE
        return self._lines[line]


def wavefronts(instruction: Instruction) -> int:
    """The number of 128-byte units that a warp reads or writes."""
    if instruction.kind == "LDSM":
        return int(instruction.opcode[-1]) if instruction.opcode[-2] == "." else 1
    width = re.search(r"\.(64|128)\b", instruction.opcode)
    return int(width[1]) // 32 if width else 1


def columns_of(instruction: Instruction) -> int:
    """The columns of a product of four warps: "HGMMA.64x32x8" has 32."""
    return int(instruction.opcode.split("x")[1])


def _registers(operands: str) -> list[int]:
    return [int(number) for number in re.findall(r"\bR(\d+)", operands)]


def _read(instruction: Instruction) -> list[int]:
    """The registers that may hold sums of products, including those that a product accumulates into."""
    registers = _registers(instruction.operands)
    return registers[3:] if instruction.kind == "HMMA" else registers[1:]
