"""The DMM as a Pyro model and guide: its sites, and equal ELBOs for all forms of data."""

from copy import deepcopy
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from benchmarks.baseline import BaselineDMM
from dmm_fast import DMM
from dmm_fast.data import get_mini_batch
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    SIZES,
    TOLERANCE,
    assert_close,
    assert_same_step,
    loss_and_grads,
    make_batch,
    missing_mask,
    small_dmm,
    stir,
)

B, T, D, Z = len(LENGTHS), max(LENGTHS), 5, 3
NAN, INF = float("nan"), float("inf")

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "flows": FLOWS,
}


# --- sites ----------------------------------------------------------------------------------------


def trace_of(function: Any, *args: Any) -> Any:
    trace = poutine.trace(function).get_trace(*args)
    trace.compute_log_prob()
    return trace


def sites(trace: Any) -> dict[str, Any]:
    return {name: trace.nodes[name] for name in trace.nodes if _is_site(trace.nodes[name])}


def _is_site(node: Any) -> bool:
    return node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample"


@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
def test_sites_of_a_sequence(emission: str) -> None:
    dmm, batch = small_dmm(emission=emission), make_batch(emission=emission)
    model, guide = trace_of(dmm.model, *batch, 0.25), trace_of(dmm.guide, *batch, 0.25)
    assert list(sites(model)) == ["z", "obs_x"]
    assert list(sites(guide)) == ["z"]
    for site, event, scale, observed in (
        (model.nodes["z"], (T, Z), 0.25, False),
        (model.nodes["obs_x"], (T, D), 1.0, True),
        (guide.nodes["z"], (T, Z), 0.25, False),
    ):
        assert (site["fn"].batch_shape, site["fn"].event_shape) == ((B,), event)
        assert site["log_prob"].shape == (B,)
        assert (site["scale"], site["is_observed"]) == (scale, observed)
        (plate,) = site["cond_indep_stack"]
        assert (plate.name, plate.dim, plate.size) == ("z_minibatch", -1, B)
        torch.testing.assert_close(site["log_prob"], site["unscaled_log_prob"] * scale)
    assert torch.equal(model.nodes["_RETURN"]["value"], batch.mini_batch)
    assert guide.nodes["_RETURN"]["value"] is guide.nodes["z"]["value"]


@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("flows", [False, True])
def test_sites_of_a_step(emission: str, flows: bool) -> None:
    kwargs = LAYERS["flows"] if flows else {}
    dmm = small_dmm(emission=emission, per_step_sites=True, **kwargs)
    batch = make_batch(emission=emission)
    model, guide = trace_of(dmm.model, *batch, 0.25), trace_of(dmm.guide, *batch, 0.25)
    assert list(sites(model)) == [f"{n}_{t}" for t in range(1, T + 1) for n in ("z", "obs_x")]
    assert list(sites(guide)) == [f"z_{t}" for t in range(1, T + 1)]
    for name, site in (*sites(model).items(), *sites(guide).items()):
        width, scale = (Z, 0.25) if name.startswith("z") else (D, 1.0)
        assert (site["fn"].batch_shape, site["fn"].event_shape) == ((B,), (width,))
        assert site["scale"] == scale
        assert site["is_observed"] == name.startswith("obs_x")
        (plate,) = site["cond_indep_stack"]
        assert (plate.name, plate.dim, plate.size) == ("z_minibatch", -1, B)
        past_end = int(name.rsplit("_", 1)[1]) > batch.mini_batch_seq_lengths
        assert bool((site["log_prob"][past_end] == 0).all())
        assert bool((site["log_prob"][~past_end] != 0).all())


