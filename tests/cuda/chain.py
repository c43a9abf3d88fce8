"""A lower bound of the time of one warp, from the schedule of its instructions and assumed latencies.

A warp issues in order. After an instruction it waits for as many cycles as the compiler says, and before one
until the scoreboards in its mask are clear. Other warps, bank conflicts and misses of the instruction cache
are ignored, and could only add to the time.
"""

from collections.abc import Iterable

from tests.cuda.machine_code import SCOREBOARDS
from tests.cuda.turns import Passed, is_remote_store, is_wait, is_word_poll

# Cycles from the issue of an instruction until its scoreboard is clear.
LATENCY = {"LDS": 30, "SHFL": 25, "MUFU": 20, "LDC": 40, "LDG": 600, "LD": 600, "ATOMG": 600}
OTHER_LATENCY = 20  # conversions, special registers, polls
OPERANDS_READ = 10  # until the scoreboard of its operands is clear
BARRIER = 30  # barrier of a block that all other warps have reached
TAKEN_BRANCH = 10


def chain(path: Iterable[Passed]) -> int:
    """Cycles from the end of the first wait to the last store to another block.

    Loads issued before the wait are assumed complete at its end, as a wait takes several hundred cycles. A
    wait for words ends with the last poll.
    """
    path = list(path)
    polls = [place for place, passed in enumerate(path) if is_word_poll(passed.instruction)]
    waits = polls[-1:] or [place for place, passed in enumerate(path) if is_wait(passed.instruction)]
    clock, last = 0, 0
    clear_at = [0] * SCOREBOARDS
    for instruction, jumps, _ in path[waits[0] + 1 :]:
        clock = max(clock, *(clear_at[index] for index in instruction.waits), 0)
        if is_remote_store(instruction):
            last = clock
        if (index := instruction.write_barrier) is not None:
            clear_at[index] = max(clear_at[index], clock + LATENCY.get(instruction.kind, OTHER_LATENCY))
        if (index := instruction.read_barrier) is not None:
            clear_at[index] = max(clear_at[index], clock + OPERANDS_READ)
        clock += max(instruction.stall, 1) + BARRIER * (instruction.kind == "BAR") + TAKEN_BRANCH * jumps
    return last
