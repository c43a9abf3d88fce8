"""Plans of the scans in the compiled library: shared memory of valid ones, errors for others."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmm_fast.cuda.devices import KNOWN
from dmm_fast.cuda.plan import combiner_plan, rnn_plan
from dmm_fast.cuda.rnn_plans import WarpTiling
from dmm_fast.cuda.scan_kernels import kernels, shared_bytes

SCANS = ("rnn_scan", "rnn_scan_backward", "combiner_scan", "combiner_scan_backward")
ALONE = KNOWN["a100"]._replace(multiprocessors=1)  # has neither clusters nor teams
BY_WARPS = [3, 3, 15, 5, 5, 5]
BY_LANES = [1, 1, 5, 100, 120, 13, 4, 120, 200, 15, 8]
LANES_BY_WORDS = [*BY_LANES, 1]
IN_BF16 = [23, 8, 5, 8, 2, 19, 19, 1]
ON_TENSOR_CORES = [16, 8, 5, 100, 120, 1, 13, 200, 2, 15]
GENERAL = [2, 2, 4, 600, 150, 38, 6, 25, 8, 3, 0]
FOR_COMBINER = [1, 1, 1, 2, 4, 1, 1, 1, 0, 0, 0, 4, 4, 1, 1, 1, 0, 0, 0]


def changed(plan: list[int], place: int, number: int) -> list[int]:
    return [*plan[:place], number, *plan[place + 1 :]]


@pytest.mark.parametrize(
    ("scan", "plan"),
    [
        ("rnn_scan", BY_WARPS),
        ("rnn_scan", GENERAL),
        *((scan, IN_BF16) for scan in SCANS[:2]),
        *((s, p) for s in SCANS[2:] for p in (BY_LANES, LANES_BY_WORDS, ON_TENSOR_CORES, FOR_COMBINER)),
    ],
)
def test_the_library_returns_the_shared_memory_of_a_plan(scan: str, plan: list[int]) -> None:
    assert shared_bytes(scan, plan, 100) > 0


@pytest.mark.parametrize("kind", ["", "rnn", "rnn_scan_backward"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(RuntimeError, match="kind: expected one of the scans' kernels, got "):
        kernels.__wrapped__(kind)


@pytest.mark.parametrize(
    "plan",
    [
        [],
        [1],
        [1] * 5,
        [1] * 6 + [2],
        [1] * 9,
        [0] * 6,
        [0] * 11,
        *(
            changed(plan, place, number)
            for plan in (BY_WARPS, IN_BF16, GENERAL)
            for place in range(3)
            for number in (0, -1)
        ),
        *(changed(BY_WARPS, place, number) for place in range(3, 6) for number in (0, -1)),
        *(changed(BY_WARPS, place, number) for place in range(6) for number in (2**25, 2**32 + 1, 2**63 - 1)),
        changed(BY_WARPS, 0, 33),  # rows of a cluster
        changed(BY_WARPS, 1, 7),  # 35 sums for 32 lanes
        changed(BY_WARPS, 2, 17),  # blocks of a cluster
        changed(BY_WARPS, 4, 6),  # more outputs than inputs
        changed(BY_WARPS, 5, 6),  # more chunks in registers than there are
        *(changed(IN_BF16, place, 0) for place in range(3, 8)),
        *(changed(IN_BF16, place, number) for place in range(8) for number in (2**25, 2**32 + 1, 2**63 - 1)),
        changed(IN_BF16, 1, 9),  # rows of two tiles, where a group has one
        changed(IN_BF16, 2, 1),  # a block alone
        changed(IN_BF16, 4, 3),  # teams of three of eight warps
        changed(IN_BF16, 6, 18),  # one tile in shared memory: there they go by twos
        [1, 1, 1, 1, 4, 1, 1],  # a team of one block
        [2, 2, 1, 2, 8, 2],  # a block alone, whose kernel is empty where there are no clusters
    ],
    ids=str,
)
def test_a_malformed_plan_is_refused(plan: list[int]) -> None:
    for scan in SCANS[:2]:
        with pytest.raises(RuntimeError, match=rf"plan: expected one of {scan}, got \["):
            shared_bytes(scan, plan)


@pytest.mark.parametrize(
    "plan",
    [
        [1] * 12,  # a team of one block
        changed(LANES_BY_WORDS, 1, 3),  # rows at once
        changed(LANES_BY_WORDS, 2, 1025),  # blocks of a team
        changed(LANES_BY_WORDS, 5, 12),  # fewer weights than inputs
        *(changed(LANES_BY_WORDS, 11, number) for number in (0, 2, -1)),
        *(changed(LANES_BY_WORDS, place, number) for place in range(11) for number in (0, 2**25, 2**63 - 1)),
    ],
    ids=str,
)
def test_a_malformed_plan_of_a_team_is_refused(plan: list[int]) -> None:
    for scan in SCANS[2:]:
        with pytest.raises(RuntimeError, match=rf"plan: expected one of {scan}, got \["):
            shared_bytes(scan, plan, 100)


@pytest.mark.parametrize(
    "plan",
    [
        *(changed(ON_TENSOR_CORES, place, 0) for place in range(10)),
        *(changed(ON_TENSOR_CORES, place, 2**25) for place in range(10)),
        changed(ON_TENSOR_CORES, 0, 33),  # rows of a cluster
        changed(ON_TENSOR_CORES, 1, 9),  # rows of a group
        changed(ON_TENSOR_CORES, 2, 17),  # blocks of a cluster
        changed(ON_TENSOR_CORES, 3, 105),  # more inputs than steps take
        changed(ON_TENSOR_CORES, 4, 121),  # more units than steps take
        changed(ON_TENSOR_CORES, 7, 257),  # more outputs than tiles have
        changed(ON_TENSOR_CORES, 9, 32),  # more weights than registers
    ],
    ids=str,
)
def test_a_malformed_plan_of_tensor_cores_is_refused(plan: list[int]) -> None:
    for scan in SCANS[2:]:
        with pytest.raises(RuntimeError, match=rf"plan: expected one of {scan}, got \["):
            shared_bytes(scan, plan, 100)


def test_a_team_needs_no_inbox() -> None:
    """Teams of five blocks have the outputs of 32 groups of eight lanes, for two steps."""
    of_cluster, of_team = (shared_bytes("combiner_scan", plan, 100) for plan in (BY_LANES, LANES_BY_WORDS))
    assert of_cluster - of_team == 2 * 5 * 32 * 8 * 4


@pytest.mark.parametrize("latents", [-1, 2**25, 2**32 + 1, -(2**63)])
def test_latents_out_of_range_are_refused(latents: int) -> None:
    with pytest.raises(RuntimeError, match=rf"latents: expected 0 to \d+, got {latents}"):
        shared_bytes("combiner_scan", FOR_COMBINER, latents)


numbers = st.one_of(
    st.integers(-1, 40), st.integers(-(2**63), 2**63 - 1), st.sampled_from([2**25, 2**31, 2**32])
)


@given(
    scan=st.sampled_from([*SCANS, "rnn"]),
    plan=st.one_of(
        *(st.lists(numbers, min_size=n, max_size=n) for n in (6, 7, 8, 10, 11, 12, 19)), st.lists(numbers)
    ),
    latents=numbers,
)
def test_any_numbers_are_a_valid_plan_or_refused(scan: str, plan: list[int], latents: int) -> None:
    try:
        said = f"{torch.ops.dmm_fast._scan_shared_bytes(scan, plan, latents)} bytes"
    except RuntimeError as error:
        said = str(error)
    assert re.search(r"^[1-9]\d* bytes$|plan: expected one of|latents: expected", said), said


@pytest.mark.parametrize("rows", [109, 216])
@pytest.mark.parametrize("units", [1, 64])
@pytest.mark.parametrize("backward", [False, True])
def test_a_single_block_has_all_inputs_in_one_chunk(rows: int, units: int, backward: bool) -> None:
    """Kernels of several chunks are compiled for clusters only."""
    plan = rnn_plan(rows, units, ALONE, backward)
    (tiling,) = plan.tilings
    assert isinstance(tiling, WarpTiling)
    assert (plan.cluster_size, tiling.chunks) == (1, 1)


@pytest.mark.parametrize("backward", [False, True])
def test_combiner_scan_of_many_units_has_a_kernel(backward: bool) -> None:
    """A block of more than 1024 units computes them in several passes, and keeps no weights on chip."""
    plan = combiner_plan(20, 1528, 18, ALONE, backward)
    assert [tiling.in_registers for tiling in plan.tilings] == [0, 0]
