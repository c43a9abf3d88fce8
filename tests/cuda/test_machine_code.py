"""Instructions, the turn of an exchange and its dependence chain, read from machine code."""

import pytest

from tests.cuda.chain import chain
from tests.cuda.machine_code import Instruction, functions, instructions
from tests.cuda.turns import Passed, Turn, blocks_of, find_turn, loops

EXCERPT = """
  Function : _Z5firstv
  .headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
    /*8240*/  YIELD ; /* 0x0000000000007946 */
    /* 0x000fea0003800000 */
    /*8280*/  @!P3 BRA P4, 0x8240 ; /* 0xfffffffc00ecb947 */
    /* 0x001fea000203ffff */
    /*8710*/  NOP ; /* 0x0000000000007918 */
    /* 0x03ffe20000000000 */
    /*9150*/  LDS R219, [R209+0x30] ; /* 0x00003000d1db7984 */
    /* 0x000ee20000000800 */
    /*9170*/  FFMA R221, R5, R160, R218 ; /* 0x000000a005dd7223 */
    /* 0x000fc800000000da */
    /*9370*/  FFMA R222, R219.reuse, R98, R222 ; /* 0x00000062dbde7223 */
    /* 0x048fe200000000de */
    /*a040*/  STAS.128 [R40.64], R4 ; /* 0x0000000428007dbd */
    /* 0x0041e4000c000c3f */

  Function : _Z6secondv
  .headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
    /*0000*/  @P0 ERRBAR; /* 0x00000000000009ab */
    /* 0x000fea0000000000 */
"""


def test_instructions_are_read() -> None:
    first, second = functions(EXCERPT)
    assert (first[0], second[0]) == ("_Z5firstv", "_Z6secondv")
    assert second[1] == [Instruction(0, "@P0", "ERRBAR", "", 0x000FEA0000000000)]
    assert first[1] == instructions(EXCERPT)[:-1]
    _, back, nop, load, multiply, consumer, store = first[1]
    assert back[:4] == (0x8280, "@!P3", "BRA", "P4, 0x8240")
    assert (back.target, load.target, store.kind) == (0x8240, None, "STAS")
    assert nop.waits == [0, 1, 2, 3, 4, 5]
    # A multiplication takes four cycles. A load marks a scoreboard, which dependent instructions wait for.
    assert (multiply.stall, multiply.write_barrier, multiply.read_barrier, multiply.waits) == (
        4,
        None,
        None,
        [],
    )
    assert (load.stall, load.write_barrier, load.read_barrier) == (1, 3, None)
    assert (consumer.waits, consumer.reuse, consumer.yields) == ([3], 1, False)
    assert (store.write_barrier, store.read_barrier, store.waits, store.stall) == (None, 0, [2], 2)
    assert multiply.yields


def program(*lines: str) -> list[Instruction]:
    """Instructions, the first at 0x10, the second at 0x20."""
    code = []
    for number, line in enumerate(lines, 1):
        predicate, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        opcode, _, operands = rest.partition(" ")
        code.append(Instruction(16 * number, predicate, opcode, operands, control()))
    return code


def control(stall: int = 1, write: int = 7, read: int = 7, waits: int = 0) -> int:
    return stall << 41 | 1 << 45 | write << 46 | read << 49 | waits << 52


WAIT, STORE = "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2", "STAS [R4.64], R6"


def turn_of(code: list[Instruction], without_mufu: bool = False) -> Turn:
    turn = find_turn(code, without_mufu)
    assert turn is not None
    return turn


