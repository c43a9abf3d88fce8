"""Trace_ELBO in few operations against Pyro's own, and how many a captured step has."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmm_fast.infer import GraphedSVI, SequenceELBO
from dmm_fast.infer import _sequence_elbo as module
from dmm_fast.model import DMM
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
    """Rows of a mini-batch that stands for more."""

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
    """A number of the user's own beside the sequences."""

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


OURS = (as_they_are, scaled, scaled_by_a_tensor, in_a_plate)
PYROS = (masked, scaled_by_rows, with_a_site, with_a_discrete_site, auto)
ELBOS: dict[str, Callable[[], Trace_ELBO]] = {
    "one": Trace_ELBO,
    "three in turn": lambda: Trace_ELBO(3),
    "three at once": lambda: Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=3),
    "three at once, nesting unknown": lambda: Trace_ELBO(3, vectorize_particles=True),
}


def loss_and_grads(make: Callable[[Trace_ELBO], Trace_ELBO], elbo: Trace_ELBO, wrap: Function) -> Any:
    """The loss of two calls, and the gradients they have accumulated."""
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
    compute = module.loss_and_gradients
    monkeypatch.setattr(module, "loss_and_gradients", lambda *args: calls.append(args) or compute(*args))
    theirs, their_grads = loss_and_grads(lambda elbo: elbo, ELBOS[kind](), wrap)
    assert not calls
    ours, our_grads = loss_and_grads(SequenceELBO, ELBOS[kind](), wrap)
    assert bool(calls) == (wrap in OURS)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        if grad is None:
            assert our_grads[name] is None
        else:
            torch.testing.assert_close(our_grads[name], grad, rtol=1e-5, atol=1e-5)


def test_validation_is_pyros() -> None:
    pyro.clear_param_store()
    dmm = small_dmm()

    def guide(*args: Any) -> Tensor:
        return torch.zeros(())

    with pyro.validation_enabled(True), pytest.warns(UserWarning, match="Found vars in model but not guide"):
        SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, guide, *make_batch())


def test_attributes_are_those_of_the_elbo() -> None:
    elbo = Trace_ELBO()
    ours = SequenceELBO(elbo)
    elbo.num_particles = 5
    assert ours.num_particles == 5


@pytest.mark.parametrize(
    ("elbo", "expected"),
    [(Trace_ELBO(), True), (JitTrace_ELBO(), False), (TraceMeanField_ELBO(), False), (None, False)],
)
def test_only_a_plain_elbo_is_replaced(elbo: Trace_ELBO | None, expected: bool) -> None:
    own = None if elbo else (lambda model, guide, *args: 0.0)
    optim = pyro.optim.Adam({})
    svi = GraphedSVI(lambda: None, lambda: None, optim, elbo or Trace_ELBO(), own)
    assert isinstance(getattr(svi._compute, "__self__", None), SequenceELBO) == expected
    assert isinstance(svi, SVI)


class _Counted(TorchDispatchMode):
    """Counts operators that a GPU would launch something for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Gradients are copied here only because the recorder holds them too.
        if not (func.is_view or str(func).startswith(("aten.empty", "aten.new_empty", "aten.copy_"))):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _CountedGraphs(RecordedGraphs):
    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with _Counted() as counted:
            replay = super().capture(step)
        self.names = counted.names
        return replay


def test_a_captured_step_has_no_more_operators_than_it_had() -> None:
    """Whoever adds one makes a GPU's step some 3 us longer; of the noise there is one for each time step."""
    graphs = _CountedGraphs()
    run, batch = Run(graphs), make_batch()
    for _ in range(2):
        run.step(*batch, 0.5)
    names = [name for name in graphs.names if name != "aten.normal_.default"]
    assert len(names) <= 57, sorted(names)
