"""SequenceELBO compared with Pyro's Trace_ELBO, and the number of operators of a captured step."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmm_fast import _extension
from dmm_fast.infer import GraphedSVI, SequenceELBO
from dmm_fast.infer import _sequence_elbo as module
from dmm_fast.model import DMM
from dmm_fast.ops import _registry
from tests.helpers_graph import RecordedGraphs, Run
from tests.helpers_model import make_batch, small_dmm

Function = Callable[..., Any]


def as_they_are(dmm: DMM) -> tuple[Function, Function]:
    return dmm.model, dmm.guide


def scaled(dmm: DMM) -> tuple[Function, Function]:
    return poutine.scale(dmm.model, scale=0.3), poutine.scale(dmm.guide, scale=0.3)


def scaled_by_a_tensor(dmm: DMM) -> tuple[Function, Function]:
    factor = torch.tensor(0.7, dtype=torch.float64)
    return poutine.scale(dmm.model, scale=factor), poutine.scale(dmm.guide, scale=factor)


def in_a_plate(dmm: DMM) -> tuple[Function, Function]:
    """A mini-batch subsampled from more rows."""

    def within(f: Function) -> Function:
        def whole(*args: Any) -> None:
            with pyro.plate("data", 40, subsample_size=4, dim=-2):
                f(*args)

        return whole

    return within(dmm.model), within(dmm.guide)


def masked(dmm: DMM) -> tuple[Function, Function]:
    rows = torch.tensor([True, False, True, True])
    return poutine.mask(dmm.model, mask=rows), poutine.mask(dmm.guide, mask=rows)


def scaled_by_rows(dmm: DMM) -> tuple[Function, Function]:
    rows = torch.tensor([0.5, 1.0, 2.0, 0.1])
    return poutine.scale(dmm.model, scale=rows), poutine.scale(dmm.guide, scale=rows)


def with_a_site(dmm: DMM) -> tuple[Function, Function]:
    """An additional latent of the user beside the sequences."""

    def model(*args: Any) -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        dmm.model(*args)

    def guide(*args: Any) -> None:
        loc = pyro.param("a_loc", torch.tensor(0.5))
        pyro.sample("a", dist.Normal(loc, 1.0))
        dmm.guide(*args)

    return model, guide


def with_a_discrete_site(dmm: DMM) -> tuple[Function, Function]:
    def model(*args: Any) -> None:
        pyro.sample("k", dist.Bernoulli(0.5))
        dmm.model(*args)

    def guide(*args: Any) -> None:
        pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))
        dmm.guide(*args)

    return model, guide


def auto(dmm: DMM) -> tuple[Function, Function]:
    """A guide that is a messenger."""

    def model(*args: Any) -> None:
        loc = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.3))

    return model, pyro.infer.autoguide.AutoNormalMessenger(model)


def with_hidden_parameters(dmm: DMM) -> tuple[Function, Function]:
    """A guide whose parameters are hidden, while those of the model are visible."""
    return dmm.model, poutine.block(dmm.guide, hide_types=["param"])


def with_a_wider_latent(dmm: DMM) -> tuple[Function, Function]:
    """A guide within a plate that the model lacks."""

    def guide(*args: Any) -> None:
        with pyro.plate("more", 3, dim=-2):
            dmm.guide(*args)

    return dmm.model, guide


def scaled_with_a_gradient(dmm: DMM) -> tuple[Function, Function]:
    """A trainable weight, as a parameter of the module."""
    dmm.register_parameter("weight", torch.nn.Parameter(torch.tensor(0.4)))

    def scale(function: Function) -> Function:
        def scaled(*args: Any) -> None:
            with poutine.scale(scale=dmm.weight):
                function(*args)

        return scaled

    return scale(dmm.model), scale(dmm.guide)


def with_an_observed_latent(dmm: DMM) -> tuple[Function, Function]:
    z = torch.linspace(-1, 1, 4 * 6 * 3).reshape(4, 6, 3)
    return poutine.condition(dmm.model, {"z": z}), dmm.guide


OURS = (as_they_are, scaled, scaled_by_a_tensor, in_a_plate, with_hidden_parameters, with_a_wider_latent)
PYROS = (
    *(masked, scaled_by_rows, scaled_with_a_gradient),
    *(with_a_site, with_a_discrete_site, with_an_observed_latent, auto),
)
ELBOS: dict[str, Callable[[], Trace_ELBO]] = {
    "one": Trace_ELBO,
    "three in turn": lambda: Trace_ELBO(3),
    "three at once": lambda: Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=3),
    "three at once, nesting unknown": lambda: Trace_ELBO(3, vectorize_particles=True),
    "analytic": TraceMeanField_ELBO,
    "three analytic in turn": lambda: TraceMeanField_ELBO(3),
    "three analytic at once": lambda: TraceMeanField_ELBO(3, vectorize_particles=True, max_plate_nesting=3),
}


def loss_and_grads(make: Callable[[Trace_ELBO], Trace_ELBO], elbo: Trace_ELBO, wrap: Function) -> Any:
    """The losses of two calls, and the accumulated gradients."""
    pyro.clear_param_store()
    model, guide = wrap(small_dmm())
    torch.manual_seed(0)
    given = make(elbo)
    with pyro.validation_enabled(False):
        losses = [given.loss_and_grads(model, guide, *make_batch((6, 2, 1, 5)), 0.4) for _ in range(2)]
    params = pyro.get_param_store().named_parameters()
    return losses, {name: None if p.grad is None else p.grad.clone() for name, p in params}


@pytest.mark.parametrize("kind", ELBOS)
@pytest.mark.parametrize("wrap", [*OURS, *PYROS])
def test_loss_and_gradients_are_pyros(wrap: Function, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = module.loss_of
    monkeypatch.setattr(module, "loss_of", lambda *args: calls.append(args) or compute(*args))
    theirs, their_grads = loss_and_grads(lambda elbo: elbo, ELBOS[kind](), wrap)
    assert not calls
    ours, our_grads = loss_and_grads(SequenceELBO, ELBOS[kind](), wrap)
    # An observed latent has a density, but no divergence.
    is_ours = wrap in OURS or (wrap is with_an_observed_latent and "analytic" not in kind)
    assert bool(calls) == is_ours
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        if grad is None:
            assert our_grads[name] is None
        else:
            torch.testing.assert_close(our_grads[name], grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["three in turn", "three analytic in turn"])
def test_the_differentiable_loss_is_pyros(kind: str) -> None:
    numbers = []
    for make in (lambda elbo: elbo, SequenceELBO):
        pyro.clear_param_store()
        dmm = small_dmm()
        torch.manual_seed(0)
        loss = make(ELBOS[kind]()).differentiable_loss(dmm.model, dmm.guide, *make_batch())
        loss.backward()
        numbers.append([loss, *(p.grad for p in dmm.parameters())])
    for theirs, ours in zip(*numbers, strict=True):
        assert torch.equal(theirs, ours)


def test_validation_is_pyros() -> None:
    pyro.clear_param_store()
    dmm = small_dmm()

    def guide(*args: Any) -> Tensor:
        return torch.zeros(())

    with pyro.validation_enabled(True), pytest.warns(UserWarning, match="Found vars in model but not guide"):
        SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, guide, *make_batch())


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_site_outside_a_plate_is_refused_as_by_pyro(kind: type[Trace_ELBO]) -> None:
    dmm, batch = small_dmm(), make_batch()

    def model(*args: Any) -> None:
        checked = dmm.mini_batch(*args)
        z = pyro.sample("z", dmm.prior(checked.lengths, checked.T))
        with pyro.plate("z_minibatch", len(z)):
            pyro.sample("obs_x", dmm.emission(z, checked.lengths), obs=checked.x)

    messages = []
    for elbo in (kind(max_plate_nesting=1), SequenceELBO(kind(max_plate_nesting=1))):
        pyro.clear_param_store()
        with (
            pyro.validation_enabled(True),
            pytest.raises(ValueError, match="invalid log_prob shape") as caught,
        ):
            elbo.loss_and_grads(model, dmm.guide, *batch)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("wrap", [as_they_are, with_a_site, masked])
@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_validation_changes_no_number(kind: type[Trace_ELBO], wrap: Function) -> None:
    numbers = []
    for validates in (False, True):
        pyro.clear_param_store()
        model, guide = wrap(small_dmm())
        torch.manual_seed(0)
        with pyro.validation_enabled(validates):
            numbers.append(float(SequenceELBO(kind()).loss_and_grads(model, guide, *make_batch(), 0.4)))
    assert numbers[0] == numbers[1]


def test_terms_are_computed_with_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """No op of a log-density runs forward, as its backward op also returns the value."""
    if _extension.missing is not None:
        pytest.skip(_extension.missing)
    called = []
    compute = _registry._Valued.apply
    monkeypatch.setattr(_registry._Valued, "apply", lambda *args: called.append(args[0]) or compute(*args))
    pyro.clear_param_store()
    dmm, batch = small_dmm(), make_batch()
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(retain_graph=True)):
        SequenceELBO(elbo).loss_and_grads(dmm.model, dmm.guide, *batch)
    sampled = ["transition_log_prob", "emission_log_prob", "drawn_log_prob"]
    assert called == [*sampled, "transition_kl", "emission_log_prob"]
    called.clear()
    # No gradients of frozen parameters are requested.
    dmm.requires_grad_(False)
    SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, dmm.guide, *batch)
    assert called == []


@pytest.mark.parametrize("kind", [TraceTailAdaptive_ELBO, JitTrace_ELBO, dict])
def test_another_estimator_is_refused(kind: type) -> None:
    with pytest.raises(
        TypeError, match=r"^elbo: expected Pyro's Trace_ELBO or TraceMeanField_ELBO itself, got"
    ):
        SequenceELBO(kind())


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda elbo: pickle.loads(pickle.dumps(elbo))])
def test_copies_compute_the_same(copied: Function, kind: type[Trace_ELBO]) -> None:
    numbers = []
    for elbo in (SequenceELBO(kind(num_particles=2)), copied(SequenceELBO(kind(num_particles=2)))):
        pyro.clear_param_store()
        dmm = small_dmm()
        torch.manual_seed(0)
        numbers.append(float(elbo.loss_and_grads(dmm.model, dmm.guide, *make_batch())))
        assert elbo.num_particles == 2
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_loss_alone_is_pyros(kind: type[Trace_ELBO]) -> None:
    numbers = []
    for elbo in (kind(), SequenceELBO(kind())):
        pyro.clear_param_store()
        dmm = small_dmm()
        torch.manual_seed(0)
        numbers.append(float(elbo.loss(dmm.model, dmm.guide, *make_batch())))
        assert all(p.grad is None for p in dmm.parameters())
    assert numbers[0] == numbers[1]


def test_a_nan_term_is_named() -> None:
    pyro.clear_param_store()
    dmm = small_dmm()
    with torch.no_grad():
        dmm.z_0.fill_(float("nan"))
    with pyro.validation_enabled(True), pytest.warns(UserWarning, match="log_prob_sum at site 'z'"):
        SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, dmm.guide, *make_batch())


def test_attributes_equal_those_of_the_elbo() -> None:
    elbo = Trace_ELBO()
    ours = SequenceELBO(elbo)
    elbo.num_particles = 5
    assert ours.num_particles == 5


@pytest.mark.parametrize(
    ("elbo", "expected"),
    [(Trace_ELBO(), True), (JitTrace_ELBO(), False), (TraceMeanField_ELBO(), True), (None, False)],
)
def test_only_a_plain_elbo_is_replaced(elbo: Trace_ELBO | None, expected: bool) -> None:
    own = None if elbo else (lambda model, guide, *args: 0.0)
    optim = pyro.optim.Adam({})
    svi = GraphedSVI(lambda: None, lambda: None, optim, elbo or Trace_ELBO(), own)
    assert isinstance(getattr(svi._compute, "__self__", None), SequenceELBO) == expected
    assert isinstance(svi, SVI)


class _Counted(TorchDispatchMode):
    """Counts operators with launches on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Gradients are copied only because the recorder also holds them.
        if not (func.is_view or str(func).startswith(("aten.empty", "aten.new_empty", "aten.copy_"))):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _CountedGraphs(RecordedGraphs):
    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with _Counted() as counted:
            replay = super().capture(step)
        self.names = counted.names
        return replay


def test_the_number_of_operators_of_a_captured_step_does_not_grow() -> None:
    """Each operator adds about 3 us to a step on a GPU; noise has one for each time step."""
    graphs = _CountedGraphs()
    run, batch = Run(graphs), make_batch()
    for _ in range(2):
        run.step(*batch, 0.5)
    names = [name for name in graphs.names if name != "aten.normal_.default"]
    assert len(names) <= 57, sorted(names)
