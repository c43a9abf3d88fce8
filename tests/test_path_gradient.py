"""Path gradients of the posterior's log-density, compared with autograd in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions.transforms import Planar
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from dmm_fast import DMM, use_backend
from dmm_fast.distributions import MarkovPosterior, MeanFieldPosterior
from dmm_fast.infer import GraphedSVI, SequenceELBO
from dmm_fast.optim import PyroClippedAdam
from tests.device import cpu_only
from tests.helpers_graph import RecordedGraphs
from tests.helpers_model import (
    FLOWS,
    LENGTHS,
    assert_close,
    assert_means_agree,
    gradients,
    landed,
    loss_and_grads,
    make_batch,
    small_dmm,
)

pytestmark = [cpu_only, pytest.mark.filterwarnings("ignore::dmm_fast.nn.NotFusedWarning")]

DOUBLE = torch.float64


class Doubled(nn.Module):
    """A combiner of another form."""

    def __init__(self, combiner: nn.Module) -> None:
        super().__init__()
        self.inner = combiner

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.inner(*given)
        return loc + loc.square().sum(-1, keepdim=True), 2.0 * scale


def with_a_module(dmm: DMM) -> None:
    dmm.combiner = Doubled(dmm.combiner)


KINDS: dict[str, tuple[dict[str, Any], Callable[[DMM], None] | None]] = {
    "chain": ({}, None),
    "both sides": ({"inference": "st-lr"}, None),
    "min_scale": ({"min_scale": 0.3}, None),
    "flows": (FLOWS, None),
    "flows, min_scale": ({**FLOWS, "min_scale": 0.3}, None),
    "module": ({"min_scale": 0.3}, with_a_module),
    "module, flows": (FLOWS, with_a_module),
    "mean field": ({"inference": "mf-r"}, None),
    "mean field, flows, min_scale": ({"inference": "mf-lr", **FLOWS, "min_scale": 0.3}, None),
    "mean field, module": ({"inference": "mf-l"}, with_a_module),
}
SHAPES = {"ragged": LENGTHS, "one row": (4,), "one step": (1, 1), "an empty row": (0, 3)}


def dmm_of(kind: str, **more: Any) -> DMM:
    options, change = KINDS[kind]
    dmm = small_dmm(dtype=DOUBLE, **options, **more)
    if change is not None:
        change(dmm)
    return dmm


def encoded(dmm: DMM, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    """``h`` with NaN past the end of each row, and ``lengths``."""
    length = torch.tensor(lengths)
    x = torch.bernoulli(torch.full((len(lengths), max(lengths), 5), 0.5)).double()
    h_0 = dmm.h_0.squeeze(1) if dmm.inference.endswith("-lr") else dmm.h_0.flatten()
    h = dmm.rnn(x, h_0, length)
    keep = torch.arange(max(lengths)) < length[:, None]
    return torch.where(keep[:, :, None], h, torch.nan), length


def of_constant_parameters(dmm: DMM, h: Tensor, lengths: Tensor, z: Tensor) -> Tensor:
    """``log q(z)``, differentiable in ``z`` alone, by the ops for any given value."""
    twin = copy.deepcopy(dmm).requires_grad_(False)
    twin.path_gradient = False
    twin.iafs = list(twin.iafs_modules)
    return twin.posterior(h.detach(), lengths).expand(z.shape[:-2]).log_prob(z.clone())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_through_the_draw(kind: str, lead: tuple[int, ...], shape: str) -> None:
    dmm = dmm_of(kind)
    h, lengths = encoded(dmm, SHAPES[shape])
    plain = dmm.posterior(h, lengths).expand((*lead, len(lengths)))
    dmm.path_gradient = True
    q = dmm.posterior(h, lengths).expand((*lead, len(lengths)))
    torch.manual_seed(4)
    value = plain.log_prob(plain.rsample())
    torch.manual_seed(4)
    z = q.rsample()
    log_prob = q.log_prob(z)
    assert torch.equal(log_prob, value)

    weight = torch.linspace(0.5, 2.0, log_prob.numel(), dtype=DOUBLE).reshape(log_prob.shape)
    ours = gradients((log_prob * weight).sum(), dmm)
    theirs = gradients((of_constant_parameters(dmm, h, lengths, z) * weight).sum(), dmm)
    assert ours.keys() == theirs.keys()
    scale = max(float(gradient.norm()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) < 1e-10 * scale, name


def test_a_function_in_place_of_weights_has_it_too() -> None:
    dmm = dmm_of("chain")
    h, lengths = encoded(dmm)
    z_q_0, made = dmm.z_q_0, []
    for combiner in (dmm.combiner.weights, lambda z_prev, h: dmm.combiner(z_prev, h)):
        q = MarkovPosterior(h, z_q_0, combiner, lengths, path_gradient=True)
        torch.manual_seed(4)
        made.append(gradients(q.log_prob(q.rsample()).sum(), dmm))
    for name, gradient in made[0].items():
        assert_close(made[1][name], gradient, 1e-10, name)


def test_only_the_last_draw_has_a_path_gradient() -> None:
    """Any other value has the density's own gradient, and the same one without the flag."""
    dmm = dmm_of("chain")
    h, lengths = encoded(dmm)
    values = []
    for path in (False, True):
        dmm.path_gradient = path
        q = dmm.posterior(h, lengths)
        torch.manual_seed(4)
        z = q.rsample()
        with torch.no_grad():
            alone = q.log_prob(z)
        values.append((alone, gradients(q.log_prob(z.detach()).sum(), dmm)))
    assert torch.equal(values[0][0], values[1][0])
    assert values[0][1]
    for name, gradient in values[0][1].items():
        assert torch.equal(values[1][1][name], gradient), name