def lines_of(path: list[Passed]) -> list[int]:
    """The numbers of the lines of a program."""
    return [passed.instruction.address // 16 for passed in path]


def test_a_turn_is_the_innermost_loop_that_waits_and_stores() -> None:
    code = program(
        "MOV",
        "IADD3 a step",  # 2
        "IADD3 a group",
        WAIT,  # 4
        "@!P0 BRA 0x40",
        "FFMA a product",  # 6
        "@P1 BRA 0x60",
        STORE,  # 8
        "@P2 BRA 0x30",
        "@P3 BRA 0x20",  # 10
        "EXIT",
    )
    assert sorted(len(body) for body in loops(blocks_of(code)).values()) == [1, 1, 4, 6]
    turn = turn_of(code)
    assert lines_of(turn.path) == [3, 4, 5, 6, 7, 8, 9]
    assert lines_of([passed for passed in turn.path if passed.repeats]) == [4, 5, 6, 7]
    assert lines_of([passed for passed in turn.path if passed.jumps]) == [9]


def test_groups_that_are_unrolled_share_a_turn() -> None:
    code = program("MOV", WAIT, STORE, "@P1 BRA 0x60", WAIT, STORE, "@P2 BRA 0x20", "EXIT")
    assert lines_of(turn_of(code).path) == [2, 3, 4, 5, 6, 7]


def test_code_after_a_failed_poll_is_excluded() -> None:
    code = program(
        WAIT,  # 1
        "@P0 BRA 0x80",
        "CS2R R4, SR_GLOBALTIMERLO",  # 3
        WAIT,
        "@P0 BRA 0x80",
        "@P1 BRA 0x40",
        "ATOMG the record of a hang",  # 7
        "NOP",  # 8
        STORE,
        "@P2 BRA 0x10",
        "EXIT",
    )
    turn = turn_of(code)
    assert lines_of(turn.path) == [1, 2, 8, 9, 10]
    assert turn.cold == 5


@pytest.mark.parametrize(
    ("between", "branch", "expected"),
    [
        ("NOP", "@P0 BRA 0x60", [1, 2, 3, 6, 7]),
        ("NOP", "@!P0 BRA 0x40", [1, 2, 3, 4, 5, 6, 7]),  # both lead to the second poll
        ("NOP", "@P1 BRA 0x60", [1, 2, 3, 4, 5, 6, 7]),
        ("NOP", "@P0 BRA P1, 0x60", [1, 2, 3, 4, 5, 6, 7]),
        ("ISETP.GT.AND P0, PT, R1, RZ, PT", "@P0 BRA 0x60", [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_the_first_poll_succeeds(between: str, branch: str, expected: list[int]) -> None:
    code = program(WAIT, between, branch, WAIT, "@!P0 BRA 0x40", STORE, "@P2 BRA 0x10", "EXIT")
    assert lines_of(turn_of(code).path) == expected


def test_a_failed_poll_may_be_out_of_line() -> None:
    code = program(
        WAIT, "@!P0 BRA 0x70", STORE, "@P2 BRA 0x10", "EXIT", "NOP", WAIT, "@P0 BRA 0x30", "BRA 0x70"
    )
    turn = turn_of(code)
    assert lines_of(turn.path) == [1, 2, 3, 4]
    assert turn.cold == 3


POLL, WORD = "LDG.E.128.STRONG.GPU R4, [R2.64]", "STG.E.128.STRONG.GPU [R8.64], R4"


def test_words_arrive_at_the_first_poll() -> None:
    """If words have not arrived, control goes to the clock, then to another poll or the record of a hang."""
    code = program(
        "ISETP a step",  # 1
        "@P5 " + POLL,
        "@P4 " + POLL,  # 3
        "@!P0 BRA 0xa0",
        "ISETP many polls",  # 5
        "@!P5 BRA 0x80",
        "CS2R R4, SR_GLOBALTIMERLO",
        "ISETP patience",  # 8
        "@!P5 BRA 0x100",
        "@P0 BRA 0x20",  # 10
        "STS what has come",
        "BAR.SYNC",
        "FFMA",
        WORD,  # 14
        "BRA 0x120",
        "ATOMG.E.CAS.STRONG.GPU the record of a hang",  # 16
        "NOP",
        "@P2 BRA 0x10",  # 18
        "EXIT",
    )
    turn = turn_of(code)
    assert lines_of(turn.path) == [1, 2, 3, 4, 10, 11, 12, 13, 14, 15, 18]
    assert turn.cold == 7
    assert [passed.repeats for passed in turn.path] == [False] * 11  # further polls do not count as repeats


def test_a_poll_may_be_in_a_branch_before_the_decisive_one() -> None:
    code = program(
        "@!P5 BRA 0x30",  # 1
        POLL,
        "ISETP is it missing",  # 3
        "@!P0 BRA 0x70",
        "CS2R R4, SR_GLOBALTIMERLO",
        "@!P1 BRA 0xb0",  # 6
        "@P0 BRA 0x10",
        "FFMA",  # 8
        WORD,
        "@P2 BRA 0x10",  # 10
        "EXIT",
    )
    assert lines_of(turn_of(code).path) == [1, 2, 3, 4, 7, 8, 9, 10]


def test_ordinary_loads_and_stores_are_not_an_exchange() -> None:
    assert find_turn(program("LDG.E R4, [R2.64]", "STG.E [R8.64], R4", "@P2 BRA 0x10", "EXIT")) is None
    assert find_turn(program(POLL, "STG.E.STRONG.SYS [R8.64], R4", "@P2 BRA 0x10", "EXIT")) is None


def test_the_chain_begins_with_the_last_poll_for_words() -> None:
    poll, word = ("LDG.E.64.STRONG.GPU", control(2, write=0)), ("STG.E.64.STRONG.GPU", control())
    assert walked(poll, ("FFMA", control(9)), poll, ("FFMA", control(4, waits=1)), word) == 4


SIDES = program(
    WAIT,  # 1
    "@P3 BRA 0x70",
    "MUFU.EX2 R1, R1",  # 3
    "FMUL",
    "FMUL",
    "BRA 0x80",
    "FMNMX",  # 7
    STORE,  # 8
    "@P0 BRA 0xb0",
    "BRA.DIV UR4, 0xe0",
    "@P1 EXIT",  # 11
    "@P2 BRA 0x10",
    "EXIT",
    "WARPSYNC.COLLECTIVE R4, 0xf0",  # 14
    "SHFL.IDX",
    "BRA 0xb0",
)


@pytest.mark.parametrize(
    ("without_mufu", "expected"),
    [(False, [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]), (True, [1, 2, 7, 8, 9, 10, 11, 12])],
)
def test_the_longer_side_counts(without_mufu: bool, expected: list[int]) -> None:
    turn = turn_of(SIDES, without_mufu)
    assert lines_of(turn.path) == expected
    assert turn.cold == 0  # diverged lanes leave the loop


def test_branch_tables_lead_to_blocks_without_other_predecessors() -> None:
    code = program(
        WAIT,  # 1
        "BRX R4 -0x20",
        "FFMA",  # 3
        "BRA 0x80",
        "FFMA",  # 5
        "FFMA",
        "BRA 0x80",
        STORE,  # 8
        "BRX R6 -0x90",
        "@P0 BRA 0x10",  # 10
        "EXIT",
        "MOV",  # 12
        "BRA 0x10",
    )
    assert [set(block.next) for block in blocks_of(code)] == [{1, 2}, {3}, {3}, {4, 6}, {0, 5}, set(), {0}]
    assert lines_of(turn_of(code).path) == [1, 2, 5, 6, 7, 8, 9, 12, 13]


def test_kernels_that_do_not_exchange_have_no_turn() -> None:
    assert find_turn(program("FFMA", "@P0 BRA 0x10", "EXIT")) is None
    assert find_turn(program(STORE, "@P0 BRA 0x10", "EXIT")) is None


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((WAIT, "@P0 BRA 0x10", STORE, "EXIT"), "one that waits and stores to other blocks"),
        (("CS2R R4, SR_GLOBALTIMERLO", WAIT, STORE, "BRA 0x10"), "a way through it that exchanges"),
    ],
)
def test_an_exchange_outside_a_loop_is_an_error(lines: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=f"loop: expected {told}, got none"):
        find_turn(program(*lines))


def walked(*steps: tuple[str, int], jumps: int = -1) -> int:
    """The chain of opcodes with control codes; the one of number ``jumps`` is a taken branch."""
    return chain(
        Passed(Instruction(0, "", opcode, "", code), number == jumps, False)
        for number, (opcode, code) in enumerate(steps)
    )


START, END = ("SYNCS.PHASECHK", control()), ("STAS", control())


@pytest.mark.parametrize(
    ("between", "cycles"),
    [
        ([], 0),
        ([("FFMA", control(4)), ("FFMA", control(4))], 8),
        ([("NOP", control(0))], 1),
        ([("LDS", control(2, write=0)), ("FFMA", control(4, waits=1))], 34),
        ([("LDS", control(2, write=0)), ("FFMA", control(4, waits=2))], 6),
        ([("LDS", control(2, write=3)), ("SHFL", control(2, write=3)), ("FADD", control(4, waits=8))], 34),
        ([("SHFL", control(2, write=5)), ("FADD", control(4, waits=32))], 29),
        ([("MUFU", control(1, write=0)), ("FADD", control(4, waits=1))], 24),
        ([("LDG", control(1, write=0)), ("FADD", control(4))], 5),
        ([("LDG", control(1, write=0)), ("FADD", control(4, waits=1))], 604),
        ([("STS", control(1, read=2)), ("MOV", control(4, waits=4))], 14),
        ([("BAR", control(5))], 35),
        (
            [
                ("STAS", control(2)),
                ("LDS", control(2, write=0)),
                ("MOV", control(4, waits=1)),
                ("LDS", control(1)),
            ],
            37,
        ),
    ],
)
def test_a_chain_follows_stalls_and_scoreboards(between: list[tuple[str, int]], cycles: int) -> None:
    before, after = ("LDG", control(1, write=0)), ("FADD", control(15, waits=1))
    assert walked(before, START, *between, END, after) == cycles


def test_taken_branches_cost() -> None:
    code = (START, ("BRA", control(5)), END)
    assert walked(*code) == 5
    assert walked(*code, jumps=1) == 15
