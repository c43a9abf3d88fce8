"""The importance-weighted bound and its three gradients, on small models in float64."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from dmm_fast import DMM
from dmm_fast._arguments import GRADIENTS
from dmm_fast.infer import GraphedSVI, ImportanceELBO, log_weights
from dmm_fast.optim import PyroClippedAdam
from tests.device import cpu_only
from tests.helpers_graph import RecordedGraphs
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    assert_close,
    assert_means_agree,
    assert_same_step,
    landed,
    loss_and_grads,
    make_batch,
    missing_mask,
    small_dmm,
)

pytestmark = cpu_only

DOUBLE = torch.float64


def of_guide(dmm: DMM) -> list[str]:
    """The names of the guide's parameters."""
    first = ("rnn", "h_0", "combiner", "z_q", "iafs")
    return [name for name, _ in dmm.named_parameters() if name.startswith(first)]


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, FLOWS, {"inference": "mf-lr"}, {"emission": "gaussian"}], ids=str)
def test_the_loss_is_that_of_each_sequence(options: dict[str, Any]) -> None:
    dmm = small_dmm(dtype=DOUBLE, **options)
    batch = make_batch(dtype=DOUBLE, emission=options.get("emission", "bernoulli"))
    for gradient in GRADIENTS:
        loss, _ = loss_and_grads(dmm, batch, ImportanceELBO(4, gradient))
        torch.manual_seed(5)
        expected = -(log_weights(dmm, batch, 4).logsumexp(0) - math.log(4)).sum().detach()
        assert loss == pytest.approx(float(expected), rel=1e-12)
        torch.manual_seed(5)
        alone = ImportanceELBO(4, gradient).loss(dmm.model, dmm.guide, *batch)
        assert type(alone) is float
        assert alone == pytest.approx(loss, rel=1e-12)


def test_one_particle_is_the_elbo() -> None:
    """``"dreg"`` is then the path gradient, and ``"total"`` that of ``Trace_ELBO``, with annealing too."""
    dmm, batch = small_dmm(dtype=DOUBLE), make_batch(dtype=DOUBLE)
    for factor in (1.0, 0.3, torch.tensor([0.2, 0.5, 0.7, 1.0], dtype=DOUBLE)):
        plain = loss_and_grads(dmm, batch, Trace_ELBO(), factor)
        assert_same_step(loss_and_grads(dmm, batch, ImportanceELBO(), factor), plain, 1e-10)
        dmm.path_gradient = True
        plain = loss_and_grads(dmm, batch, Trace_ELBO(), factor)
        for gradient in ("path", "dreg"):
            assert_same_step(loss_and_grads(dmm, batch, ImportanceELBO(1, gradient), factor), plain, 1e-10)
        dmm.path_gradient = False