@pytest.mark.parametrize("kind", ["chain", "flows", "mean field"])
def test_autocast_changes_no_more_than_rounding(kind: str) -> None:
    """As in the ops, everything but a network of one's own is in float32."""
    dmm = dmm_of(kind).float()
    dmm.path_gradient = True
    x = torch.bernoulli(torch.full((4, 6, 5), 0.5))
    h = dmm.rnn(x, dmm.h_0.flatten(), torch.tensor(LENGTHS)).detach()
    made = []
    for is_on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            q = dmm.posterior(h, torch.tensor(LENGTHS))
            torch.manual_seed(4)
            made.append(gradients(q.log_prob(q.rsample()).sum(), dmm))
    assert made[0]
    for name, gradient in made[0].items():
        assert_close(made[1][name], gradient, 1e-5, name)


def test_its_second_derivative_is_refused() -> None:
    dmm = dmm_of("chain")
    dmm.path_gradient = True
    with use_backend("reference"):
        q = dmm.posterior(*encoded(dmm))
        log_prob = q.log_prob(q.rsample()).sum()
        with pytest.raises(NotImplementedError, match=r"^path_gradient: expected .* got create_graph=True"):
            torch.autograd.grad(log_prob, dmm.z_q_0, create_graph=True)


# --- in an ELBO ---------------------------------------------------------------------------------------------


ELBOS: dict[str, Callable[[], Any]] = {
    "pyro": Trace_ELBO,
    "in few operations": lambda: SequenceELBO(Trace_ELBO()),
    "particles": lambda: SequenceELBO(Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True)),
}


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("kind", ["chain", "flows", "mean field"])
def test_an_elbo_loses_the_score_and_nothing_else(kind: str, elbo: str) -> None:
    """The gradient of the loss plus that of log q by its parameters is the total one."""
    dmm, batch, factor = dmm_of(kind), make_batch(dtype=DOUBLE), 0.4
    total = loss_and_grads(dmm, batch, ELBOS[elbo](), factor)
    dmm.path_gradient = True
    loss, by_path = loss_and_grads(dmm, batch, ELBOS[elbo](), factor)
    assert loss == total[0]
    particles = (3,) if elbo == "particles" else ()
    q = dmm.posterior(dmm.encode(dmm.mini_batch(*batch)), batch.mini_batch_seq_lengths)
    q = q.expand((*particles, len(LENGTHS)))
    torch.manual_seed(5)
    z = q.rsample().detach()
    score = gradients(q.log_prob(z).sum() * factor / (3 if particles else 1), dmm)
    assert any(float((by_path[name] - total[1][name]).norm()) > 0.01 for name in score)
    for name, gradient in total[1].items():
        expected = gradient - score.get(name, torch.zeros_like(gradient))
        assert_close(by_path[name], expected, 1e-8, name)


def test_the_mean_is_that_of_the_total_gradient() -> None:
    """Each of 3000 draws has an ``h`` and an initial state of its own, and so a gradient of its own."""
    dmm, batch, N = dmm_of("chain"), make_batch((3, 2), dtype=DOUBLE), 3000
    lengths = batch.mini_batch_seq_lengths
    h = dmm.encode(dmm.mini_batch(*batch)).detach()
    made = []
    for path in (False, True):
        own_h = h.repeat(N, 1, 1, 1).requires_grad_()
        own_z = dmm.z_q_0.detach().repeat(N, 2, 1).requires_grad_()
        q = MarkovPosterior(own_h, own_z, dmm.combiner.weights, lengths, path_gradient=path)
        torch.manual_seed(3)
        z = q.rsample()
        elbo = dmm.prior(lengths, 3).log_prob(z) - q.log_prob(z)
        elbo = elbo + dmm.emission(z, lengths).log_prob(batch.mini_batch)
        grads = torch.autograd.grad(elbo.sum(), (own_h, own_z))
        made.append(torch.cat([grad.flatten(1) for grad in grads], 1))
    difference = made[1] - made[0]
    # The last step of the second row is padding, and has no gradient.
    difference = difference[:, difference.abs().amax(0) > 0]
    assert difference.shape == (N, 5 * 7 + 2 * 3)
    assert_means_agree(difference, torch.zeros(difference.shape[1], dtype=DOUBLE))


