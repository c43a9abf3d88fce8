"""The usual path of a warp through the loop over time steps of a kernel that exchanges data between blocks.

A *turn* is one iteration of the innermost loop that both waits for stores of other blocks and stores to
other blocks: a step of all rows, or of one group if groups alternate in a loop of their own. One path
through it is counted, chosen by these rules:

1. A poll succeeds at the first attempt. Code that is only reached if it fails is excluded: further polls,
   those against the clock of the GPU (%globaltimer), and the record of a hang. Through device memory several
   words are polled at a time; if some have not arrived, control goes to the clock.
2. The lanes of a warp reach a shuffle together, so the code for diverged lanes (BRA.DIV) is excluded.
3. An inner loop is passed once.
4. Of the remaining paths, those with the most waits and stores are considered, and of them, if requested,
   those with the fewest exponentials and reciprocals (MUFU): ``rnn_scan`` with ReLU, not tanh.
5. Of these, the path of most instructions is counted. The longer side of a branch therefore counts: it is the
   path of the warp with the most work, which the others wait for.
"""

from collections.abc import Callable, Iterable, Sequence
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import NamedTuple

from tests.cuda.machine_code import Instruction

_TABLES = ("BRX", "BRXU", "JMX")  # branches to an address from a table


class Block(NamedTuple):
    """A basic block: its instructions, and the indices of its successors."""

    code: list[Instruction]
    next: tuple[int, ...]


class Passed(NamedTuple):
    """An instruction on the path."""

    instruction: Instruction
    jumps: bool  # the next instruction on the path is not the next one in memory
    repeats: bool  # in an inner loop


class Turn(NamedTuple):
    """A turn of a kernel."""

    path: list[Passed]
    cold: int  # instructions of the loop that are only reached if polls fail


def is_word_poll(instruction: Instruction) -> bool:
    """True if the instruction reads a word with a flag, bypassing the first-level cache."""
    return instruction.kind == "LDG" and ".STRONG.GPU" in instruction.opcode


def is_wait(instruction: Instruction) -> bool:
    """True if the instruction polls a barrier or reads a word with a flag."""
    return instruction.opcode.startswith("SYNCS.PHASECHK") or is_word_poll(instruction)


def is_remote_store(instruction: Instruction) -> bool:
    """True if the instruction stores to the shared memory of another block, or a word that others poll."""
    return instruction.kind == "STAS" or (instruction.kind == "STG" and ".STRONG.GPU" in instruction.opcode)


def find_turn(code: Sequence[Instruction], without_mufu: bool = False) -> Turn | None:
    """The turn of a kernel; None for a kernel without an exchange.

    Raises:
        ValueError: the kernel waits and stores to other blocks, but not on one path through a loop.
    """
    if not (any(map(is_wait, code)) and any(map(is_remote_store, code))):
        return None
    blocks = blocks_of(code)
    found = loops(blocks)
    exchanging = [
        (header, body)
        for header, body in found.items()
        if _has(blocks, body, is_wait) and _has(blocks, body, is_remote_store)
    ]
    innermost = [(h, body) for h, body in exchanging if not any(other < body for _, other in exchanging)]
    if not innermost:
        raise ValueError("loop: expected one that waits and stores to other blocks, got none")
    exponentials = [
        sum(i.kind == "MUFU" for index in body for i in blocks[index].code) for _, body in innermost
    ]
    if without_mufu:  # a loop of its own, if there is one
        innermost = [
            loop for loop, count in zip(innermost, exponentials, strict=True) if count == min(exponentials)
        ]
    header, body = max(innermost, key=lambda loop: _count(blocks, loop[1]))
    back = {(index, head) for head, inside in found.items() for index in inside if head in blocks[index].next}
    timed = {index for index in body if any("SR_GLOBALTIMER" in i.operands for i in blocks[index].code)}
    forth = {
        index: [to for to in blocks[index].next if to in body and (index, to) not in back] for index in body
    }
    to_clock = _leading_to(timed, forth, [b for b in found.values() if _has(blocks, b, is_word_poll)])
    ways = {}
    for index in body - timed:
        after = set(_after_success(blocks[index])) - timed
        if index in to_clock and not after <= to_clock:
            after -= to_clock
        ways[index] = [to for to in forth[index] if to in after]
    way = _longest(blocks, ways, header, without_mufu)
    inner = set().union(
        *(inside for inside in found.values() if inside < body and not _has(blocks, inside, is_word_poll))
    )
    path = []
    for index, after in zip(way, [*way[1:], header], strict=True):
        code = blocks[index].code
        path += [Passed(instruction, False, index in inner) for instruction in code]
        if after != index + 1:
            path[-1] = path[-1]._replace(jumps=True)
    return Turn(path, _count(blocks, body - _reached(ways, header)))


def blocks_of(code: Sequence[Instruction]) -> list[Block]:
    """Split a function into basic blocks, in the order of their addresses."""
    heads = {code[0].address, *(i.target for i in code if i.target is not None)}
    heads |= {after.address for i, after in pairwise(code) if _ends(i)}
    runs: list[list[Instruction]] = []
    for instruction in code:
        if instruction.address in heads:
            runs.append([])
        runs[-1].append(instruction)
    index = {run[0].address: i for i, run in enumerate(runs)}
    after = [_next(run[-1], i, index) for i, run in enumerate(runs)]
    led_to = {0}.union(*after)
    blocks, cases = [], tuple[int, ...]()
    for i in reversed(range(len(runs))):
        if i not in led_to:
            cases = (i, *cases)
        # A branch table hides its targets: take all blocks without predecessors up to the next table.
        if runs[i][-1].kind in _TABLES:
            after[i], cases = cases, ()
        blocks.append(Block(runs[i], tuple(dict.fromkeys(after[i]))))
    return blocks[::-1]