def test_the_total_gradient_is_autograds() -> None:
    dmm, batch = small_dmm(dtype=DOUBLE, **FLOWS), make_batch(dtype=DOUBLE)
    ours = loss_and_grads(dmm, batch, ImportanceELBO(3))
    dmm.zero_grad()
    torch.manual_seed(5)
    loss = -(log_weights(dmm, batch, 3).logsumexp(0) - math.log(3)).sum()
    loss.backward()
    assert_same_step(ours, (loss.item(), {name: p.grad for name, p in dmm.named_parameters()}), 1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_rows_do_not_affect_each_other(gradient: str) -> None:
    """The loss of a mini-batch is the sum of its rows' losses, and so are its gradients."""
    dmm, lengths = small_dmm(dtype=DOUBLE), (6, 2, 1)
    batch = make_batch(lengths, dtype=DOUBLE)
    noise = torch.randn(5, 3, 6, 3, dtype=DOUBLE)

    def step(rows: slice) -> tuple[float, dict[str, Tensor]]:
        given = tuple(None if each is None else each[rows] for each in batch)
        with pytest.MonkeyPatch.context() as patch:
            name = "dmm_fast.distributions._drawn_posterior.standard_noise"
            patch.setattr(name, lambda shape, like: noise[:, rows])
            return loss_and_grads(dmm, given, ImportanceELBO(5, gradient), 0.6)

    whole, rows = step(slice(None)), [step(slice(i, i + 1)) for i in range(3)]
    summed = {name: sum(grads[name] for _, grads in rows) for name in whole[1]}
    assert_same_step(whole, (sum(loss for loss, _ in rows), summed), 1e-10)


# --- its gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "factor"),
    [({}, 1.0), ({}, 0.4), (FLOWS, 0.4), ({"inference": "mf-r"}, 1.0)],
    ids=["chain", "chain, annealed", "flows, annealed", "mean field"],
)
def test_the_doubly_reparameterised_gradient_is_unbiased(options: dict[str, Any], factor: float) -> None:
    """Its difference from the total one has the mean zero, for 30 x 200 draws of three particles."""
    dmm, N = small_dmm(dtype=DOUBLE, **options), 30
    two = make_batch((3, 2), dtype=DOUBLE)
    batch = tuple(None if each is None else each.repeat(200, *[1] * (each.dim() - 1)) for each in two)
    made: dict[str, Tensor] = {}
    for gradient in ("total", "dreg"):
        elbo = ImportanceELBO(3, gradient)
        steps = [loss_and_grads(dmm, batch, elbo, factor, seed=seed)[1] for seed in range(N)]
        made[gradient] = torch.stack([torch.cat([g.flatten() for g in grads.values()]) for grads in steps])
    difference = made["dreg"] - made["total"]
    is_guides = torch.cat(
        [torch.full((p.numel(),), name in of_guide(dmm)) for name, p in dmm.named_parameters()]
    )
    # The model's parameters have the same gradient.
    assert float(difference[:, ~is_guides].abs().max()) < 1e-8
    changed = difference[:, is_guides & (difference.abs().amax(0) > 1e-8)]
    assert changed.shape[1] > 40
    assert_means_agree(changed, torch.zeros(changed.shape[1], dtype=DOUBLE), sigmas=6.0)


def test_the_doubly_reparameterised_gradient_by_hand() -> None:
    """One latent, one step: the weights squared times the path derivative of the log-weight."""
    dmm, batch = small_dmm(dtype=DOUBLE, z_dim=1), make_batch((1,), dtype=DOUBLE)
    _, grads = loss_and_grads(dmm, batch, ImportanceELBO(4, "dreg"))
    h, lengths = dmm.encode(dmm.mini_batch(*batch)).detach(), torch.tensor([1])
    loc, scale = (each.detach().requires_grad_() for each in dmm.combiner(dmm.z_q_0, h[:, 0]))
    torch.manual_seed(5)
    eps = torch.randn(4, 1, 1, 1, dtype=DOUBLE)
    z = loc + scale * eps
    log_q = dist.Normal(loc.detach(), scale.detach()).log_prob(z).sum((-2, -1))
    log_w = dmm.emission(z, lengths).log_prob(batch.mini_batch) + dmm.prior(lengths, 1).log_prob(z) - log_q
    squares = log_w.detach().softmax(0).square()
    by_loc, by_scale = torch.autograd.grad(log_w, (loc, scale), -squares)
    assert_close(grads["combiner.lin_hidden_to_loc.bias"], by_loc.flatten(), 1e-10)
    by_bias = by_scale * -torch.expm1(-scale.detach())
    assert_close(grads["combiner.lin_hidden_to_scale.bias"], by_bias.flatten(), 1e-10)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_where_the_guide_is_exact(gradient: str) -> None:
    """All weights are equal, and of the guide's gradients only the total one is noise."""
    dmm, batch = landed(), make_batch(dtype=DOUBLE)
    _, grads = loss_and_grads(dmm, batch, ImportanceELBO(3, gradient))
    largest = max(float(grads[name].abs().max()) for name in of_guide(dmm) if "lin_hidden" in name)
    assert largest > 0.1 if gradient == "total" else largest < 1e-12


