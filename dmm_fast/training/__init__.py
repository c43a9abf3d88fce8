"""Training runs with a DMM: settings, annealing, evaluation, checkpoints, exact resumption.

:func:`train` runs what a :class:`TrainConfig` says. A checkpoint is one safetensors file;
:func:`load_dmm` reads the model in it. :func:`training_curve` draws the metrics that :func:`read_metrics`
reads. Names that depend on extras (safetensors, matplotlib) are imported when they are first used.
"""

from typing import TYPE_CHECKING

from dmm_fast._lazy import lazy_attributes
from dmm_fast.training._config import TrainConfig
from dmm_fast.training._interrupt import TrainingInterrupted
from dmm_fast.training._runlog import read_metrics

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "NonFiniteLossError",
    "TrainConfig",
    "Trainer",
    "TrainingInterrupted",
    "load_checkpoint",
    "load_dmm",
    "load_model",
    "load_optimizer",
    "read_metrics",
    "save_checkpoint",
    "save_model",
    "save_optimizer",
    "train",
    "training_curve",
]

_HOMES = {
    **dict.fromkeys(("Checkpoint", "CheckpointError", "load_checkpoint", "save_checkpoint"), "_checkpoint"),
    **dict.fromkeys(("load_dmm", "load_model", "load_optimizer"), "_checkpoint"),
    **dict.fromkeys(("save_model", "save_optimizer"), "_checkpoint"),
    **dict.fromkeys(("NonFiniteLossError", "Trainer", "train"), "_trainer"),
    "training_curve": "_curve",
}

# Type checkers read the imports; see the package above.
if TYPE_CHECKING:
    from dmm_fast.training._checkpoint import (
        Checkpoint,
        CheckpointError,
        load_checkpoint,
        load_dmm,
        load_model,
        load_optimizer,
        save_checkpoint,
        save_model,
        save_optimizer,
    )
    from dmm_fast.training._curve import training_curve
    from dmm_fast.training._trainer import NonFiniteLossError, Trainer, train
else:
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
