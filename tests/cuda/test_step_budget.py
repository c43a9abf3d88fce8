"""The scans of the library do not exceed the committed table of counts; and tests of the counting."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmm_fast import _extension
from dmm_fast.cuda.devices import KNOWN
from dmm_fast.cuda.plan import scan_plans
from tests.cuda import cubins, large_batches, step_budget
from tests.cuda.machine_code import ARCH, Instruction, compiler
from tests.cuda.resource_table import Resources, cuobjdump
from tests.cuda.step_budget import TABLE, Table, excess
from tests.cuda.step_estimates import SIZES, Budget, Launch, gpus_of, launch_of, launches

LAUNCHES = {scan: launch_of(scan, plan) for scan, plan in scan_plans(*SIZES).items()}


@pytest.fixture(scope="module")
def held() -> list[str]:
    """The kernels whose turns are read: those of the tutorial's size, and the longest of each family."""
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


def test_the_library_does_not_exceed_the_table(budgets: dict[str, Budget]) -> None:
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
def test_larger_counts_are_reported(column: str, count: int, is_more: bool) -> None:
    found = {**ALLOWED, "a": ALLOWED["a"] | {column: count}}
    told = f"a: {column}: expected at most {ALLOWED['a'][column]}, got {count}"
    assert excess(found, ALLOWED) == ([told] if is_more else [])


def test_table_and_library_have_the_same_kernels() -> None:
    assert excess({"a": ALLOWED["a"]}, ALLOWED) == ["b: expected in the library, got none"]
    assert excess(ALLOWED, {"a": ALLOWED["a"]}) == ["b: expected in the table, got none"]


def test_a_new_kernel_with_an_exchange_is_reported() -> None:
    assert excess({**ALLOWED, "b": ALLOWED["b"] | {"lds": 1}}, ALLOWED) == [
        "b: lds: expected at most 0, got 1"
    ]


def test_a_table_is_read_back_unchanged(tmp_path: Path) -> None:
    table, path = Table("V1.2.3", ALLOWED), tmp_path / "table.json"
    step_budget.write_table(table, path)
    assert step_budget.read_table(path) == table
    assert [line.split('"')[1] for line in path.read_text().splitlines() if "registers" in line] == ["a", "b"]


