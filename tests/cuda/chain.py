"""The least time that one warp takes along its instructions, from their schedule and assumed latencies.

A warp issues in order. After an instruction it waits for as many cycles as the compiler says, and before one
until the scoreboards in its mask are clear. Other warps, bank conflicts and misses of the instruction cache,
which are left out, only make it longer.
"""

from collections.abc import Iterable

from tests.cuda.machine_code import SCOREBOARDS
from tests.cuda.turns import Passed, is_remote_store, is_wait, is_word_poll

# Cycles from the issue of an instruction until its scoreboard is clear.
LATENCY = {"LDS": 30, "SHFL": 25, "MUFU": 20, "LDC": 40, "LDG": 600, "LD": 600, "ATOMG": 600}
OTHER_LATENCY = 20  # conversions, special registers, polls
OPERANDS_READ = 10  # until the scoreboard of its operands is clear
BARRIER = 30  # of a block, where all other warps have come already
TAKEN_BRANCH = 10


def chain(path: Iterable[Passed]) -> int:
    """Cycles from the end of the first wait to the last store to another block.

    What was under way before the wait has arrived when it ends, since that takes several hundred cycles. A
    wait for words ends with the last poll for them.
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