def test_every_parameter_is_registered_and_is_the_modules_own() -> None:
    dmm, batch = small_dmm(**LAYERS["flows"]), make_batch()
    for function in (dmm.model, dmm.guide):
        pyro.clear_param_store()
        function(*batch)
        store = pyro.get_param_store()
        assert set(store) == {f"dmm$$${name}" for name, _ in dmm.named_parameters()}
        for name, p in dmm.named_parameters():
            assert store[f"dmm$$${name}"] is p


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
def test_a_model_without_data_draws_x(emission: str, per_step_sites: bool) -> None:
    dmm = small_dmm(emission=emission, per_step_sites=per_step_sites)
    lengths = torch.tensor(LENGTHS)
    trace = trace_of(dmm.model, None, None, None, lengths)
    assert not any(site["is_observed"] for site in sites(trace).values())
    x = trace.nodes["_RETURN"]["value"]
    x = torch.stack(x, 1) if per_step_sites else x
    assert x.shape == (B, T, D)
    assert x.dtype == torch.float32
    # A draw given as data has the density it was drawn with.
    valid = (torch.arange(T) < lengths[:, None])[:, :, None]
    data = torch.where(valid, x, 0.0).detach()
    values = {n: s["value"] for n, s in sites(trace).items() if n.startswith("z")}
    given = trace_of(poutine.condition(dmm.model, values), data, None, None, lengths)
    torch.testing.assert_close(given.log_prob_sum(), trace.log_prob_sum())
    if not per_step_sites:
        assert torch.equal(x, torch.where(valid, x, 0.0))


def test_a_deep_copy_keeps_the_flows_and_the_parameters_together() -> None:
    dmm = small_dmm(**LAYERS["flows"])
    twin = deepcopy(dmm)
    for a, b in zip(twin.iafs, twin.iafs_modules, strict=True):
        assert a is b
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    batch = make_batch()
    loss = loss_and_grads(dmm, batch, Trace_ELBO())[0]
    assert loss_and_grads(twin, batch, Trace_ELBO())[0] != loss
    assert loss_and_grads(small_dmm(**LAYERS["flows"]), batch, Trace_ELBO())[0] == loss