def loops(blocks: Sequence[Block]) -> dict[int, frozenset[int]]:
    """Loops by their header blocks: for every backward branch, the blocks from which it is reached.

    Loops made by a compiler have a single entry. Backward branches are those to a block on the stack of a
    depth-first search.
    """
    before: dict[int, set[int]] = {index: set() for index in range(len(blocks))}
    backwards: list[tuple[int, int]] = []
    entered, left = {0}, set()
    stack = [(0, iter(blocks[0].next))]
    while stack:
        index, targets = stack[-1]
        target = next(targets, None)
        if target is None:
            left.add(index)
            stack.pop()
            continue
        before[target].add(index)
        if target not in entered:
            entered.add(target)
            stack.append((target, iter(blocks[target].next)))
        elif target not in left:
            backwards.append((index, target))
    found: dict[int, set[int]] = {}
    for last, header in backwards:
        body, ahead = found.setdefault(header, {header}), [last]
        while ahead:
            index = ahead.pop()
            if index not in body:
                body.add(index)
                ahead += before[index]
    return {header: frozenset(body) for header, body in found.items()}


def _ends(instruction: Instruction) -> bool:
    return instruction.kind in ("BRA", "RET", "EXIT", *_TABLES)


def _next(last: Instruction, index: int, index_of: dict[int, int]) -> tuple[int, ...]:
    follows = (index + 1,) if index + 1 < len(index_of) else ()
    if last.opcode == "BRA.DIV" or not _ends(last):
        return follows
    # A second condition is an operand: "@!P3 BRA P4, 0x8240".
    if last.predicate in ("", "@PT") and (last.kind != "BRA" or "," not in last.operands):
        follows = ()
    return follows if last.target is None else (*follows, index_of[last.target])


def _leading_to(timed: set[int], forth: dict[int, list[int]], polling: Sequence[frozenset[int]]) -> set[int]:
    """The blocks that lead to the clock within the innermost loop that polls for words."""
    found = set()
    for block in timed:
        inside = min((loop for loop in polling if block in loop), key=len, default=frozenset())
        found |= {index for index in inside & forth.keys() if block in _reached(forth, index, inside)}
    return found


def _after_success(block: Block) -> tuple[int, ...]:
    """The successors of a block if its last poll succeeds."""
    *_, last = block.code
    polls = [number for number, instruction in enumerate(block.code) if is_wait(instruction)]
    if polls and last.kind == "BRA" and len(block.next) > 1:
        flag = block.code[polls[-1]].operands.partition(",")[0]
        is_kept = not any(i.operands.startswith(f"{flag},") for i in block.code[polls[-1] + 1 : -1])
        if is_kept and last.predicate == f"@!{flag}":
            return block.next[:1]
        if is_kept and last.predicate == f"@{flag}" and "," not in last.operands:
            return block.next[1:]
    return block.next


def _has(blocks: Sequence[Block], body: Iterable[int], holds: Callable[[Instruction], bool]) -> bool:
    return any(holds(i) for index in body for i in blocks[index].code)


def _count(blocks: Sequence[Block], body: Iterable[int]) -> int:
    return sum(len(blocks[index].code) for index in body)


def _reached(ways: dict[int, list[int]], first: int, inside: frozenset[int] | None = None) -> set[int]:
    """The blocks reachable from a block within a set of blocks."""
    found, ahead = {first}, [first]
    while ahead:
        index = ahead.pop()
        for after in ways[index]:
            if after not in found and (inside is None or after in inside):
                found.add(after)
                ahead.append(after)
    return found


def _longest(
    blocks: Sequence[Block], ways: dict[int, list[int]], header: int, without_mufu: bool
) -> list[int]:
    """The blocks of the counted path, from the header to a branch back to it."""
    best: dict[int, tuple[_Worth, int | None]] = {}  # value of the rest of the path, and the next block
    for index in TopologicalSorter(ways).static_order():  # successors are evaluated first
        rest: list[tuple[_Worth, int | None]] = [
            (best[after][0], after) for after in ways[index] if after in best
        ]
        if header in blocks[index].next:
            rest.append((_Worth(0, 0, 0), None))
        if rest:
            worth, after = max(rest, key=lambda end: end[0])
            best[index] = worth.plus(_worth(blocks[index], without_mufu)), after
    if header not in best or best[header][0].exchanges == 0:
        raise ValueError("loop: expected a way through it that exchanges, got none")
    way = [header]
    while (following := best[way[-1]][1]) is not None:
        way.append(following)
    return way


class _Worth(NamedTuple):
    """The value of a path; the path of the greatest value is counted."""

    exchanges: int  # waits and stores to other blocks
    avoided: int  # less the instructions to avoid
    instructions: int

    def plus(self, other: "_Worth") -> "_Worth":
        return _Worth(*(mine + its for mine, its in zip(self, other, strict=True)))


def _worth(block: Block, without_mufu: bool) -> _Worth:
    exchanges = sum(is_wait(i) or is_remote_store(i) for i in block.code)
    avoided = sum(i.kind == "MUFU" for i in block.code) if without_mufu else 0
    return _Worth(exchanges, -avoided, len(block.code))
