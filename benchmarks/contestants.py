"""Who is timed: Pyro's tutorial, ``dmm_fast``, and peers that do the same without Pyro."""

import importlib.util
import os
from collections.abc import Mapping
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
from benchmarks.racer import JAX_NAME, OPTIMIZER, Contestant
from dmm_fast.infer import GraphedSVI
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


def _jax() -> tuple[tuple[Contestant, ...], str]:
    """The peer in JAX where JAX is installed, else why it is left out."""
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
JAX, WHY_NO_JAX = _jax()
LEFT_OUT = (f"JAX is left out: {WHY_NO_JAX}",) if WHY_NO_JAX else ()
PEERS: tuple[Contestant, ...] = (TorchContestant(), BATCHED, *JAX)
# All of PEERS, and what pays on a GPU alone.
GPU_PEERS: tuple[Contestant, ...] = (
    TorchContestant(),
    BATCHED,
    COMPILED,
    BATCHED_GRAPHED,
    COMPILED_GRAPHED,
    *JAX,
)
OURS = (
    PyroContestant("dmm_fast", _ours, _batched_adam),
    PyroContestant("dmm_fast, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO),
)
# A step as it comes and a step from a CUDA graph: the same but for that.
CAPTURABLE = PyroContestant("dmm_fast, capturable", _ours, _capturable_adam)
GRAPHED = PyroContestant("dmm_fast, graphed", _ours, _capturable_adam, svi=GraphedSVI)
EVERY_OURS = (*OURS, CAPTURABLE, GRAPHED)
CONTESTANTS: tuple[Contestant, ...] = (BASELINE, MENDED, *PEERS, *OURS)


def starting_parameters(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters that all start from: the tutorial's initialisation."""
    pyro.set_rng_seed(0)
    state: dict[str, Tensor] = BASELINE.module(sizes).state_dict()
    return state


def peers_on(device: torch.device) -> tuple[tuple[Contestant, ...], dict[str, str]]:
    """Those of ``GPU_PEERS`` that may run on ``device``, and why the others, by their names, do not."""
    why: dict[str, str] = {}
    if device.type != "cuda":
        why |= {peer.name: WITHOUT_A_GPU for peer in (BATCHED_GRAPHED, COMPILED_GRAPHED)}
    if WHY_NO_JAX:
        why[JAX_NAME] = WHY_NO_JAX
    return tuple(peer for peer in GPU_PEERS if peer.name not in why), why
