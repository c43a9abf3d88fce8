"""The library's scans take no more of anything than the committed table says, and how that is counted."""

import sys
from pathlib import Path

import pytest

from dmm_fast import _extension
from dmm_fast.cuda.plan import scan_plans
from tests.cuda import step_budget
from tests.cuda.chain import chain
from tests.cuda.machine_code import ARCH, Instruction, compiler, functions, instructions
from tests.cuda.resource_table import cuobjdump
from tests.cuda.step_budget import SIZES, TABLE, Budget, Table, excess, launch_of
from tests.cuda.turns import Passed, Turn, blocks_of, find_turn, loops

LAUNCHES = {scan: launch_of(scan, plan) for scan, plan in scan_plans(*SIZES).items()}


@pytest.fixture(scope="module")
def held() -> list[str]:
    """Kernels whose turns are read: those of the tutorial's size, and the longest of each family."""
    budgets = step_budget.read_table().kernels
    longest: dict[str, str] = {}
    for name in sorted(budgets, key=lambda name: budgets[name].get("instructions", 0)):
        longest[name.partition("<")[0]] = name
    return sorted({*longest.values(), *(launch.kernel for launch in LAUNCHES.values())})


@pytest.fixture(scope="module")
def budgets(held: list[str]) -> dict[str, Budget]:
    if ARCH not in _extension.cuda_architectures().split():
        pytest.skip(f"the library has no machine code for {ARCH}")
    if cuobjdump("--version") is None:
        pytest.skip("no cuobjdump: it comes with triton")
    return step_budget.read_library(held)


def test_the_library_takes_no_more_than_the_table_says(budgets: dict[str, Budget]) -> None:
    table = step_budget.read_table()
    if (nvcc := compiler()) != table.nvcc:
        pytest.skip(f"the library is from nvcc {nvcc}, the table from {table.nvcc}")
    assert excess(budgets, table.kernels) == []


@pytest.mark.parametrize("scan", LAUNCHES)
def test_the_kernels_of_the_tutorials_plans_have_a_turn(scan: str, budgets: dict[str, Budget]) -> None:
    budget = budgets[LAUNCHES[scan].kernel]
    assert budget["stack"] == 0
    assert 0 < budget["stas"] < budget["ffma"] < budget["instructions"] < 1_000
    assert 200 < budget["chain"] < 2_000


def test_no_kernel_of_the_table_spills() -> None:
    assert [name for name, budget in step_budget.read_table().kernels.items() if budget["stack"]] == []


ALLOWED: dict[str, Budget] = {
    "a": {"registers": 9, "stack": 0, "instructions": 100, "lds": 3, "chain": 200},
    "b": {"registers": 4, "stack": 0},
}


@pytest.mark.parametrize(
    ("column", "count", "is_more"),
    [
        ("registers", 10, True),
        ("stack", 8, True),
        ("lds", 4, True),
        ("lds", 2, False),
        ("instructions", 102, False),
        ("instructions", 103, True),
        ("chain", 210, False),
        ("chain", 211, True),
    ],
)
def test_counts_may_not_grow(column: str, count: int, is_more: bool) -> None:
    found = {**ALLOWED, "a": ALLOWED["a"] | {column: count}}
    told = f"a: {column}: expected at most {ALLOWED['a'][column]}, got {count}"
    assert excess(found, ALLOWED) == ([told] if is_more else [])


def test_table_and_library_have_the_same_kernels() -> None:
    assert excess({"a": ALLOWED["a"]}, ALLOWED) == ["b: expected in the library, got none"]
    assert excess(ALLOWED, {"a": ALLOWED["a"]}) == ["b: expected in the table, got none"]


def test_a_kernel_that_begins_to_exchange_is_told() -> None:
    assert excess({**ALLOWED, "b": ALLOWED["b"] | {"lds": 1}}, ALLOWED) == [
        "b: lds: expected at most 0, got 1"
    ]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table, path = Table("V1.2.3", ALLOWED), tmp_path / "table.json"
    step_budget.write_table(table, path)
    assert step_budget.read_table(path) == table
    assert [line.split('"')[1] for line in path.read_text().splitlines() if "registers" in line] == ["a", "b"]


def test_the_committed_table_is_as_it_is_written(tmp_path: Path) -> None:
    step_budget.write_table(step_budget.read_table(), tmp_path / "table.json")
    assert (tmp_path / "table.json").read_text() == TABLE.read_text()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command, with the table in place of the library."""
    monkeypatch.setattr(step_budget, "resource_table", lambda: [])
    monkeypatch.setattr(step_budget, "read_library", lambda names: step_budget.read_table().kernels)
    monkeypatch.setattr(sys, "argv", ["step_budget", *arguments])
    step_budget.main()


def test_budgets_and_estimates_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "rnn_scan_fwd", "--check")
    rows = capsys.readouterr().out.splitlines()
    kernels = [name for name in step_budget.read_table().kernels if name.startswith("rnn_scan_fwd")]
    assert [row[:42].rstrip() for row in rows[1:-5]] == kernels
    assert [row.split()[0] for row in rows[-4:]] == list(LAUNCHES)
    for row in rows[-4:]:
        _, _, _, chain_, issue, exchange, us = row.split()
        # The clock is 1.98 GHz; the rows of a cluster are in one group.
        assert float(us) == pytest.approx(
            (max(float(chain_), float(issue)) + float(exchange)) / 1980, abs=0.01
        )


def test_what_is_too_much_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_budget, "excess", lambda found, allowed: ["a: lds: expected at most 3, got 4"])
    with pytest.raises(SystemExit, match="a: lds: expected at most 3, got 4"):
        run(monkeypatch, "--check")


def test_groups_that_take_turns_hide_the_exchange() -> None:
    budget = {"instructions": 100, "chain": 500, "waits": 1}
    launch = step_budget.Launch("kernel", warps=10, groups=1, received=0)
    assert launch.issue(budget) == 300  # a scheduler has three of the warps
    assert launch.step(budget) == pytest.approx(500 + 613.8)
    assert launch._replace(warps=32).step(budget) == pytest.approx(800 + 613.8)
    assert launch._replace(groups=2).step(budget) == pytest.approx(500 + 613.8)
    assert launch._replace(groups=3).step(budget) == 1500
    assert launch._replace(groups=3).step(budget | {"waits": 3}) == pytest.approx(500 + 613.8)


# ptxas 13.0, of rnn_scan and combiner_scan; shortened.
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
    # A multiplication takes four cycles. A load marks a scoreboard, and what needs its result waits for it.
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


def test_what_follows_a_failed_poll_is_cold() -> None:
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


def test_a_failed_poll_may_lie_apart() -> None:
    code = program(
        WAIT, "@!P0 BRA 0x70", STORE, "@P2 BRA 0x10", "EXIT", "NOP", WAIT, "@P0 BRA 0x30", "BRA 0x70"
    )
    turn = turn_of(code)
    assert lines_of(turn.path) == [1, 2, 3, 4]
    assert turn.cold == 3


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
    assert turn.cold == 0  # lanes that are not together go outside the loop


def test_tables_of_branches_lead_to_what_nothing_else_leads_to() -> None:
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
def test_an_exchange_that_is_in_no_loop_is_an_error(lines: tuple[str, ...], told: str) -> None:
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
