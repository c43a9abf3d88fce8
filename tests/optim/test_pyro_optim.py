"""``PyroClippedAdam`` is bitwise equal to Pyro's ``ClippedAdam``."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim.clipped_adam import ClippedAdam as TheirClippedAdam
from torch import Tensor

from dmm_fast import use_backend
from dmm_fast.optim import PyroClippedAdam
from tests.helpers_optim import assert_same, give_grads


@pytest.fixture(autouse=True)
def reference_backend() -> Iterator[None]:
    """Use the reference, which has the same operations in the same order as Pyro."""
    with use_backend("reference"):
        yield


def model(x: Tensor) -> None:
    weight = pyro.param("weight", lambda: torch.zeros(3, 2))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc @ weight.t(), scale).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("net$$$q_loc", torch.randn(2))
    scale = pyro.param("net$$$q_scale", torch.ones(2), constraint=dist.constraints.positive)
    pyro.sample("loc", dist.Normal(loc, scale).to_event(1))


def fit(optim: Any, steps: int = 20) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and parameters of a few SVI steps from seed 1."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    x = torch.randn(8, 3)
    svi = SVI(model, guide, optim, Trace_ELBO())
    losses = [svi.step(x) for _ in range(steps)]
    return losses, {k: v.detach().clone() for k, v in pyro.get_param_store().items()}


def per_param(name: str) -> dict[str, Any]:
    return {"lr": 0.1, "lrd": 0.95} if name == "net.q_loc" else {"lr": 0.02, "clip_norm": 0.5}


def per_module(module: str, name: str) -> dict[str, Any]:
    return {"lr": 0.1 if (module, name) == ("net", "q_loc") else 0.02}


def clip_per_param(module: str, name: str) -> dict[str, Any]:
    return {"clip_norm": 0.3} if name == "q_loc" else {"clip_value": 0.2}


def their_optim(optim_args: Any, clip_args: Any = None) -> pyro.optim.PyroOptim:
    return pyro.optim.PyroOptim(TheirClippedAdam, optim_args, clip_args)


class TestPyroClippedAdam:
    @pytest.mark.parametrize(
        "optim_args", [{"lr": 0.05, "lrd": 0.99, "weight_decay": 0.1}, per_param, per_module]
    )
    @pytest.mark.parametrize("clip_args", [None, {"clip_norm": 0.3}, clip_per_param])
    def test_svi_equals_bitwise_pyro(self, optim_args: Any, clip_args: Any) -> None:
        ours, theirs = (make(optim_args, clip_args) for make in (PyroClippedAdam, their_optim))
        losses, params = fit(ours)
        state = copy.deepcopy(ours.get_state())
        their_losses, their_params = fit(theirs)
        assert losses == their_losses
        assert losses[-1] != losses[0]
        assert_same(params, their_params, "params")
        assert_same(state, theirs.get_state())

    @pytest.mark.parametrize(
        ("first", "then"),
        [(PyroClippedAdam, their_optim), (their_optim, PyroClippedAdam)],
        ids=["ours-theirs", "theirs-ours"],
    )
    def test_a_saved_state_continues_in_either(self, first: Any, then: Any, tmp_path: Path) -> None:
        options = {"lr": 0.05, "lrd": 0.9}
        losses, params = fit(first(options), steps=10)

        before = first(options)
        losses_before, _ = fit(before, steps=5)
        before.save(str(tmp_path / "optim"))
        pyro.get_param_store().save(str(tmp_path / "params"))
        noise = torch.get_rng_state()
        pyro.clear_param_store()

        pyro.set_rng_seed(1)
        x = torch.randn(8, 3)
        pyro.get_param_store().load(str(tmp_path / "params"))
        after = then({"lr": 123.0})
        after.load(str(tmp_path / "optim"))
        torch.set_rng_state(noise)
        svi = SVI(model, guide, after, Trace_ELBO())
        losses_after = [svi.step(x) for _ in range(5)]

        assert losses_before + losses_after == losses
        assert_same({k: v.detach() for k, v in pyro.get_param_store().items()}, params)

    def test_parameters_of_a_later_branch_join_with_their_own_count(self) -> None:
        def run(optim: pyro.optim.PyroOptim) -> dict[str, Any]:
            pyro.clear_param_store()
            pyro.set_rng_seed(2)
            a, b = (pyro.param(n, torch.randn(3)) for n in "ab")
            for i in range(6):
                used = [a] if i < 3 else [b, a]
                give_grads(used)
                optim(used)
            return {**optim.get_state(), "params": [a.detach(), b.detach()]}

        ours = run(PyroClippedAdam({"lr": 0.1, "lrd": 0.9}))
        assert_same(ours, run(their_optim({"lr": 0.1, "lrd": 0.9})))
        assert [ours[n]["state"][0]["step"] for n in "ab"] == [6, 3]

    def test_a_pending_state_is_used_once(self) -> None:
        def steps_after_one_more(optim: PyroClippedAdam) -> int:
            pyro.clear_param_store()
            p = pyro.param("p", torch.ones(3))
            give_grads([p])
            optim([p])
            return int(optim.optim_objs[p].state[p]["step"])

        before, after = PyroClippedAdam({}), PyroClippedAdam({})
        assert steps_after_one_more(before) == 1
        after.set_state(before.get_state())
        assert steps_after_one_more(after) == 2
        assert steps_after_one_more(after) == 1

    def test_an_invalid_state_stays_pending_and_the_parameter_unknown(self) -> None:
        p = pyro.param("p", torch.ones(3))
        give_grads([p])
        optim = PyroClippedAdam({"lr": 0.1})
        optim.set_state({"p": torch.optim.Adam([p]).state_dict()})
        for _ in range(2):
            with pytest.raises(TypeError, match=r"^clip_norm: "):
                optim([p])
        assert torch.equal(p, torch.ones(3))

    def test_bad_arguments_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"^optim_args: expected a dict or a function .* got int"):
            PyroClippedAdam(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^clip_args: expected a dict or a function .* got int"):
            PyroClippedAdam({}, 3)  # type: ignore[arg-type]
        for not_options in (0, np.array([1.0, 2.0])):
            with pytest.raises(TypeError, match=r"^clip_args: expected a dict or a function"):
                PyroClippedAdam({}, not_options)  # type: ignore[arg-type]
        with pytest.raises(
            TypeError, match=r"^params: expected an iterable of parameters, got one that is list"
        ):
            PyroClippedAdam({})([[]])  # type: ignore[list-item]
        p = pyro.param("p", torch.ones(3))
        with pytest.raises(ValueError, match=r"^lr: .* got -1.0$"):
            PyroClippedAdam({"lr": -1.0})([p])
        with pytest.raises(ValueError, match=r"^params: expected each parameter once, got 2"):
            PyroClippedAdam({})([p, p])
        with pytest.raises(TypeError, match=r"^arguments: expected params alone, got 1 more$"):
            PyroClippedAdam({})([p], lambda: 1.0)
