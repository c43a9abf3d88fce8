"""Changed networks take effect: sites of whole sequences agree with the steps of Pyro's example."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.baseline import BaselineDMM
from dmm_fast import DMM, Combiner, Emitter, GatedTransition
from dmm_fast.data import get_mini_batch
from dmm_fast.nn import NotFusedWarning
from tests.helpers_model import (
    FLOWS,
    SIZES,
    TOLERANCE,
    assert_same_step,
    loss_and_grads,
    make_batch,
    small_dmm,
    stir,
)

D, Z, H = SIZES["input_dim"], SIZES["z_dim"], SIZES["rnn_dim"]

Change = Callable[[DMM], Any]


class Lora(nn.Linear):
    """A linear layer with a trainable addition to its weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.added = nn.Parameter(0.1 * torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.added.T


class OwnEmitter(Emitter):
    def forward(self, z_t: Tensor) -> Tensor:
        return 0.5 * super().forward(z_t) + 0.2


class OwnTransition(GatedTransition):
    def forward(self, z_t_1: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = super().forward(z_t_1)
        return 0.9 * loc, scale + 0.1


class OwnCombiner(Combiner):
    def forward(self, z_t_1: Tensor, h_rnn: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = super().forward(z_t_1, h_rnn)
        return loc + 0.1 * z_t_1, scale


class PlainTransition(nn.Module):
    """A module independent of the package, with one scale for all latents."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Linear(Z, Z), nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc(z), self.log_scale.exp()


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def put(path: str, make: Callable[[Any], nn.Module]) -> Change:
    """Replace the module at ``path`` by one made from it."""
    owner, _, name = path.rpartition(".")

    def change(dmm: DMM) -> None:
        setattr(dmm.get_submodule(owner), name, make(getattr(dmm.get_submodule(owner), name)))

    return change


def as_subclass(kind: type[nn.Module], *sizes: int) -> Callable[[Any], nn.Module]:
    def make(old: nn.Module) -> nn.Module:
        new = kind(*sizes)
        new.load_state_dict(old.state_dict())
        return new

    return make


CHANGES: dict[str, Change] = {
    "emitter relu": put("emitter.relu", lambda _: nn.Tanh()),
    "trans relu": put("trans.relu", lambda _: nn.ELU()),
    "trans softplus": put("trans.softplus", lambda _: nn.Softplus(beta=2)),
    "combiner tanh": put("combiner.tanh", lambda _: nn.Sigmoid()),
    "combiner softplus": put("combiner.softplus", lambda _: nn.Softplus(threshold=0.1)),
    "emitter subclass": put("emitter", as_subclass(OwnEmitter, D, Z, 4)),
    "trans subclass": put("trans", as_subclass(OwnTransition, Z, 6)),
    "combiner subclass": put("combiner", as_subclass(OwnCombiner, Z, H)),
    "emitter of one's own": put("emitter", lambda _: nn.Sequential(nn.Linear(Z, D), nn.Sigmoid())),
    "trans of one's own": put("trans", lambda _: PlainTransition()),
    "emitter hook": lambda d: d.emitter.register_forward_hook(lambda m, a, out: 0.9 * out),
    "trans hook": lambda d: d.trans.register_forward_hook(lambda m, a, out: (2 * out[0], out[1])),
    "combiner pre-hook": lambda d: d.combiner.register_forward_pre_hook(lambda m, a: (a[0], 0.5 * a[1])),
    "hook on a layer": lambda d: d.trans.lin_sig.register_forward_hook(lambda m, a, out: out + 1),
    "forward of one object": lambda d: setattr(
        d.emitter, "forward", lambda z: torch.sigmoid(z.sum(-1, True))
    ),
    "lora emitter": put("emitter.lin_z_to_hidden", Lora),
    "lora trans": put("trans.lin_sig", Lora),
    "lora combiner": put("combiner.lin_hidden_to_loc", Lora),
    "no bias": put("trans.lin_sig", lambda old: nn.Linear(Z, Z, bias=False)),
    "wider layer": lambda d: (
        put("emitter.lin_hidden_to_hidden", lambda _: nn.Linear(4, 9))(d),
        put("emitter.lin_hidden_to_input", lambda _: nn.Linear(9, D))(d),
    ),
}
"""Changes after which a network's own forward has to compute it."""

FUSED_CHANGES: dict[str, Change] = {
    "parametrized emitter": lambda d: parametrize.register_parametrization(
        d.emitter.lin_hidden_to_input, "weight", Doubled()
    ),
    "parametrized combiner": lambda d: parametrize.register_parametrization(
        d.combiner.lin_z_to_hidden, "bias", Doubled()
    ),
    "parametrized rnn": lambda d: nn.utils.parametrizations.orthogonal(d.rnn, "weight_hh_l0"),
    "a layer of other weights": put("emitter.lin_z_to_hidden", lambda old: nn.Linear(Z, 4)),
}
"""Changes that leave an op to compute with other weights."""


def changed(change: Change, **kwargs: Any) -> DMM:
    dmm = small_dmm(**kwargs)
    torch.manual_seed(7)
    change(dmm)
    return dmm.to(torch.float64)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_takes_effect_and_is_reported_once(name: str, elbo: type[Any]) -> None:
    batch = make_batch(dtype=torch.float64)
    dmm = changed(CHANGES[name])
    with pytest.warns(NotFusedWarning) as said:
        ours, again = (loss_and_grads(dmm, batch, elbo()) for _ in range(2))
    assert len(said) == 1
    assert ours[0] == again[0]
    unchanged = loss_and_grads(small_dmm(dtype=torch.float64), batch, elbo())
    assert abs(ours[0] - unchanged[0]) > 1e-6 * abs(unchanged[0])
    if elbo is Trace_ELBO:
        steps = loss_and_grads(changed(CHANGES[name], per_step_sites=True), batch, elbo())
        trained = {n: g for n, g in steps[1].items() if g is not None}
        assert trained.keys() == {n for n, g in again[1].items() if g is not None}
        assert_same_step((again[0], {n: again[1][n] for n in trained}), (steps[0], trained), 1e-10)


def test_the_analytic_kl_of_a_changed_network_equals_the_fused_one() -> None:
    # A subclass that only changes the place of computation.
    class Same(GatedTransition):
        def forward(self, z_t_1: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(z_t_1)

    batch = make_batch(dtype=torch.float64)
    with pytest.warns(NotFusedWarning, match="trans .* forward of its own"):
        ours = loss_and_grads(changed(put("trans", as_subclass(Same, Z, 6))), batch, TraceMeanField_ELBO())
    assert_same_step(
        ours, loss_and_grads(small_dmm(dtype=torch.float64), batch, TraceMeanField_ELBO()), 1e-10
    )


@pytest.mark.parametrize("name", FUSED_CHANGES)
def test_other_weights_are_the_ops_weights(name: str) -> None:
    batch = make_batch(dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotFusedWarning)
        ours = loss_and_grads(changed(FUSED_CHANGES[name]), batch, Trace_ELBO())
    unchanged = loss_and_grads(small_dmm(dtype=torch.float64), batch, Trace_ELBO())
    assert abs(ours[0] - unchanged[0]) > 1e-6 * abs(unchanged[0])
    # An identity hook makes every network run its own layers.
    dmm = changed(FUSED_CHANGES[name])
    for network in (dmm.emitter, dmm.trans, dmm.combiner):
        for layer in network.children():
            layer.register_forward_hook(lambda m, a, out: None)
    with pytest.warns(NotFusedWarning):
        assert_same_step(ours, loss_and_grads(dmm, batch, Trace_ELBO()), 1e-10)


@pytest.mark.parametrize("flows", [{}, FLOWS])
def test_a_changed_combiner_is_used_for_draws_and_densities(flows: dict[str, Any]) -> None:
    dmm = changed(CHANGES["combiner subclass"], **flows)
    batch = make_batch(dtype=torch.float64)
    lengths = batch.mini_batch_seq_lengths
    with pytest.warns(NotFusedWarning):
        posterior = dmm.posterior(dmm.encode(dmm.mini_batch(*batch)), lengths)
    z = posterior.rsample((2,))
    # A copy of the draw is evaluated without the noise it was drawn with.
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(posterior.log_prob(z), posterior.log_prob(z.clone()))
    finally:
        torch.set_default_dtype(torch.float32)
    assert bool((z[:, :, 1:][:, lengths == 1] == 0).all())


def test_a_user_defined_gaussian_emission() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Linear(Z, D)

        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return self.loc(z), torch.ones(())

    batch = make_batch(dtype=torch.float64, emission="gaussian")
    losses = []
    for per_step_sites in (False, True):
        dmm = changed(put("emitter", lambda _: Own()), emission="gaussian", per_step_sites=per_step_sites)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotFusedWarning)
            losses.append(loss_and_grads(dmm, batch, Trace_ELBO()))
    assert_same_step(losses[0], losses[1], 1e-10)


@pytest.mark.parametrize(
    ("path", "wrong", "message"),
    [
        ("emitter", nn.Linear(Z, D), r"emitter: expected probabilities between 0 and 1, got -?\d"),
        ("emitter", nn.Sequential(nn.Linear(Z, D + 1), nn.Sigmoid()), r"emitter: expected a shape that"),
        ("trans", nn.Linear(Z, Z), r"trans: expected a pair \(loc, scale\), got"),
        ("combiner", nn.Bilinear(Z, H, Z), r"combiner: expected a pair \(loc, scale\), got"),
    ],
)
def test_a_network_with_a_wrong_output_is_named(path: str, wrong: nn.Module, message: str) -> None:
    dmm = small_dmm()
    setattr(dmm, path, wrong)
    batch = make_batch()
    with (
        pytest.warns(NotFusedWarning),
        pytest.raises((TypeError, ValueError), match=message),
    ):
        Trace_ELBO().loss(dmm.model, dmm.guide, *batch)


class TutorialModel(DMM):
    """The model of Pyro's example with the guide of this package."""

    model = BaselineDMM.model  # type: ignore[assignment]


class TutorialGuide(DMM):
    """The guide of Pyro's example with the model of this package."""

    mended = False
    guide = BaselineDMM.guide  # type: ignore[assignment]
    _posterior = BaselineDMM._posterior
    _hidden_states = BaselineDMM._hidden_states


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [TutorialModel, TutorialGuide])
def test_model_or_guide_of_the_example_can_be_combined_with_ours(kind: type[DMM], layers: int) -> None:
    torch.manual_seed(0)
    theirs = stir(BaselineDMM(**SIZES, num_layers=layers))
    ours = kind(**SIZES, num_layers=layers)
    ours.load_state_dict(theirs.state_dict())
    plain = make_batch()
    order = torch.arange(len(plain.mini_batch))
    batch = get_mini_batch(order, plain.mini_batch, plain.mini_batch_seq_lengths)
    expected = loss_and_grads(theirs, batch, Trace_ELBO(), 0.5)
    assert_same_step(loss_and_grads(ours, batch, Trace_ELBO(), 0.5), expected, TOLERANCE[torch.float32])


def test_an_overridden_model_with_more_arguments_keeps_the_sites_of_sequences() -> None:
    class More(DMM):
        def model(self, *args: Any) -> Any:
            pyro.deterministic("more", torch.zeros(()))
            return super().model(*args)

        def guide(self, *args: Any) -> Any:
            return super().guide(*args)

    torch.manual_seed(0)
    more, batch = stir(More(**SIZES)), make_batch()
    plain = DMM(**SIZES)
    plain.load_state_dict(more.state_dict())
    assert_same_step(
        loss_and_grads(more, batch, Trace_ELBO()), loss_and_grads(plain, batch, Trace_ELBO()), 1e-6
    )


def test_an_overridden_emission_is_used_by_the_sites_of_steps() -> None:
    class Own(DMM):
        def emission(self, *args: Any) -> Any:
            return super().emission(*args)

    dmm = Own(**SIZES, per_step_sites=True)
    with pytest.raises(ValueError, match=r"^per_step_sites: expected False where emission\(\) is overridden"):
        dmm.model(*make_batch())


def test_functional_call_uses_its_parameters() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dmm = small_dmm()

        def forward(self) -> Tensor:
            torch.manual_seed(5)
            return Trace_ELBO().differentiable_loss(self.dmm.model, self.dmm.guide, *make_batch())

    loss = Loss()
    halved = {name: (0.5 * p.detach()).requires_grad_() for name, p in loss.named_parameters()}
    given = {name: p * 1.0 for name, p in halved.items()}
    ours = torch.func.functional_call(loss, given, ())
    ours.backward()
    other = copy.deepcopy(loss)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    expected = other()
    expected.backward()
    assert ours.item() == expected.item()
    for name, p in other.named_parameters():
        assert torch.equal(halved[name].grad, p.grad), name
    # The substitutes of the parameters must not be registered for the optimizer.
    loss()
    assert pyro.get_param_store()["dmm$$$z_0"].unconstrained() is loss.dmm.z_0


def test_frozen_parameters_stay_and_are_not_warned_of() -> None:
    dmm = small_dmm()
    dmm.emitter.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, grads = loss_and_grads(dmm, make_batch(), Trace_ELBO())
    assert {n for n, g in grads.items() if g is None} == {n for n in grads if n.startswith("emitter")}


def test_a_hook_on_all_modules_sees_every_layer() -> None:
    dmm, seen = small_dmm(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with pytest.warns(NotFusedWarning, match="every module has hooks"):
            Trace_ELBO().loss(dmm.model, dmm.guide, *make_batch())
    finally:
        handle.remove()
    layers = {m for network in (dmm.emitter, dmm.trans, dmm.combiner) for m in network.children()}
    assert layers <= set(seen)


def test_a_scale_below_zero_is_named() -> None:
    class Negative(GatedTransition):
        def forward(self, z_t_1: Tensor) -> tuple[Tensor, Tensor]:
            return z_t_1, -torch.ones(())

    dmm = small_dmm()
    dmm.trans = Negative(Z, 6)
    with (
        pytest.warns(NotFusedWarning),
        pytest.raises(ValueError, match=r"scale of trans: expected numbers from 0, got -1\.0"),
    ):
        TraceMeanField_ELBO().loss(dmm.model, dmm.guide, *make_batch())


def test_a_network_with_its_own_call_is_called() -> None:
    class Own(Emitter):
        def __call__(self, z: Tensor) -> Tensor:
            return 0.5 * super().__call__(z)

    dmm = small_dmm()
    dmm.emitter = Own(D, Z, 4)
    with pytest.warns(NotFusedWarning, match="emitter .* forward of its own"):
        Trace_ELBO().loss(dmm.model, dmm.guide, *make_batch())


@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
def test_sample_statements_of_an_emitter_belong_to_the_model(emission: str) -> None:
    class Bayesian(nn.Module):
        def forward(self, z: Tensor) -> Any:
            w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0).expand([Z, D]).to_event(2))
            return torch.sigmoid(z @ w) if emission == "bernoulli" else (z @ w, torch.ones(()))

    dmm = small_dmm(emission=emission)
    dmm.emitter = Bayesian()
    with pytest.warns(NotFusedWarning):
        sites = pyro.poutine.trace(dmm.model).get_trace(*make_batch(emission=emission)).nodes
    assert "w" in sites