def test_the_committed_table_is_as_written(tmp_path: Path) -> None:
    step_budget.write_table(step_budget.read_table(), tmp_path / "table.json")
    assert (tmp_path / "table.json").read_text() == TABLE.read_text()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the command with the table in place of the library."""
    monkeypatch.setattr(step_budget, "cuobjdump", lambda *flags: "")
    monkeypatch.setattr(step_budget, "read_library", lambda names, arch: step_budget.read_table().kernels)
    monkeypatch.setattr(sys, "argv", ["step_budget", *arguments])
    step_budget.main()


def test_budgets_and_estimates_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "rnn_scan_fwd", "--check")
    budgets, clusters, teams = capsys.readouterr().out.split("\n\n")
    kernels = [name for name in step_budget.read_table().kernels if name.startswith("rnn_scan_fwd")]
    assert [row[:42].rstrip() for row in budgets.splitlines()[1:]] == kernels
    assert clusters.startswith("NVIDIA H100 80GB HBM3, exchange by cluster\n")
    assert teams.startswith("NVIDIA H100 80GB HBM3, exchange by memory\n")
    rows = clusters.splitlines()[2:]
    assert [row.split()[0] for row in rows] == list(LAUNCHES)
    for row in rows:
        _, _, _, chain_, issue, latency, bytes_, us = row.split()
        # At 1.98 GHz, with all rows of a cluster in one group.
        assert float(us) == pytest.approx(
            (max(float(chain_), float(issue)) + float(latency) + float(bytes_)) / 1980, abs=0.01
        )


def test_excessive_counts_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_budget, "excess", lambda found, allowed: ["a: lds: expected at most 3, got 4"])
    with pytest.raises(SystemExit, match="a: lds: expected at most 3, got 4"):
        run(monkeypatch, "--check")


def test_alternating_groups_hide_the_exchange() -> None:
    budget = {"instructions": 100, "chain": 500, "waits": 1}
    launch = Launch("kernel", warps=10, groups=1, received=0)
    assert launch.issue(budget) == 300  # three warps per scheduler
    assert launch.step(budget) == pytest.approx(500 + 613.8)
    assert launch._replace(warps=32).step(budget) == pytest.approx(800 + 613.8)
    assert launch._replace(groups=2).step(budget) == pytest.approx(500 + 613.8)
    assert launch._replace(groups=3).step(budget) == 1500
    assert launch._replace(groups=3).step(budget | {"waits": 3}) == pytest.approx(500 + 613.8)


# ptxas 13.0, of rnn_scan and combiner_scan; shortened.


def test_a_step_of_a_team_waits_for_a_poll_and_for_bytes() -> None:
    budget = {"instructions": 400, "ffma": 100, "chain": 500, "waits": 1}
    a100, rtx3090 = KNOWN["a100"], KNOWN["rtx3090"]
    launch = Launch("kernel", warps=8, groups=1, received=6400, blocks=105, device=a100)
    assert (launch.latency, launch.issue(budget)) == (600, 1000)  # a multiplication takes two cycles there
    assert launch.bytes == pytest.approx(6400 / (35 * 108 / 105))
    assert launch.step(budget) == pytest.approx(1000 + 600 + launch.bytes)
    # Another group hides only the store of the exchange.
    assert launch._replace(groups=3).step(budget) == pytest.approx(3 * (1000 + 400 + launch.bytes))
    other = launch._replace(device=rtx3090, blocks=20)
    assert (other.latency, other.bytes, other.issue(budget)) == (375, 100, 800)
    assert other.step(budget) == 800 + 375 + 100


def test_a_gpu_with_clusters_is_estimated_both_ways() -> None:
    assert [way for _, way in gpus_of("sm_90")] == ["cluster", "memory"]
    assert gpus_of("sm_86") == [(KNOWN["rtx3090"], "memory")]
    found = launches(KNOWN["a100"], "memory")
    assert list(found) == list(LAUNCHES)
    assert all("_words_" in launch.kernel and launch.blocks for launch, _ in found.values())
    assert launches(KNOWN["a100"], "cluster") == {}


def test_waves_follow_one_another() -> None:
    (launch, waves) = launches(KNOWN["a100"], "memory")["rnn_scan"]
    assert waves == 1
    assert launch.received == 16 * 40 * 14  # a word of 16 bytes holds three rows
    few = KNOWN["a100"]._replace(multiprocessors=8)  # one team of eight blocks with a kernel for one row
    assert launches(few, "memory")["rnn_scan"][1] == 20


def test_the_table_is_of_one_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--arch", "sm_86", "--check")


def test_another_architecture_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch, _ = launches(KNOWN["rtx4090"], "memory")["rnn_scan"]
    budget = {"instructions": 500, "ffma": 300, "chain": 800, "waits": 1}
    monkeypatch.setattr(step_budget, "read_compiled", lambda arch: {launch.kernel: budget})
    run(monkeypatch, "--arch", "sm_89")
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("rnn_scan  ")]
    us = KNOWN["rtx4090"].us(launch.step(budget))
    assert rows[0].split()[-1] == f"{us:.2f}"


def test_kernels_are_compiled_for_one_gpu_and_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\nfor last; do :; done; echo "$@" >"$last"\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with cubins.compiled("sm_86") as files:
        for source, file in zip(cubins.SOURCES, files, strict=True):
            assert (
                f"-Icsrc -Xcompiler -fPIC,-fvisibility=hidden -arch=sm_86 -cubin {source}" in file.read_text()
            )
    assert not any(file.exists() for file in files)
    assert "rnn_scan_words.cu" in {source.name for source in cubins.SOURCES}


def test_a_file_for_one_gpu_does_not_record_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("a.cubin")

    @contextmanager
    def compiled(arch: str) -> Iterator[list[Path]]:
        yield [file]

    def kernels(names: None, arch: str, binary: Path) -> Iterator[tuple[str, list[Instruction]]]:
        assert (arch, binary) == ("sm_86", file)
        yield "a<1>", []

    monkeypatch.setattr(step_budget.cubins, "compiled", compiled)
    monkeypatch.setattr(step_budget, "resource_table", lambda binary: [Resources("a<1>", "", 9, 8, 0)])
    monkeypatch.setattr(step_budget, "kernels", kernels)
    monkeypatch.setattr(step_budget, "find_turn", lambda code, without_mufu: None)
    assert step_budget.read_compiled("sm_86") == {"a<1>": {"registers": 9, "stack": 8}}


def test_large_batches_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--large")
    rows = capsys.readouterr().out.splitlines()
    plans = [row for row in rows if row.startswith("the plan of ")]
    assert len(rows) == 2 + 5 * len(large_batches.KINDS) + len(plans) + 1
    assert len(plans) == 6


@pytest.mark.parametrize(
    ("kind", "blocks", "rows", "mmas", "received"),
    [
        # 150 outputs are 10 tiles of 16, 600 inputs 75 tiles of 8, and 18 rows 3 of 8.
        (0, 4, 18, 10 * 75 * 3, 18 * 4 * 450),
        (1, 4, 18, 10 * 38 * 3, 18 * 4 * 450),
        (2, 8, 35, 5 * 38 * 5, 35 * 2 * 525),
        # 100 by 150, and 150 by 200; of three other blocks, or a part of each of the sums and the latents.
        (3, 4, 18, (10 * 13 + 13 * 19) * 3, 18 * 4 * 200 * 3),
        (4, 4, 18, (10 * 13 + 13 * 19) * 3, 18 * 4 * 300 * 3 / 4),
    ],
)
def test_products_and_bytes_of_large_batches(
    kind: int, blocks: int, rows: int, mmas: int, received: float
) -> None:
    (found,) = (
        each
        for each in large_batches.bounds()
        if each.kind is large_batches.KINDS[kind] and each.blocks == blocks
    )
    assert (found.rows, found.mmas, found.received) == (rows, mmas, received)


def test_a_share_is_limited_by_products_or_bytes() -> None:
    for each in large_batches.bounds():
        macs = 512 * (600 * 600 if "rnn" in each.kind.name else 600 * 300)
        peak = 132 * (1024 if each.kind.number_bytes == 4 else 2048)
        longer = max(each.mmas * each.kind.mma_cycles, each.received / 14)
        assert each.share == pytest.approx(macs / peak / longer)
        assert each.reachable < each.share <= 1
