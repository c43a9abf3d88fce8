"""combiner_scan of teams of blocks, which exchange through device memory, under the emulator."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.cuda import combiner_scan
from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.reference import valid_steps
from tests.cases import Case
from tests.compare import compare, evaluate, incoming_gradients, run_backend
from tests.compiled import calls_of
from tests.inputs import build

pytest.importorskip("dmm_emulator", reason="make emulate builds it and runs these tests")
emulated = pytest.importorskip("tests.emulated")

OP = "combiner_scan"
RAGGED = Case("words", B=5, T=5, Z=9, H=26, particles=(2,), lengths="zeros", poison="nan", start="rows")
FORWARD, BACKWARD = emulated.kernels("combiner_words"), emulated.kernels("combiner_words_backward")
KERNELS = range(len(FORWARD))
ONE_ROW, TWO_ROWS = (next(i for i in KERNELS if FORWARD[i][-1] == rows) for rows in (1, 2))

each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda i: "-".join(map(str, FORWARD[i])))
each_order = pytest.mark.parametrize(
    "order", [{}, {"reversed": True}, {"late": True}, {"shuffled": True}], ids=str
)
each_way = pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])

Teams = Callable[[int, int, int], None]


class TeamPlan(NamedTuple):
    """A plan, encoded for the op."""

    numbers: list[int]


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch) -> Teams:
    """Make combiner_scan use teams of so many blocks and groups; the last of several groups lacks a row.

    The planner would not choose them, as they have more blocks than the units need.
    """

    def choose(kernel: int, blocks: int, groups: int) -> None:
        def plan(
            rows: int, units: int, latents: int, *_: object, backward: bool = False, **__: bool
        ) -> TeamPlan:
            unit_outputs, unit_inputs, sum_outputs, sum_inputs, at_once = (BACKWARD if backward else FORWARD)[
                kernel
            ]
            own, inputs = -(-units // blocks), latents * (1 + backward)
            to = LaneTile(inputs, own, unit_inputs, unit_outputs)
            back = LaneTile(own, 3 * latents - inputs, sum_inputs, sum_outputs)
            of_team = groups * at_once - (at_once > 1 and groups > 1)
            return TeamPlan([of_team, at_once, blocks, *to, *back, 1])

        monkeypatch.setattr(combiner_scan, "combiner_plan", plan)

    return choose


def test_a_kernel_forward_has_one_backward() -> None:
    assert [sizes[-1] for sizes in FORWARD] == [sizes[-1] for sizes in BACKWARD]


@each_kernel
@pytest.mark.parametrize(
    ("blocks", "groups", "order"),
    [(2, 1, {}), (3, 2, {"reversed": True}), (5, 3, {"late": True}), (9, 2, {"shuffled": True})],
    ids=str,
)
def test_every_kernel_agrees_with_float64(
    kernel: int,
    blocks: int,
    groups: int,
    order: dict[str, bool],
    teams: Teams,
    options: Callable[..., None],
) -> None:
    """With nine blocks, a thread does not read all words at once."""
    teams(kernel, blocks, groups)
    options(**order)
    compare(OP, RAGGED, "cuda")


@each_kernel
def test_every_kernel_supports_its_largest_sizes(kernel: int, teams: Teams) -> None:
    units, inputs, outputs, sums, at_once = FORWARD[kernel]
    H, Z = 2 * min(32 * units, 8 * sums), min(8 * inputs, 16 * outputs, 4 * BACKWARD[kernel][1])
    teams(kernel, 2, 1)
    compare(OP, Case("largest", B=at_once, T=2, Z=Z, H=H, start="rows"), "cuda")


@pytest.mark.parametrize("H", [1, 5])
def test_blocks_without_units_return_zeros(H: int, teams: Teams, options: Callable[..., None]) -> None:
    teams(TWO_ROWS, 3, 1)
    options(late=True)
    compare(OP, replace(RAGGED, B=3, H=H), "cuda")


def test_results_are_zero_past_the_ends(teams: Teams) -> None:
    teams(TWO_ROWS, 3, 2)
    forward, _ = calls_of(OP, RAGGED, "cuda")
    lengths = dict(zip(forward.names, forward.args, strict=True))["lengths"]
    past = ~valid_steps(lengths, RAGGED.T).unsqueeze(-1)
    for result in forward.run():
        assert not result.masked_select(past).count_nonzero()


@pytest.mark.parametrize("kernel", [ONE_ROW, TWO_ROWS])
def test_all_blocks_have_the_same_latents(kernel: int, teams: Teams) -> None:
    """Latents with equal inputs are bitwise equal, although different blocks store them."""
    case = Case("alike", B=2, T=6, Z=10, H=40)
    inputs = build(OP, case)
    for name in ("eps", "z_q_0"):
        inputs[name] = inputs[name][..., :1].expand_as(inputs[name])
    inputs["h"] = torch.zeros_like(inputs["h"])  # returned by another kernel
    for name in ("w_loc", "b_loc", "w_scale", "b_scale"):
        given = getattr(inputs["weights"], name)
        inputs["weights"] = inputs["weights"]._replace(**{name: given[:1].expand_as(given)})
    teams(kernel, 5, 1)
    with ops.use_backend("cuda"):
        results = ops.combiner_scan(**inputs)
    for result in results[:3]:
        assert torch.equal(result, result[..., :1].expand_as(result))


# --- faults -----------------------------------------------------------------------------------------------

FULL = replace(RAGGED, name="whole words", B=6, lengths="full", poison="", particles=())


@pytest.mark.parametrize("fault", ["torn", "old_words"])
def test_values_of_another_step_are_detected(fault: str, teams: Teams, options: Callable[..., None]) -> None:
    """Words that become visible in two halves, and words of an earlier launch."""
    teams(TWO_ROWS, 3, 2)
    compare(OP, FULL, "cuda")
    options(fault=fault, shuffled=True, rank=-1)
    got = run_backend(OP, build(OP, FULL), FULL, "cuda")
    truth = run_backend(OP, build(OP, FULL), FULL, "reference")
    assert any(not torch.allclose(got[name], truth[name], rtol=1e-3) for name in truth)


HANG = Case("hang", B=6, T=6, H=40, Z=9, start="rows")
LENGTHS = [6, 5, 4, 3, 2, 1]  # the first team has the groups [6] and [5]
RANK = 2
Run = Callable[..., re.Match[str]]


@pytest.fixture
def run(teams: Teams, options: Callable[..., None]) -> Run:
    """Run a scan with a fault in one direction; returns the part of the error on the wait that timed out."""

    def with_fault(backward: bool, kernel: int = ONE_ROW, **given: Any) -> re.Match[str]:
        teams(kernel, 3, 2)

        def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
            options(rank=RANK, **given)
            return incoming_gradients(outputs, HANG)

        inputs = {**build(OP, HANG), "lengths": torch.tensor(LENGTHS)}
        if not backward:
            options(rank=RANK, **given)
        with ops.use_backend("cuda"), pytest.raises(RuntimeError) as raised:
            evaluate(ops.combiner_scan, inputs, gradients)
        said = re.fullmatch(
            rf"{OP}{'_backward' * backward} with plan \[[23], [12], 3, [\d, ]+, 1\]: "
            r"block (?P<block>\d+), rank (?P<rank>\d+) of its team, timed out waiting: group (?P<group>\d+), "
            r"step (?P<step>\d+), rows (?P<rows>\d), thread \d+, flag 0x(?P<flag>[\da-f]+)\. "
            r"A word of that step did not arrive, .* kernel\.",
            str(raised.value),
        )
        assert said, raised.value
        assert said["block"] == said["rank"]  # of the first team
        return said

    return with_fault


@each_way
@each_order
@pytest.mark.parametrize(("group", "step"), [(0, 5), (1, 1)])
def test_a_lost_word_is_reported_and_not_confused_with_another(
    backward: bool, order: dict[str, bool], group: int, step: int, run: Run
) -> None:
    """The reader finds the earlier content instead: zero, or the word of two steps before."""
    said = run(backward, fault="lost", group=group, step=step, **order)
    found = {name: int(said[name], 16) for name in ("group", "step", "rows", "flag")}
    assert found == {"group": group, "step": step, "rows": 1, "flag": max(step - 1, 0)}


@each_way
def test_without_the_second_buffer_a_word_is_overwritten_before_it_is_read(backward: bool, run: Run) -> None:
    """The last block sends all its words after reading only the first row, and the first block continues."""
    said = run(backward, kernel=TWO_ROWS, fault="one_buffer", late=True)
    # One of the waiting threads is reported: for an overwritten word, or for the block that cannot continue.
    assert int(said["flag"], 16) - int(said["step"]) in (0, 2)


@each_way
@each_order
def test_a_block_that_sends_nothing_is_detected_at_once(
    backward: bool, order: dict[str, bool], run: Run
) -> None:
    said = run(backward, fault="silent", **order)
    assert said["group"] == said["step"] == said["flag"] == "0"


@each_way
def test_a_block_may_time_out_early(backward: bool, run: Run) -> None:
    said = run(backward, fault="early_timeout")
    assert said["group"] == said["step"] == "0"
