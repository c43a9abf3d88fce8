"""Who is timed: Pyro's tutorial, ``dmm_fast``, and peers that do the same without Pyro."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from pyro.infer import TraceMeanField_ELBO
from pyro.optim import ClippedAdam, PyroOptim

from benchmarks.baseline import BaselineDMM
from benchmarks.peer_batched import BatchedContestant
from benchmarks.peer_torch import TorchContestant
from benchmarks.pyro_racer import AnyDMM, PyroContestant
from benchmarks.racer import OPTIMIZER, Contestant
from dmm_fast.infer import GraphedSVI
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam

JAX_IS_THERE = importlib.util.find_spec("jax") is not None and hasattr(os, "sched_setaffinity")
WITHOUT_JAX = "JAX is left out: it takes Linux and pip install -r benchmarks/requirements.txt"
LEFT_OUT = () if JAX_IS_THERE else (WITHOUT_JAX,)


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


def _jax() -> tuple[Contestant, ...]:
    """The peer in JAX where JAX is installed."""
    if not JAX_IS_THERE:
        return ()
    from benchmarks.peer_jax import JaxContestant

    return (JaxContestant(),)


BASELINE = PyroContestant("tutorial", _tutorial, _adam)
MENDED = PyroContestant("tutorial mended", _mended, _adam)
PEERS: tuple[Contestant, ...] = (TorchContestant(), *_jax())
OURS = (
    PyroContestant("dmm_fast", _ours, _batched_adam),
    PyroContestant("dmm_fast, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO),
)
# A step as it comes and a step from a CUDA graph: the same but for that.
CAPTURABLE = PyroContestant("dmm_fast, capturable", _ours, _capturable_adam)
GRAPHED = PyroContestant("dmm_fast, graphed", _ours, _capturable_adam, svi=GraphedSVI)
CONTESTANTS: tuple[Contestant, ...] = (BASELINE, MENDED, *PEERS, *OURS)


def gpu_peers(device: str) -> tuple[list[Contestant], dict[str, str]]:
    """The peers that race on a GPU, and why others do not."""
    return [TorchContestant(), BatchedContestant()], {}
