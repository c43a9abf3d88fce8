"""Training steps, evaluation and sampling with a DMM.

:class:`GraphedSVI` trains one; :class:`SequenceELBO` makes the loss that it and ``pyro.infer.SVI`` can take
in few operations. :func:`log_weights`, :func:`importance_nll`, :func:`evaluate_elbo` and
:func:`evaluate_importance_nll` say how likely data are. :func:`latents`, :func:`reconstruct` and
:func:`impute` draw from the posterior, :func:`generate` and :func:`sample_prior` from the model itself,
:func:`forecast` and :func:`counterfactual` from the model given data up to some step.

Every log-likelihood is in nats. Randomness is torch's global generator; a function with ``seed`` and
``generator`` leaves it untouched where one of them is given. Evaluation and sampling put every module of the
model into evaluation mode, without dropout, and give each the mode it had back.
"""

from dmm_fast.infer._chain import Trajectory
from dmm_fast.infer._evaluation import (
    Batch,
    ElboEvaluation,
    evaluate_elbo,
    evaluate_importance_nll,
    importance_nll,
    log_weights,
)
from dmm_fast.infer._graphed_svi import CaptureError, GraphedSVI
from dmm_fast.infer._posterior_draws import Latents, impute, latents, reconstruct
from dmm_fast.infer._roll_out import counterfactual, forecast, generate, sample_prior
from dmm_fast.infer._sequence_elbo import SequenceELBO

__all__ = [
    "Batch",
    "CaptureError",
    "ElboEvaluation",
    "GraphedSVI",
    "Latents",
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
