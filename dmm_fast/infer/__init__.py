"""Training steps, evaluation and sampling with a DMM.

:class:`GraphedSVI` trains one; :class:`SequenceELBO` makes the loss that it and ``pyro.infer.SVI`` can take
in few operations. :func:`log_weights`, :func:`importance_nll`, :func:`evaluate_elbo` and
:func:`evaluate_importance_nll` say how likely data are. :func:`latents`, :func:`reconstruct`,
:func:`forecast` and :func:`generate` draw from the posterior and from the model.

Every log-likelihood is in nats. Randomness is torch's global generator; a function with ``seed`` leaves it
untouched where one is given. Evaluation and sampling put every module of the model into evaluation mode,
without dropout, and give each the mode it had back.
"""

from dmm_fast.infer._evaluation import (
    Batch,
    ElboEvaluation,
    evaluate_elbo,
    evaluate_importance_nll,
    importance_nll,
    log_weights,
)
from dmm_fast.infer._graphed_svi import CaptureError, GraphedSVI
from dmm_fast.infer._sampling import Latents, forecast, generate, latents, reconstruct
from dmm_fast.infer._sequence_elbo import SequenceELBO

__all__ = [
    "Batch",
    "CaptureError",
    "ElboEvaluation",
    "GraphedSVI",
    "Latents",
    "SequenceELBO",
    "evaluate_elbo",
    "evaluate_importance_nll",
    "forecast",
    "generate",
    "importance_nll",
    "latents",
    "log_weights",
    "reconstruct",
]