# --- masks, plates and scales -------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_hidden_values_have_no_effect(gradient: str) -> None:
    dmm, batch = small_dmm(dtype=DOUBLE), make_batch(dtype=DOUBLE)
    mask, results = missing_mask(batch, 3), []
    for hidden in (0.0, float("nan")):
        x = torch.where(mask.bool(), batch.mini_batch, hidden)
        given = batch._replace(mini_batch=x, mini_batch_mask=mask)
        results.append(loss_and_grads(dmm, given, ImportanceELBO(3, gradient), 0.5))
    assert results[0][0] == results[1][0]
    assert_same_step(results[1], results[0], 0.0)


def scaled(dmm: DMM) -> Any:
    return [poutine.scale(program, 2.5) for program in (dmm.model, dmm.guide)]


def subsampled(dmm: DMM) -> Any:
    def within(program: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with pyro.plate("data", 10, subsample=torch.arange(len(LENGTHS)), dim=-1):
                return program(*args)

        return run

    return [within(dmm.model), within(dmm.guide)]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("wrap", [scaled, subsampled])
def test_a_common_scale_multiplies_the_loss(wrap: Callable[[DMM], Any], gradient: str) -> None:
    """A weight of the data set's size would make one particle dominate."""
    dmm, batch = small_dmm(dtype=DOUBLE), make_batch(dtype=DOUBLE)
    loss, grads = loss_and_grads(dmm, batch, ImportanceELBO(3, gradient), 0.4)
    dmm.zero_grad()
    torch.manual_seed(5)
    theirs = ImportanceELBO(3, gradient).loss_and_grads(*wrap(dmm), *batch, 0.4)
    ours = 2.5 * loss, {name: 2.5 * grad for name, grad in grads.items()}
    assert_same_step((theirs, {name: p.grad for name, p in dmm.named_parameters()}), ours, 1e-10)


def test_rows_may_be_masked_and_scaled() -> None:
    dmm, batch = small_dmm(dtype=DOUBLE), make_batch(dtype=DOUBLE)
    keep, scale = torch.tensor([True, False, True, True]), torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=DOUBLE)
    losses = []
    for handler, given in ((poutine.mask, keep), (poutine.scale, scale)):
        torch.manual_seed(5)
        programs = handler(dmm.model, given), handler(dmm.guide, given)
        losses.append(ImportanceELBO(3).loss(*programs, *batch))
    torch.manual_seed(5)
    bounds = log_weights(dmm, batch, 3).logsumexp(0).detach() - math.log(3)
    assert losses == pytest.approx([-float((bounds * given).sum()) for given in (keep, scale)], rel=1e-12)


# --- in SVI -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_graphed_steps_are_plain_ones(gradient: str) -> None:
    results = []
    for graphed in (False, True):
        pyro.clear_param_store()
        dmm = small_dmm(dtype=DOUBLE)
        optim = PyroClippedAdam({"lr": 1e-2, "capturable": graphed})
        given = (dmm.model, dmm.guide, optim, ImportanceELBO(3, gradient))
        graphs = RecordedGraphs()
        svi: Any = GraphedSVI(*given, capturer=graphs) if graphed else SVI(*given)
        torch.manual_seed(1)
        losses = [float(svi.step(*make_batch(dtype=DOUBLE), factor)) for factor in (0.4, 0.5, 0.6, 0.7)]
        results.append(losses)
        assert graphs.replays == (3 if graphed else 0)
    assert results[0] == pytest.approx(results[1], rel=1e-9)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_validation_changes_no_number(gradient: str) -> None:
    dmm, batch, losses = small_dmm(dtype=DOUBLE), make_batch(dtype=DOUBLE), []
    for validates in (False, True):
        with pyro.validation_enabled(validates):
            losses.append(loss_and_grads(dmm, batch, ImportanceELBO(3, gradient), 0.4))
    assert losses[0][0] == losses[1][0]
    assert_same_step(losses[0], losses[1], 0.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda elbo: pickle.loads(pickle.dumps(elbo))])