# --- one ELBO -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("missing", [0, 2, 3])
@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("layers", LAYERS)
def test_sites_of_a_sequence_and_of_its_steps_are_one_elbo(
    layers: str, emission: str, missing: int, dtype: torch.dtype
) -> None:
    torch.set_default_dtype(dtype)  # Pyro's inverse of a flow starts from zeros of the default dtype
    x, _, mask, lengths = batch = make_batch(dtype=dtype, emission=emission)
    if missing:
        mask = missing_mask(batch, missing)
        x = x.masked_fill((mask if missing == 3 else mask[:, :, None]) == 0, NAN)
    steps = {
        per_step: loss_and_grads(
            small_dmm(dtype=dtype, emission=emission, per_step_sites=per_step, **LAYERS[layers]),
            (x, None, mask, lengths),
            Trace_ELBO(),
            0.3,
        )
        for per_step in (False, True)
    }
    assert_same_step(steps[False], steps[True], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("annealing_factor", [1.0, 0.2])
@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("flows", [0, 2])
def test_the_elbo_is_that_of_the_ordinary_per_step_model(
    flows: int, per_step_sites: bool, annealing_factor: float, dtype: torch.dtype
) -> None:
    """Equal seeds give equal parameters, equal noise and therefore equal steps."""
    torch.set_default_dtype(dtype)
    x, _, _, lengths = make_batch(dtype=dtype)
    batch = get_mini_batch(torch.arange(B), x, lengths)
    results = []
    for cls, kwargs in ((DMM, {"per_step_sites": per_step_sites}), (BaselineDMM, {})):
        torch.manual_seed(11)
        dmm = cls(**SIZES, num_iafs=flows, iaf_dim=8, **kwargs)
        results.append(loss_and_grads(dmm, batch, Trace_ELBO(), annealing_factor))
    assert_same_step(*results, TOLERANCE[dtype])


def test_annealing_scales_the_latents_and_nothing_else() -> None:
    dmm, batch = small_dmm(dtype=torch.float64), make_batch(dtype=torch.float64)
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        at = {a: loss_and_grads(dmm, batch, elbo, a)[0] for a in (0.1, 0.5, 1.0)}
        slope = (at[1.0] - at[0.1]) / 0.9
        assert at[0.5] == pytest.approx(at[0.1] + 0.4 * slope, rel=1e-12)
        assert slope != pytest.approx(0.0, abs=0.1)
        as_tensor = loss_and_grads(dmm, batch, elbo, torch.tensor(0.5, dtype=torch.float64))[0]
        assert as_tensor == pytest.approx(at[0.5], rel=1e-14)
    z = poutine.trace(dmm.guide).get_trace(*batch).nodes["z"]["value"]
    model = trace_of(poutine.condition(dmm.model, {"z": z}), *batch, 0.5)
    full = trace_of(poutine.condition(dmm.model, {"z": z}), *batch, 1.0)
    torch.testing.assert_close(model.nodes["z"]["log_prob"], full.nodes["z"]["log_prob"] / 2)
    assert torch.equal(model.nodes["obs_x"]["log_prob"], full.nodes["obs_x"]["log_prob"])


def log_ratio_by_row(dmm: DMM, batch: tuple[Any, ...], z: Tensor) -> Tensor:
    """``[B]``: log p(x_b, z_b) - log q(z_b | x_b) at a given ``z``."""
    model = trace_of(poutine.condition(dmm.model, {"z": z}), *batch)
    guide = trace_of(poutine.condition(dmm.guide, {"z": z}), *batch)
    joint = model.nodes["z"]["log_prob"] + model.nodes["obs_x"]["log_prob"]
    return (joint - guide.nodes["z"]["log_prob"]).detach()


@pytest.mark.parametrize("missing", [0, 2, 3])
@pytest.mark.parametrize("layers", ["plain", "two layers"])
def test_rows_are_independent_and_may_have_any_order(layers: str, missing: int) -> None:
    dmm = small_dmm(dtype=torch.float64, **LAYERS[layers])
    x, _, mask, lengths = batch = make_batch(dtype=torch.float64)
    mask = missing_mask(batch, missing) if missing else mask
    z = torch.randn(B, T, Z, dtype=torch.float64)
    together = log_ratio_by_row(dmm, (x, None, mask, lengths), z)
    assert len(set(together.tolist())) == B
    for order in ([3, 1, 0, 2], [2, 0, 3, 1], [1], [2, 2, 0]):
        got = log_ratio_by_row(dmm, (x[order], None, mask[order], lengths[order]), z[order])
        assert_close(got, together[order], 1e-12)
    for b in range(B):
        n = int(lengths[b])
        alone = (x[b : b + 1, :n], None, mask[b : b + 1, :n], lengths[b : b + 1])
        assert_close(log_ratio_by_row(dmm, alone, z[b : b + 1, :n]), together[b : b + 1], 1e-12)


# --- missing values and padding have no effect ----------------------------------------------------


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("layers", LAYERS)
def test_masked_values_have_no_effect(layers: str, dims: int, emission: str, per_step_sites: bool) -> None:
    dmm = small_dmm(emission=emission, per_step_sites=per_step_sites, **LAYERS[layers])
    x, _, _, lengths = batch = make_batch(emission=emission, T=T + 2)
    mask = missing_mask(batch, dims)
    hidden = (mask if dims == 3 else mask[:, :, None]).expand_as(x) == 0
    loss, grads = loss_and_grads(dmm, (x.masked_fill(hidden, 0.0), None, mask, lengths), elbo())
    assert all(bool(g.isfinite().all()) for g in grads.values())
    for garbage in (NAN, INF, -INF, 3e38, -7.0):
        dirty = (x.masked_fill(hidden, garbage), None, mask, lengths)
        again, dirty_grads = loss_and_grads(dmm, dirty, elbo())
        assert again == loss
        for name, g in grads.items():
            assert torch.equal(dirty_grads[name], g), name
    full = loss_and_grads(dmm, (x, None, batch.mini_batch_mask, lengths), elbo())[0]
    assert full != loss, "the mask hides something"


def elbo() -> Trace_ELBO:
    return Trace_ELBO()


def test_a_missing_feature_is_marginalised() -> None:
    """If a feature is never observed, its emission weights have no effect and no gradient."""
    dmm, batch = small_dmm(), make_batch()
    mask = batch.mini_batch_mask[:, :, None].repeat(1, 1, D)
    mask[:, :, 1] = 0
    given = (batch.mini_batch, None, mask, batch.mini_batch_seq_lengths)
    loss, grads = loss_and_grads(dmm, given, elbo())
    weight = grads["emitter.lin_hidden_to_input.weight"]
    assert bool((weight[1] == 0).all())
    assert bool((weight[[0, 2, 3, 4]] != 0).any(1).all())
    with torch.no_grad():
        dmm.emitter.lin_hidden_to_input.bias[1] += 100.0
    assert loss_and_grads(dmm, given, elbo())[0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("per_step_sites", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
def test_more_padding_does_not_change_the_step(layers: str, per_step_sites: bool) -> None:
    torch.set_default_dtype(torch.float64)  # Pyro's inverse of a flow starts from zeros of the default dtype
    dmm = small_dmm(dtype=torch.float64, per_step_sites=per_step_sites, **LAYERS[layers])
    short, long = (make_batch(dtype=torch.float64, T=steps) for steps in (T, T + 3))
    expected = loss_and_grads(dmm, short, elbo())
    assert_same_step(loss_and_grads(dmm, long, elbo()), expected, 1e-12)
    x = long.mini_batch.masked_fill(long.mini_batch_mask[:, :, None] == 0, NAN)
    assert_same_step(loss_and_grads(dmm, (x, *long[1:]), elbo()), expected, 1e-12)


def test_dropout_is_active_only_in_training() -> None:
    dmm, batch = small_dmm(num_layers=2, rnn_dropout_rate=0.5), make_batch()
    plain = loss_and_grads(small_dmm(num_layers=2), batch, elbo())[0]
    assert loss_and_grads(dmm, batch, elbo())[0] != plain
    dmm.rnn.eval()
    assert loss_and_grads(dmm, batch, elbo())[0] == plain
    single = small_dmm(rnn_dropout_rate=0.5)
    assert loss_and_grads(single, batch, elbo())[0] == loss_and_grads(small_dmm(), batch, elbo())[0]


def test_all_layers_start_from_the_same_h_0() -> None:
    """The ``h`` of the guide equals that of an ``nn.RNN`` with ``h_0`` for each layer, row by row."""
    dmm, batch = small_dmm(num_layers=2), make_batch()
    rnn = nn.RNN(D, 7, 2, nonlinearity="relu", batch_first=True)
    rnn.load_state_dict(dmm.rnn.state_dict())
    h = dmm.rnn(batch.mini_batch, dmm.h_0[0, 0], batch.mini_batch_seq_lengths)
    for b, n in enumerate(LENGTHS):
        row = batch.mini_batch[b : b + 1, :n].flip(1)
        expected = rnn(row, dmm.h_0.expand(2, 1, -1).contiguous())[0].flip(1)
        torch.testing.assert_close(h[b : b + 1, :n], expected)


def test_the_sizes_of_the_tutorial_are_the_defaults() -> None:
    dmm = DMM()
    assert (dmm.input_dim, dmm.z_0.shape, dmm.h_0.shape) == (88, (100,), (1, 1, 600))
    assert dmm.trans.lin_sig.weight.shape == (100, 100)
    assert dmm.trans.lin_gate_z_to_hidden.weight.shape == (200, 100)
    assert dmm.emitter.lin_z_to_hidden.weight.shape == (100, 100)
    assert (dmm.rnn.num_layers, len(dmm.iafs), dmm.use_cuda) == (1, 0, False)
    stirred = stir(DMM(88, 100, 100, 200, 600, 1, 0.0, 0, 50, False))
    batch = make_batch((3, 2), D=88)
    assert loss_and_grads(stirred, batch, elbo())[0] > 0
