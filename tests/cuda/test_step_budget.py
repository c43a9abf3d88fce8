"""The library's scans take no more of anything than the committed table says, and how that is counted."""

import sys
from pathlib import Path

import pytest

from dmm_fast import _extension
from dmm_fast.cuda.plan import scan_plans
from tests.cuda import step_budget
from tests.cuda.machine_code import ARCH, compiler
from tests.cuda.resource_table import cuobjdump
from tests.cuda.step_budget import SIZES, TABLE, Budget, Table, excess, launch_of

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
