"""Objectives that a training run can have, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.infer import config_enumerate as enumerate_sites

from dmm_fast import check
from dmm_fast.infer import SequenceELBO
from dmm_fast.model import DMM
from dmm_fast.training._config import TrainConfig


def guide_and_elbo(dmm: DMM, config: TrainConfig) -> tuple[Callable[..., Any], ELBO]:
    """The ELBO that ``config.elbo`` names, and the guide as it takes it.

    Raises:
        TypeError: an argument is of another kind.
    """
    check.kind("dmm", dmm, DMM)
    check.kind("config", config, TrainConfig)
    if config.elbo in ("trace", "mean_field"):
        return dmm.guide, SequenceELBO(Trace_ELBO() if config.elbo == "trace" else TraceMeanField_ELBO())
    # Left to find the nesting itself, Pyro runs the model once, which would draw random numbers
    # at the first step of every process and so make a resumed run another one.
    kind = TraceTMC_ELBO if config.elbo == "tmc" else TraceEnum_ELBO
    guide = enumerate_sites(dmm.guide, default="parallel", num_samples=config.tmc_num_samples, expand=False)
    return guide, kind(max_plate_nesting=1)
