"""Plans of teams of blocks that exchange through device memory: their cost and their choice."""

from pathlib import Path

import pytest

from dmm_fast.cuda import measured
from dmm_fast.cuda.devices import ARCHITECTURES, H100, KNOWN, Device
from dmm_fast.cuda.measured import Case, Measurement
from dmm_fast.cuda.paths import SCANS, path, plan_of
from dmm_fast.cuda.plan import (
    Plan,
    _best,
    combiner_plans,
    rnn_plan,
    rnn_plans,
    scan_plans,
    use_measured,
)
from dmm_fast.cuda.rnn_plans import WarpTiling
from dmm_fast.cuda.word_exchange import word_bytes

A100 = KNOWN["a100"]
TUTORIAL = (20, 600, 100)
OLDER = [name for name, device in KNOWN.items() if device.capability < (9, 0)]


def plans_of(scan: str, rows: int, units: int, latents: int, device: Device) -> list[Plan]:
    """Every plan that fits."""
    backward = scan.endswith("_backward")
    if scan.startswith("rnn"):
        plans = rnn_plans(rows, units, device, backward)
    else:
        plans = combiner_plans(rows, units, latents, device, backward)
    return [plan for plan in plans if plan.shared_bytes <= device.shared_bytes]


def by_memory(plans: list[Plan]) -> list[Plan]:
    return [plan for plan in plans if plan.exchange == "memory"]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("scan", SCANS)
def test_the_tutorials_scans_use_the_exchange_of_the_gpu(scan: str, name: str) -> None:
    """Clusters from 9.0 on, unless few run concurrently."""
    plan = plan_of(scan, *TUTORIAL, KNOWN[name])
    assert plan.exchange == ("memory" if name in (*OLDER, "rtx5080") else "cluster")
    assert plan.streamed == 0


@pytest.mark.parametrize("faster", [1.2, 1.3])
def test_a_team_must_be_faster_than_clusters_by_a_quarter(faster: float) -> None:
    """The estimate of a team has not been measured."""
    cluster, team = (
        min((p for p in plans_of("rnn_scan", *TUTORIAL, H100) if p.exchange == how), key=_cycles)
        for how in ("cluster", "memory")
    )
    team = team._replace(step_cycles=cluster.step_cycles / faster)
    for device, chosen in ((H100, team if faster > 1.25 else cluster), (A100, team)):
        assert _best(iter((cluster, team)), device._replace(shared_bytes=1 << 20), Case("", 1, 1)) == chosen


def _cycles(plan: Plan) -> float:
    return plan.step_cycles


@pytest.mark.parametrize("name", OLDER)
@pytest.mark.parametrize("scan", SCANS)
def test_without_clusters_teams_are_chosen_where_they_fit(scan: str, name: str) -> None:
    device = KNOWN[name]
    for units in (300, 600, 700, 1024, 2048):
        for rows in (1, 2, 20, 64):
            if by_memory(plans_of(scan, rows, units, 100, device)):
                assert plan_of(scan, rows, units, 100, device).exchange == "memory", (units, rows)


@pytest.mark.parametrize("units", [700, 1024])
def test_a_batch_of_one_row_has_a_team_whose_kernel_supports_more(units: int) -> None:
    plan = plan_of("rnn_scan", 1, units, 100, KNOWN["rtx4090"])
    assert (plan.exchange, plan.rows_per_cluster) == ("memory", 1)
    assert plan.rows_per_group > 1


@pytest.mark.parametrize("units", [1280, 1536, 2048])
@pytest.mark.parametrize("scan", ["rnn_scan", "rnn_scan_backward"])
def test_weights_beyond_16_blocks_go_to_teams(scan: str, units: int) -> None:
    plan = plan_of(scan, 20, units, 100, H100)
    assert plan.exchange == "memory"
    assert plan.streamed == 0
    on_chip = [each for each in plans_of(scan, 20, units, 100, H100) if not each.streamed]
    assert all(each.exchange == "memory" for each in on_chip)


def test_encoding_and_text_of_a_plan_have_its_exchange() -> None:
    team = rnn_plan(20, 600, A100)
    assert team.numbers == [3, 3, 15, *team.tilings[0], 1]
    assert str(team).startswith(
        "7 teams of 15 blocks of 256 threads that exchange through device memory; 3 rows per team"
    )
    cluster = rnn_plan(20, 600)
    assert cluster.numbers == [3, 3, 15, *cluster.tilings[0]]
    assert "device memory" not in str(cluster)
    assert str(cluster).startswith("7 clusters of 15 blocks")


def test_teams_are_counted_by_multiprocessors_and_run_in_waves() -> None:
    """Blocks wait for one another, so all blocks of a launch are resident, one per multiprocessor."""
    assert A100.teams_at_once(15) == 7
    one, two = (
        next(p for p in rnn_plans(rows, 600, A100) if p.exchange == "memory" and p[:3] == (3, 3, 15))
        for rows in (21, 22)
    )
    assert (one.clusters, two.clusters) == (7, 8)
    assert two.step_cycles == pytest.approx(2 * one.step_cycles)
    few = A100._replace(multiprocessors=14)
    assert all(p.cluster_size <= 14 for p in by_memory(plans_of("rnn_scan", *TUTORIAL, few)))


