"""The rowwise kernels do not exceed the committed table of counts; and tests of the counting."""

import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from dmm_fast.triton import INTERPRETED
from tests.cuda.machine_code import Instruction
from tests.triton import multiprocessor, step_counts
from tests.triton.launches import passes_of
from tests.triton.multiprocessor import Load, cycles, microseconds
from tests.triton.step_counts import TABLE, Counts, Table, excess
from tests.triton.warp_path import warp_path


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="compiles, which a process that interprets cannot")
def test_the_kernels_do_not_exceed_the_table() -> None:
    table = step_counts.read_table()
    if (installed := version("triton")) != table.triton:
        pytest.skip(f"the table is from triton {table.triton}, not {installed}")
    command = [sys.executable, "-m", "tests.triton.step_counts", "--check", "transition_log_prob"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


def test_rows_and_weights_are_copied_in_units_of_sixteen_bytes() -> None:
    launches = step_counts.read_table().launches
    assert len(launches) > 15
    assert [name for name, counts in launches.items() if counts["words"]] == []


ALLOWED: dict[str, Counts] = {
    "a 0 k": {"registers": 9, "spills": 0, "shared": 64, "bar": 3, "words": 0, "instructions": 100},
    "b 0 k": {"registers": 4, "spills": 0, "shared": 0, "bar": 0, "words": 0, "instructions": 9},
}


@pytest.mark.parametrize(
    ("column", "count", "is_more"),
    [
        ("registers", 10, True),
        ("registers", 8, False),
        ("spills", 1, True),
        ("shared", 65, True),
        ("bar", 4, True),
        ("words", 1, True),
        ("instructions", 102, False),
        ("instructions", 103, True),
    ],
)
def test_larger_counts_are_reported(column: str, count: int, is_more: bool) -> None:
    found = {"a 0 k": ALLOWED["a 0 k"] | {column: count}}
    told = f"a 0 k: {column}: expected at most {ALLOWED['a 0 k'][column]}, got {count}"
    assert excess(found, ALLOWED) == ([told] if is_more else [])


def test_an_op_has_the_launches_of_the_table() -> None:
    assert excess({"a 0 other": ALLOWED["a 0 k"]}, ALLOWED) == [
        "a 0 k: expected to be launched, got none",
        "a 0 other: expected in the table, got none",
    ]


def test_the_committed_table_is_as_written(tmp_path: Path) -> None:
    step_counts.write_table(step_counts.read_table(), tmp_path / "table.json")
    assert (tmp_path / "table.json").read_text() == TABLE.read_text()
    table = Table("1.2.3", ALLOWED)
    step_counts.write_table(table, tmp_path / "table.json")
    assert step_counts.read_table(tmp_path / "table.json") == table


# --- the path of a warp ---------------------------------------------------------------------------------

_NOTHING = 7 << 46 | 7 << 49  # no scoreboard is marked


def code(*lines: str) -> list[Instruction]:
    """Instructions parsed from texts like "@P0 BRA 0x20", each with a stall count of one."""
    made = []
    for index, line in enumerate(lines):
        predicate, _, rest = line.rpartition(" ; ")
        opcode, _, operands = rest.partition(" ")
        made.append(Instruction(16 * index, predicate, opcode, operands, 1 << 41 | _NOTHING))
    return made


def kinds(lines: list[Instruction]) -> str:
    """The kinds of instructions as a string of their first letters."""
    return "".join(instruction.kind[0] for instruction in lines)


def test_a_loop_with_products_has_the_passes_of_the_source() -> None:
    nested = code("FADD", "MOV", "HMMA R0, R4, R8, R0", "@P0 ; BRA 0x20", "@P0 ; BRA 0x10", "EXIT")
    assert kinds(warp_path(nested, [2, 3])) == "F" + 2 * ("M" + 3 * "HB" + "B") + "E"
    assert kinds(warp_path(code("MOV", "@P0 ; BRA 0x0", "EXIT"), [])) == "MBE"
    with pytest.raises(ValueError, match="passes: expected 2, one of each loop with products, got"):
        warp_path(nested, [2])


def test_the_shortest_loop_is_the_one_that_was_unrolled() -> None:
    once = code("HMMA R0, R4, R8, R0", "MOV", "HMMA R0, R4, R8, R0", "@P0 ; BRA 0x10", "EXIT")
    assert kinds(warp_path(once, [1, 4])) == "H" + 4 * "MHB" + "E"


def test_calls_and_exits_between_products_are_branched_over() -> None:
    divides = code("@P0 ; BRA 0x30", "CALL.REL 0x50", "BRA 0x30", "@P0 ; BRA 0x50", "FADD", "EXIT")
    assert kinds(warp_path(divides, [])) == "BBFE"
    tiles = code("@P0 ; EXIT", "HGMMA.64x32x8", "@P0 ; EXIT", "HGMMA.64x32x8", "EXIT")
    assert kinds(warp_path(tiles, [])) == "EHE"


def test_passes_are_of_the_loops_with_products() -> None:
    source = """
  %c0 = arith.constant 0 : i32
  %c32 = arith.constant 32 : i32
  %c100 = arith.constant 100 : i32
  scf.for %n = %c0 to %c100 step %c32 iter_args() {
  }
  %acc:2 = scf.for %k = %c0 to %c100 step %c32 iter_args() {
    %d = tt.dot %a, %b
  }
  %acc:2 = scf.for %k = %first to %end step %c32 iter_args() {
    %d = ttng.warp_group_dot %a, %b
  }
"""
    assert passes_of(source) == [4, 1]
    assert passes_of(source, unknown=5) == [4, 5]


# --- the multiprocessor -----------------------------------------------------------------------------------


def warm(lines: list[Instruction], warps: int = 1, programs: int = 1) -> int:
    return cycles(lines, warps, programs, is_cold=False)


def waits(instruction: Instruction, index: int) -> Instruction:
    """The instruction, waiting for the scoreboard."""
    return instruction._replace(control=instruction.control | 1 << 52 + index)


def marks(instruction: Instruction, index: int) -> Instruction:
    """The instruction, marking the scoreboard until its result is available."""
    return instruction._replace(control=instruction.control & ~(7 << 46) | index << 46)


def test_a_scheduler_issues_an_instruction_per_cycle_if_units_allow_it() -> None:
    assert warm(code(*10 * ["FFMA"])) == 10
    assert warm(code(*10 * ["FFMA"]), warps=2) == warm(code(*10 * ["FFMA"]), programs=2) == 20
    assert warm(code(*10 * ["LOP3"])) == 19
    assert warm(code(*4 * ["HMMA R0, R4, R8, RZ"])) == 25
    slow = [line._replace(control=5 << 41 | _NOTHING) for line in code(*4 * ["FFMA"])]
    assert warm(slow) == 16  # stall counts of five
    assert warm(slow, warps=5) == 20  # filled by other warps


def test_a_warp_waits_for_its_operands() -> None:
    load, use = code("LDS R0, [R1]", "FADD")
    assert warm([marks(load, 2), waits(use, 2)]) == 31
    assert warm([marks(load, 2), waits(use, 3)]) == 2
    copy = code("LDGSTS.E.128 [R1], [R2]", "LDGDEPBAR", "DEPBAR.LE SB0, 0x0", "FADD")
    assert warm(copy) > 300
    assert warm([*copy[:2], copy[2]._replace(operands="SB0, 0x1"), copy[3]]) == 4
    assert warm(code("HMMA R0, R4, R8, RZ", "HMMA R0, R4, R8, R0")) == 27
    assert warm(code("HMMA R0, R4, R8, RZ", "HMMA R12, R4, R8, RZ")) == 9
    assert warm(code("HGMMA.64x64x8 R24, R72, gdesc, R24", "WARPGROUP.DEPBAR.LE gsb0, 0x0")) == 51


def test_warps_of_a_program_meet_at_a_barrier() -> None:
    meeting = code("FFMA", "BAR.SYNC", "FFMA")
    assert warm(meeting) == 27
    assert warm(meeting, warps=3) == 3 + 3 + 24 + 3
    assert warm(code("BAR.SYNC", "FFMA"), programs=2) < 2 * warm(code("BAR.SYNC", "FFMA"))


def test_the_first_warp_waits_for_instructions() -> None:
    line = code(*8 * ["FFMA"])
    assert cycles(line, 1, 1) == 8 + multiprocessor.NEW_LINE
    assert cycles(line, 2, 1) == 16 + multiprocessor.NEW_LINE


def test_programs_that_do_not_fit_need_another_wave() -> None:
    load = Load(programs=264, warps=4, registers=128, shared=0)
    assert (load.resident, load.most, load.waves) == (4, 2, 1)
    assert (load._replace(registers=129).resident, load._replace(shared=100 << 10).resident) == (3, 2)
    path = code(*1980 * ["FFMA"])
    cold = 1980 / 8 * multiprocessor.NEW_LINE / 1980
    assert microseconds(load, path) == pytest.approx(1 + 2 + cold, rel=0.15)
    assert microseconds(load._replace(registers=255), path) == microseconds(load, path)  # two still fit
    alone = load._replace(registers=255, warps=8)
    assert alone.waves == 2
    assert microseconds(alone, path) == pytest.approx(1 + 4 + cold, rel=0.15)