def test_copies_compute_the_same(copied: Callable[[Any], Any]) -> None:
    dmm, batch = small_dmm(dtype=DOUBLE), make_batch(dtype=DOUBLE)
    elbo = ImportanceELBO(3, "dreg")
    assert_same_step(loss_and_grads(dmm, batch, copied(elbo)), loss_and_grads(dmm, batch, elbo), 0.0)


# --- refusals -----------------------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^gradient: expected one of total, path, dreg, got str 'stl'"):
        ImportanceELBO(2, "stl")
    with pytest.raises(ValueError, match=r"^num_particles: expected a positive int"):
        ImportanceELBO(0)


def test_guides_of_other_sites_have_the_total_gradient_only() -> None:
    dmm, batch = small_dmm(dtype=DOUBLE, per_step_sites=True), make_batch(dtype=DOUBLE)
    whole = small_dmm(dtype=DOUBLE)
    torch.manual_seed(5)
    ImportanceELBO(3).loss(dmm.model, dmm.guide, *batch)
    for gradient in ("path", "dreg"):
        with pytest.raises(ValueError, match=r"^site 'z_1': expected a MarkovPosterior .* for gradient='"):
            ImportanceELBO(3, gradient).loss(dmm.model, dmm.guide, *batch)
    assert whole.path_gradient is False


def test_a_path_gradient_is_not_taken_for_a_total_one() -> None:
    dmm = small_dmm()
    dmm.path_gradient = True
    with pytest.raises(ValueError, match=r"^gradient: expected 'path' or 'dreg' with a guide .* got 'total'"):
        ImportanceELBO(3).loss(dmm.model, dmm.guide, *make_batch())
    ImportanceELBO(3, "dreg").loss(dmm.model, dmm.guide, *make_batch())


def test_a_site_without_a_reparameterised_draw_is_refused() -> None:
    def guide() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("n", dist.Poisson(torch.ones(2)))

    with pytest.raises(ValueError, match=r"^site 'n': expected a reparameterised .* got a Poisson"):
        ImportanceELBO(3).loss(guide, guide)


def test_programs_without_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^model: expected sites in a plate of the rows"):
        ImportanceELBO(3).loss(lambda: None, lambda: None)


def test_several_sites_are_refused_for_dreg() -> None:
    dmm, batch = small_dmm(), make_batch()
    lengths = batch.mini_batch_seq_lengths

    def guide() -> None:
        h = dmm.encode(dmm.mini_batch(*batch))
        with pyro.plate("rows", len(LENGTHS)):
            for name in ("z", "y"):
                pyro.sample(name, dmm.posterior(h, lengths))

    ImportanceELBO(3, "path").loss(guide, guide)
    with pytest.raises(ValueError, match=r"^gradient: expected 'total' or 'path' with several sites"):
        ImportanceELBO(3, "dreg").loss(guide, guide)


class _Rounded(Messenger):
    """Has the guide take latents that are close to a draw."""

    def _pyro_sample(self, message: Any) -> None:
        if message["name"] == "z" and message["value"] is None:
            message["value"] = message["fn"]().round(decimals=3)


def test_a_value_that_was_not_drawn_has_no_path() -> None:
    dmm, batch = small_dmm(), make_batch()
    with _Rounded():
        assert ImportanceELBO(3).loss(dmm.model, dmm.guide, *batch) > 0
        for gradient in ("path", "dreg"):
            expected = rf"^site 'z': expected a draw of the guide, .* gradient='{gradient}', got another"
            with pytest.raises(ValueError, match=expected):
                ImportanceELBO(3, gradient).loss(dmm.model, dmm.guide, *batch)
