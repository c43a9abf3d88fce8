"""A stand-in for CUDA graphs on the CPU, which replays the operators of a step on the same memory."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dmm_fast import check
from dmm_fast.infer import GraphedSVI
from dmm_fast.optim import PyroClippedAdam
from tests.helpers_model import small_dmm

READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}
"""What waits for a GPU, whose capture it would end."""


class _Recorder(TorchDispatchMode):
    """Runs and records every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(f"{func} within a capture")
        kwargs = kwargs or {}
        before = _aliases((args, kwargs))
        result = func(*args, **kwargs)
        self.calls.append((func, *before, _aliases(result)))
        return result


def _aliases(tree: Any) -> Any:
    """The same tensors with their present shapes, detached."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), tree)


class RecordedGraphs:
    """Stand-in for CUDA graphs. The first replay returns the results of the capture."""

    def __init__(self) -> None:
        self.runs = self.captures = self.replays = 0

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        self.runs += 1
        return step()

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # As on a GPU, reading a value ends the capture with an error.
        with patch.object(check, "values_are_readable", lambda tensor: False), _Recorder() as recorder:
            loss = step()
        self.captures += 1
        fresh = True

        def replay() -> Tensor:
            nonlocal fresh
            if not fresh:
                for call in recorder.calls:
                    _again(*call)
            fresh = False
            self.replays += 1
            return loss

        return replay


def _again(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Repeat a call on the same memory; views already exist."""
    if func.is_view or torch.Tag.inplace_view in func.tags:
        return
    new = func(*args, **kwargs)
    if func._schema.is_mutable:
        return
    for old, now in zip(tree_leaves(result), tree_leaves(new), strict=True):
        if isinstance(old, Tensor):
            old.copy_(now)


ADAM = {"lr": 0.01, "lrd": 0.9, "weight_decay": 0.1, "clip_norm": 1.0, "capturable": True}


def adam(**changes: Any) -> PyroClippedAdam:
    return PyroClippedAdam({**ADAM, **changes})


def set_rates(optim: PyroClippedAdam, rate: float) -> None:
    for optimizer in optim.optim_objs.values():
        optimizer.param_groups[0]["lr"].fill_(rate)


class Run:
    """The training of a DMM with a parameter store of its own, from a seed, with or without graphs."""

    def __init__(self, graphs: RecordedGraphs | None, elbo: Any = Trace_ELBO, **kwargs: Any) -> None:
        layers = {name: kwargs.pop(name) for name in list(kwargs) if name not in ("max_graphs", "warm_up")}
        self.dmm = small_dmm(**layers)
        self.optim = adam()
        self.store: Any = None
        arguments = (self.dmm.model, self.dmm.guide, self.optim, elbo())
        self.svi: SVI = (
            SVI(*arguments) if graphs is None else GraphedSVI(*arguments, capturer=graphs, **kwargs)
        )
        self.random = torch.get_rng_state()

    def step(self, *args: Any, **kwargs: Any) -> float:
        return float(self.within(lambda: self.svi.step(*args, **kwargs)))

    def within(self, act: Callable[[], Any]) -> Any:
        """Call a function with the parameters and random numbers of this run."""
        torch.set_rng_state(self.random)
        with pyro.get_param_store().scope(self.store) as self.store:
            result = act()
        self.random = torch.get_rng_state()
        return result


def assert_same_bits(one: Run, other: Run) -> None:
    for (name, p), q in zip(one.dmm.named_parameters(), other.dmm.parameters(), strict=True):
        assert torch.equal(p, q), name
        mine, theirs = (run.optim.optim_objs[x] for run, x in ((one, p), (other, q)))
        assert torch.equal(mine.param_groups[0]["lr"], theirs.param_groups[0]["lr"])
        for key, value in theirs.state[q].items():
            assert torch.equal(mine.state[p][key], value), f"{name}, {key}"
