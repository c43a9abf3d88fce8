"""Training steps, evaluation and sampling with a DMM.

:class:`GraphedSVI` trains a model; :class:`SequenceELBO` is a loss for it and for ``pyro.infer.SVI`` that
needs few operations, and :class:`ImportanceELBO` one that is a tighter bound. :func:`log_weights`,
:func:`importance_nll`, :func:`evaluate_elbo` and :func:`evaluate_importance_nll` estimate bounds and
likelihoods of data. :func:`latents`, :func:`reconstruct` and :func:`impute` draw from the posterior,
:func:`generate` and :func:`sample_prior` from the model itself, and :func:`forecast` and
:func:`counterfactual` from the model given data up to some step.
:class:`DataParallel` spreads training and evaluation over several processes.

Every log-likelihood is in nats. Random numbers come from torch's global generator; a function that is given a
``seed`` or a ``generator`` leaves it untouched. Evaluation and sampling put every module of the model into
evaluation mode, without dropout, and restore each module's mode afterwards.
"""

from dmm_fast.infer._chain import Trajectory
from dmm_fast.infer._data_parallel import DataParallel, RankLostError
from dmm_fast.infer._evaluation import (
    Batch,
    ElboEvaluation,
    evaluate_elbo,
    evaluate_importance_nll,
    importance_nll,
    log_weights,
)
from dmm_fast.infer._graphed_svi import CaptureError, GraphedSVI
from dmm_fast.infer._importance_elbo import ImportanceELBO
from dmm_fast.infer._posterior_draws import Latents, impute, latents, reconstruct
from dmm_fast.infer._roll_out import counterfactual, forecast, generate, sample_prior
from dmm_fast.infer._sequence_elbo import SequenceELBO

__all__ = [
    "Batch",
    "CaptureError",
    "DataParallel",
    "ElboEvaluation",
    "GraphedSVI",
    "ImportanceELBO",
    "Latents",
    "RankLostError",
    "SequenceELBO",
    "Trajectory",
    "counterfactual",
    "evaluate_elbo",
    "evaluate_importance_nll",
    "forecast",
    "generate",
    "importance_nll",
    "impute",
    "latents",
    "log_weights",
    "reconstruct",
    "sample_prior",
]
