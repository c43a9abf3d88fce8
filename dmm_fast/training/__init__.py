"""Training runs with a DMM: settings, annealing, evaluation, checkpoints, exact resumption.

:func:`train` trains a model with the settings of a :class:`TrainConfig`. A checkpoint is one safetensors
file; :func:`load_dmm` loads its model. :func:`read_metrics` reads the metrics of a run, and
:func:`training_curve` plots them. Names that depend on extras (safetensors, matplotlib) are imported when
they are first used.
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

# Type checkers read these imports; at run time the names are resolved lazily, as in dmm_fast/__init__.py.
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
