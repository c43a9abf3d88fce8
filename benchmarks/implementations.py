"""Implementations to time: Pyro's tutorial, ``dmm_fast``, and peers that compute the same without Pyro."""

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
from benchmarks.peer_batched import BatchedImplementation, compiled
from benchmarks.peer_graphed import GraphedImplementation
from benchmarks.peer_torch import TorchImplementation
from benchmarks.pyro_stepper import AnyDMM, PyroImplementation
from benchmarks.stepper import OPTIMIZER, Implementation
from dmm_fast.infer import GraphedSVI, SequenceELBO
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam

WITHOUT_JAX = "it requires Linux and pip install -r benchmarks/requirements.txt"
WITHOUT_A_GPU = "CUDA graphs require a GPU"


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
def jax_peers() -> tuple[tuple[Implementation, ...], str]:
    """The peer in JAX, or the reason why it is skipped. Importing JAX takes seconds."""
    if importlib.util.find_spec("jax") is None or not hasattr(os, "sched_setaffinity"):
        return (), WITHOUT_JAX
    try:
        from benchmarks.peer_jax import JaxImplementation
    except Exception as error:  # a broken JAX must not stop the other implementations
        return (), f"it cannot be imported, {_in_a_line(error)}"
    return (JaxImplementation(),), ""


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


BASELINE = PyroImplementation("tutorial", _tutorial, _adam)
MENDED = PyroImplementation("tutorial mended", _mended, _adam)
BATCHED = BatchedImplementation()
COMPILED = BatchedImplementation("PyTorch, batched, compiled", compiled)
BATCHED_GRAPHED = GraphedImplementation()
COMPILED_GRAPHED = GraphedImplementation("PyTorch, batched, compiled, CUDA graph", compiled)
# The peers in PyTorch; the second tuple adds those that are worthwhile on a GPU only.
PEERS: tuple[Implementation, ...] = (TorchImplementation(), BATCHED)
GPU_PEERS: tuple[Implementation, ...] = (*PEERS, COMPILED, BATCHED_GRAPHED, COMPILED_GRAPHED)
OURS = (
    PyroImplementation("dmm_fast", _ours, _batched_adam),
    PyroImplementation("dmm_fast, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO),
    PyroImplementation("dmm_fast, SequenceELBO", _ours, _batched_adam, loss=SequenceELBO),
    PyroImplementation(
        "dmm_fast, SequenceELBO, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO, loss=SequenceELBO
    ),
)
# The same step launched eagerly and replayed from a CUDA graph.
CAPTURABLE = PyroImplementation("dmm_fast, capturable", _ours, _capturable_adam)
GRAPHED = PyroImplementation("dmm_fast, graphed", _ours, _capturable_adam, svi=GraphedSVI)
# As GRAPHED, with the weight gradients on a second stream of the graph.
OVERLAPPED = PyroImplementation(
    "dmm_fast, graphed, two streams", _ours, _capturable_adam, svi=partial(GraphedSVI, overlap=True)
)
IN_STEPS = PyroImplementation("dmm_fast, a site a time step", _ours_in_steps, _batched_adam)
EVERY_OURS = (*OURS, IN_STEPS, CAPTURABLE, GRAPHED, OVERLAPPED)
IMPLEMENTATIONS: tuple[Implementation, ...] = (BASELINE, MENDED, *PEERS, *OURS)


def starting_parameters(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters that all implementations start from: the tutorial's initialisation."""
    pyro.set_rng_seed(0)
    state: dict[str, Tensor] = BASELINE.module(sizes).state_dict()
    return state


def skipped_on(device: torch.device) -> dict[str, str]:
    """The ``GPU_PEERS`` that are skipped on ``device``: their names with the reason."""
    graphed = () if device.type == "cuda" else (BATCHED_GRAPHED, COMPILED_GRAPHED)
    return {peer.name: WITHOUT_A_GPU for peer in graphed}
