"""The objective and the optimizer of a training run, from its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.infer import config_enumerate as enumerate_sites

from dmm_fast import check
from dmm_fast.infer import SequenceELBO
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.training._config import TrainConfig


def guide_and_elbo(dmm: DMM, config: TrainConfig) -> tuple[Callable[..., Any], ELBO]:
    """The ELBO that ``config.elbo`` names, and the guide in the form that this ELBO needs.

    Raises:
        TypeError: an argument has the wrong type.
    """
    check.kind("dmm", dmm, DMM)
    check.kind("config", config, TrainConfig)
    if config.elbo in ("trace", "mean_field"):
        return dmm.guide, SequenceELBO(Trace_ELBO() if config.elbo == "trace" else TraceMeanField_ELBO())
    # Without max_plate_nesting Pyro runs the model once to find it, which would draw random numbers at the
    # first step of every process, so that a resumed run would differ from an uninterrupted one.
    kind = TraceTMC_ELBO if config.elbo == "tmc" else TraceEnum_ELBO
    guide = enumerate_sites(dmm.guide, default="parallel", num_samples=config.tmc_num_samples, expand=False)
    return guide, kind(max_plate_nesting=1)


def optimizer_of(config: TrainConfig, lr: float) -> PyroClippedAdam:
    """The optimizer that ``config`` describes, with the learning rate ``lr`` for its first step."""
    capturable = {"capturable": True} if config.cuda else {}
    return PyroClippedAdam(
        {
            "lr": lr,
            "betas": (config.beta1, config.beta2),
            "clip_norm": config.clip_norm,
            "lrd": config.lr_decay,
            "weight_decay": config.weight_decay,
            **capturable,
        }
    )
