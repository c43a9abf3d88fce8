"""Who is timed: Pyro's tutorial, ``dmm_fast``, and peers that do the same without Pyro."""

from collections.abc import Mapping
from typing import Any

from pyro.infer import TraceMeanField_ELBO
from pyro.optim import ClippedAdam, PyroOptim

from benchmarks.baseline import BaselineDMM
from benchmarks.peer_torch import TorchContestant
from benchmarks.pyro_racer import AnyDMM, PyroContestant
from benchmarks.racer import OPTIMIZER, Contestant
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam


def _adam() -> PyroOptim:
    return ClippedAdam(dict(OPTIMIZER))


def _batched_adam() -> PyroOptim:
    return PyroClippedAdam(dict(OPTIMIZER))


def _tutorial(sizes: Mapping[str, Any]) -> AnyDMM:
    return BaselineDMM(**sizes)


def _mended(sizes: Mapping[str, Any]) -> AnyDMM:
    return BaselineDMM(**sizes, mended=True)


def _ours(sizes: Mapping[str, Any]) -> AnyDMM:
    return DMM(**sizes)


BASELINE = PyroContestant("tutorial", _tutorial, _adam)
MENDED = PyroContestant("tutorial mended", _mended, _adam)
PEERS: tuple[Contestant, ...] = (TorchContestant(),)
OURS = (
    PyroContestant("dmm_fast", _ours, _batched_adam),
    PyroContestant("dmm_fast, analytic KL", _ours, _batched_adam, TraceMeanField_ELBO),
)
CONTESTANTS: tuple[Contestant, ...] = (BASELINE, MENDED, *PEERS, *OURS)
