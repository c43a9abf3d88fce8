"""The objective and the optimizer of a training run, from its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.infer import config_enumerate as enumerate_sites

from dmm_fast import check
from dmm_fast.infer import ImportanceELBO, SequenceELBO
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._ranges import ENUMERATED


def guide_and_elbo(dmm: DMM, config: TrainConfig) -> tuple[Callable[..., Any], ELBO]:
    """The ELBO that ``config.elbo`` names, and the guide in the form that this ELBO needs.

    Steps are to be taken within :func:`path_gradient`.

    Raises:
        TypeError: an argument has the wrong type.
    """
    check.kind("dmm", dmm, DMM)
    check.kind("config", config, TrainConfig)
    if config.elbo == "importance":
        return dmm.guide, ImportanceELBO(config.num_particles, config.gradient)
    if config.elbo not in ENUMERATED:
        plain = Trace_ELBO if config.elbo == "trace" else TraceMeanField_ELBO
        particles = {"num_particles": config.num_particles, "vectorize_particles": True}
        return dmm.guide, SequenceELBO(plain(max_plate_nesting=1, **particles))
    # Without max_plate_nesting Pyro runs the model once to find it, which would draw random numbers at the
    # first step of every process, so that a resumed run would differ from an uninterrupted one.
    kind = TraceTMC_ELBO if config.elbo == "tmc" else TraceEnum_ELBO
    guide = enumerate_sites(dmm.guide, default="parallel", num_samples=config.tmc_num_samples, expand=False)
    return guide, kind(max_plate_nesting=1)


@contextmanager
def path_gradient(dmm: DMM, config: TrainConfig) -> Iterator[None]:
    """Set ``dmm.path_gradient`` while entered if ``config`` asks for that of a plain ELBO; False on exit."""
    dmm.path_gradient = config.elbo == "trace" and config.gradient == "path"
    try:
        yield
    finally:
        dmm.path_gradient = False


_OF_GUIDE = ("rnn", "combiner", "iafs_modules", "h_0", "z_q_0")
"""The parts of a DMM whose parameters are those of its guide."""


def optimizer_of(config: TrainConfig, lr: float) -> PyroClippedAdam:
    """The optimizer that ``config`` describes, with the learning rate ``lr`` for its first step."""
    settings: dict[str, Any] = {
        "lr": lr,
        "betas": (config.beta1, config.beta2),
        "clip_norm": config.clip_norm,
        "lrd": config.lr_decay,
        "weight_decay": config.weight_decay,
        **({"capturable": True} if config.cuda else {}),
    }
    if config.guide_weight_decay is None:
        return PyroClippedAdam(settings)
    of_guide = {**settings, "weight_decay": config.guide_weight_decay}

    def settings_of(name: str) -> dict[str, Any]:
        # The name of a parameter is that in the DMM after the DMM's own.
        return of_guide if name.split(".")[1] in _OF_GUIDE else settings

    return PyroClippedAdam(settings_of)