def test_a_team_may_have_any_number_of_blocks() -> None:
    most = max(p.cluster_size for p in by_memory(plans_of("rnn_scan", 20, 2048, 100, H100)))
    assert most == 128
    sizes = {p.cluster_size for p in by_memory(plans_of("combiner_scan", 20, 2048, 100, H100))}
    assert sizes == {16, 18, 19}


@pytest.mark.parametrize(("numbers", "expected"), [(1, 8), (2, 16), (3, 16), (4, 24), (5, 32), (6, 32)])
def test_a_word_has_a_flag_and_up_to_three_numbers(numbers: int, expected: int) -> None:
    assert word_bytes(numbers) == expected


def test_a_step_of_a_team_is_issue_latency_and_bytes() -> None:
    """For one group: store, half a period of polls, and load, each half the latency of a load."""
    tiling = WarpTiling(5, 5, 5)
    plan = next(
        p
        for p in rnn_plans(20, 600, A100)
        if p.exchange == "memory" and p[:3] == (3, 3, 15) and p.tilings == (tiling,)
    )
    received = 16 * 40 * 14
    latency = A100.architecture.l2_latency
    assert plan.step_cycles == pytest.approx(
        2 * (tiling.word_instructions(3) + 4 * 3 * 5 * 5) + 150 + 1.5 * latency + received / (35 * 108 / 105)
    )


def test_a_multiplication_takes_two_cycles_where_there_are_64_lanes() -> None:
    assert [KNOWN[name].ffma_cycles for name in ("a100", "rtx3090", "h100")] == [2, 1, 1]
    tiling = WarpTiling(5, 5, 5)
    assert tiling.multiplications(3) == 4 * 3 * 5 * 5
    device, fast = A100, A100._replace(capability=(8, 6))
    plans = (
        next(p for p in rnn_plans(1, 64, each) if p.numbers == [1, 1, 1, 1, 8, 1]) for each in (device, fast)
    )
    slow, quick = (plan.step_cycles for plan in plans)
    assert slow - quick == 2 * 4 * 8


def test_blocks_share_the_bandwidth_of_the_cache() -> None:
    device = KNOWN["rtx4090"]
    assert device.l2_bytes(1) == device.l2_bytes(20) == 64
    assert device.l2_bytes(128) == device.l2_bytes(1000) == pytest.approx(14)
    assert device.l2_bytes(64) == pytest.approx(28)


@pytest.mark.parametrize(
    ("capability", "like"), [((8, 7), (8, 6)), ((10, 3), (10, 0)), ((12, 1), (12, 0)), ((7, 5), (8, 0))]
)
def test_an_unknown_gpu_is_treated_like_a_similar_one(
    capability: tuple[int, int], like: tuple[int, int]
) -> None:
    assert H100._replace(capability=capability).architecture == ARCHITECTURES[like]


def test_a_measured_plan_of_a_team_is_chosen(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    device = KNOWN["rtx3090"]
    chosen = scan_plans(*TUTORIAL, device)
    other = next(p for p in by_memory(plans_of("rnn_scan", *TUTORIAL, device)) if p != chosen["rnn_scan"])
    measured.add(file, device.name, [Measurement(Case("rnn_scan", 20, 600), tuple(other.numbers), 1.5)])
    try:
        use_measured(file)
        plan = rnn_plan(20, 600, device)
        assert (plan.numbers, plan.us_per_step) == (other.numbers, 1.5)
        assert path("rnn_scan", *TUTORIAL, device).endswith(f"the fastest measured plan on {device.name}")
    finally:
        use_measured(None)


@pytest.mark.parametrize(
    ("scan", "sizes", "device", "told"),
    [
        (
            "rnn_scan",
            TUTORIAL,
            "l40s",
            "cuda: exchange through device memory, because sm_89 has no clusters of more than one block",
        ),
        (
            "rnn_scan",
            (20, 2048, 100),
            "h100",
            "cuda: exchange through device memory, because no cluster of up to 16 blocks keeps the weights "
            "on chip",
        ),
        ("rnn_scan", (20, 40, 100), "a100", "cuda: no exchange, because a block has room for all weights"),
        (
            "combiner_scan",
            (20, 600, 500),
            "rtx3090",
            "cuda: weights streamed from L2 at every step, because sm_86 has no clusters of more than one "
            "block, nor does any team of up to 82 blocks with a kernel",
        ),
    ],
)
def test_a_path_has_a_reason(scan: str, sizes: tuple[int, int, int], device: str, told: str) -> None:
    assert path(scan, *sizes, KNOWN[device]) == told


def test_a_path_compares_estimates() -> None:
    told = path("rnn_scan", *TUTORIAL, H100)
    assert told.startswith(
        "cuda: exchange in clusters of 15 blocks, because a step is estimated to take 0.99 us, "
    )
    assert "through device memory 1.0" in told
    told = path("rnn_scan", *TUTORIAL, KNOWN["rtx5090"])
    assert told.startswith(
        "cuda: exchange in clusters of 8 blocks, because a step is estimated to take 0.88 us, "
    )
    assert told.endswith("through device memory 0.77, which has not been measured")


def test_a_path_without_a_plan_leads_to_triton() -> None:
    told = path("rnn_scan_backward", 1, 600, 100, H100._replace(shared_bytes=4_000))
    assert told.startswith("triton, on request: because no plan fits: rnn_scan with H = 600: expected")
    assert told.endswith('Triton computes any: use_backend("triton", ops=("rnn_scan",))')