@pytest.mark.parametrize("factor", [1.0, 0.4])
def test_the_landing(factor: float) -> None:
    """Where q is exact, each draw's path gradient of the guide is zero, and the total one is not."""
    dmm, batch = landed(), make_batch(dtype=DOUBLE)
    of_guide = [name for name, _ in dmm.named_parameters() if name.startswith("combiner.lin_hidden")]
    for path, seed in ((False, 1), (True, 1), (True, 2)):
        dmm.path_gradient = path
        _, grads = loss_and_grads(dmm, batch, Trace_ELBO(), factor, seed=seed)
        largest = max(float(grads[name].abs().max()) for name in of_guide)
        assert largest < 1e-12 if path else largest > 0.1


def test_a_graphed_step_follows_the_flag() -> None:
    """Setting it between steps captures anew, with the gradients of plain steps."""
    results = []
    for graphed in (False, True):
        pyro.clear_param_store()
        dmm = small_dmm(dtype=DOUBLE)
        optim = PyroClippedAdam({"lr": 1e-2, "capturable": graphed})
        given = (dmm.model, dmm.guide, optim, SequenceELBO(Trace_ELBO()))
        svi: Any = GraphedSVI(*given, capturer=RecordedGraphs()) if graphed else SVI(*given)
        torch.manual_seed(1)
        losses = []
        for path in (False, False, True, True, True, False):
            dmm.path_gradient = path
            losses.append(float(svi.step(*make_batch(dtype=DOUBLE), 0.7)))
        results.append(losses)
    assert results[0] == pytest.approx(results[1], rel=1e-9)


# --- refusals -----------------------------------------------------------------------------------------------


def test_an_analytic_kl_is_refused() -> None:
    dmm, batch = dmm_of("chain"), make_batch(dtype=DOUBLE)
    dmm.path_gradient = True
    for elbo in (TraceMeanField_ELBO(), SequenceELBO(TraceMeanField_ELBO())):
        with pytest.raises(ValueError, match=r"^path_gradient: expected False for an analytic KL.* got True"):
            loss_and_grads(dmm, batch, elbo)


def test_single_steps_are_refused() -> None:
    dmm = small_dmm(per_step_sites=True)
    dmm.path_gradient = True
    with pytest.raises(ValueError, match=r"^path_gradient: expected False with one site per time step"):
        dmm.guide(*make_batch())


def test_a_flow_without_an_inverse_is_refused() -> None:
    dmm = small_dmm(**FLOWS)
    dmm.iafs = [dmm.iafs[0], Planar(3)]
    dmm.path_gradient = True
    with pytest.raises(ValueError, match=r"^path_gradient: expected .*affine_autoregressive.*a Planar"):
        dmm.guide(*make_batch())


def test_active_dropout_is_refused_in_a_chain() -> None:
    dmm = small_dmm()
    with_a_module(dmm)
    dmm.combiner.dropout = nn.Dropout(0.2)
    dmm.path_gradient = True
    with pytest.raises(ValueError, match=r"^path_gradient: expected .*dropout, got True with Dropout\(0.2\)"):
        dmm.guide(*make_batch())
    dmm.eval().guide(*make_batch())


def test_a_posterior_that_ignores_it_is_refused() -> None:
    class Own(DMM):
        def posterior(self, h: Tensor, lengths: Tensor) -> MarkovPosterior:
            return MarkovPosterior(h, self.z_q_0, self.combiner.weights, lengths)

    dmm = Own(5, 3, 4, 6, 7)
    dmm.guide(*make_batch())
    dmm.path_gradient = True
    with pytest.raises(ValueError, match=r"^path_gradient: expected False, or a posterior\(\) that"):
        dmm.guide(*make_batch())


@pytest.mark.parametrize("kind", [MarkovPosterior, MeanFieldPosterior])
def test_the_flag_is_a_bool(kind: type) -> None:
    dmm = small_dmm(inference="st-r" if kind is MarkovPosterior else "mf-r")
    dmm.path_gradient = 1  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"^path_gradient: expected bool, got"):
        dmm.guide(*make_batch())


def test_the_flag_is_no_part_of_the_state() -> None:
    dmm = small_dmm()
    keys = [*dmm.state_dict()]
    dmm.path_gradient = True
    assert [*dmm.state_dict()] == keys
    assert copy.deepcopy(dmm).path_gradient
    assert not small_dmm().path_gradient
