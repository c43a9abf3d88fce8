"""Who is timed: Pyro's tutorial, ``dmm_fast``, and peers that do the same without Pyro."""

import importlib.util
import os
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.optim import ClippedAdam, PyroOptim
from torch import Tensor

from benchmarks.baseline import BaselineDMM
from benchmarks.peer_batched import BatchedContestant, compiled
from benchmarks.peer_graphed import GraphedContestant
from benchmarks.peer_torch import TorchContestant
from benchmarks.pyro_racer import AnyDMM, PyroContestant
from benchmarks.racer import OPTIMIZER, Contestant
from dmm_fast.infer import GraphedSVI, SequenceELBO
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam

WITHOUT_JAX = "it takes Linux and pip install -r benchmarks/requirements.txt"
WITHOUT_A_GPU = "CUDA graphs take a GPU"


def _adam() -> PyroOptim:
    return ClippedAdam(dict(OPTIMIZER))


def _batched_adam() -> PyroOptim:
    return PyroClippedAdam(dict(OPTIMIZER))


def _capturable_adam() -> PyroOptim:
    return PyroClippedAdam({**OPTIMIZER, "capturable": True})


def _tutorial(sizes: Mapping[str, Any]) -> AnyDMM:
    return BaselineDMM(**sizes)


def _mended(sizes: Mapping[str, Any]) -> AnyDMM:
    return BaselineDMM(**sizes, mended=True)


def _ours(sizes: Mapping[str, Any]) -> AnyDMM:
    return DMM(**sizes)


def _ours_in_steps(sizes: Mapping[str, Any]) -> AnyDMM:
    return DMM(**sizes, per_step_sites=True)


@cache
def jax_peers() -> tuple[tuple[Contestant, ...], str]:
    """The peer in JAX where JAX is installed, else why it is left out. Importing JAX takes seconds."""
    if importlib.util.find_spec("jax") is None or not hasattr(os, "sched_setaffinity"):
        return (), WITHOUT_JAX
    try:
        from benchmarks.peer_jax import JaxContestant
    except Exception as error:  # a broken JAX stops nobody else
        return (), f"it cannot be imported, {_in_a_line(error)}"
    return (JaxContestant(),), ""


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


BASELINE = PyroContestant("tutorial", _tutorial, _adam)
MENDED = PyroContestant("tutorial mended", _mended, _adam)
BATCHED = BatchedContestant()
COMPILED = BatchedContestant("PyTorch, batched, compiled", compiled)
BATCHED_GRAPHED = GraphedContestant()
COMPILED_GRAPHED = GraphedContestant("PyTorch, batched, compiled, CUDA graph", compiled)
# The peers in PyTorch, and with them those that pay on a GPU alone.
PEERS: tuple[Contestant, ...] = (TorchContestant(), BATCHED)
GPU_PEERS: tuple[Contestant, ...] = (*PEERS, COMPILED, BATCHED_GRAPHED, COMPILED_GRAPHED)
OURS = (
    PyroContestant("dmm_fast", _ours, _batched_adam),
    PyroContestant("dmm_fast, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO),
    PyroContestant("dmm_fast, SequenceELBO", _ours, _batched_adam, loss=SequenceELBO),
    PyroContestant(
        "dmm_fast, SequenceELBO, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO, loss=SequenceELBO
    ),
)
# A step as it comes and a step from a CUDA graph: the same but for that.
CAPTURABLE = PyroContestant("dmm_fast, capturable", _ours, _capturable_adam)
GRAPHED = PyroContestant("dmm_fast, graphed", _ours, _capturable_adam, svi=GraphedSVI)
# The same with gradients of weights on a second stream of the graph.
OVERLAPPED = PyroContestant(
    "dmm_fast, graphed, two streams", _ours, _capturable_adam, svi=partial(GraphedSVI, overlap=True)
)
IN_STEPS = PyroContestant("dmm_fast, a site a time step", _ours_in_steps, _batched_adam)
EVERY_OURS = (*OURS, IN_STEPS, CAPTURABLE, GRAPHED, OVERLAPPED)
CONTESTANTS: tuple[Contestant, ...] = (BASELINE, MENDED, *PEERS, *OURS)


def starting_parameters(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters that all start from: the tutorial's initialisation."""
    pyro.set_rng_seed(0)
    state: dict[str, Tensor] = BASELINE.module(sizes).state_dict()
    return state


def left_out_on(device: torch.device) -> dict[str, str]:
    """Why some of ``GPU_PEERS``, by their names, do not run on ``device``."""
    graphed = () if device.type == "cuda" else (BATCHED_GRAPHED, COMPILED_GRAPHED)
    return {peer.name: WITHOUT_A_GPU for peer in graphed}
