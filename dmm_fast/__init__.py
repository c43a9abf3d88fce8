"""Deep Markov Models in Pyro, fast.

``DMM`` is a drop-in replacement for the ``DMM`` of Pyro's ``examples/dmm.py``. ``dmm_fast.nn`` has its
networks, ``dmm_fast.ops`` the fused functions that compute them, ``dmm_fast.distributions`` the distributions
of its sites, ``dmm_fast.infer`` training steps, evaluation and sampling, ``dmm_fast.optim`` the optimizer,
``dmm_fast.training`` whole training runs with checkpoints, ``dmm_fast.data`` data sets, and
``dmm_fast.music`` plots and MIDI files. ``import dmm_fast`` gives access to all of them: modules that a model
does not need are imported when they are first used.
"""

from typing import TYPE_CHECKING

from dmm_fast._lazy import lazy_attributes
from dmm_fast.model import DMM
from dmm_fast.nn import Combiner, Emitter, GatedTransition, GaussianEmitter, InferenceNetwork
from dmm_fast.ops import BackendError, info, use_backend
from dmm_fast.triton import autotune

__version__ = "0.1.0"

# Without modules, so that `from dmm_fast import *` needs no extras and defines no names such as `data`.
__all__ = [
    "DMM",
    "BackendError",
    "ClippedAdam",
    "Combiner",
    "Emitter",
    "GatedTransition",
    "GaussianEmitter",
    "GraphedSVI",
    "InferenceNetwork",
    "PyroClippedAdam",
    "__version__",
    "autotune",
    "info",
    "use_backend",
]

_HOMES = {
    **{name: name for name in ("data", "distributions", "infer", "music", "nn", "ops", "optim", "training")},
    "ClippedAdam": "optim",
    "GraphedSVI": "infer",
    "PyroClippedAdam": "optim",
}

# Type checkers read the imports. `__getattr__` is hidden from them: it would type every wrong name as Any.
if TYPE_CHECKING:
    from dmm_fast import data as data
    from dmm_fast import distributions as distributions
    from dmm_fast import infer as infer
    from dmm_fast import music as music
    from dmm_fast import nn as nn
    from dmm_fast import ops as ops
    from dmm_fast import optim as optim
    from dmm_fast import training as training
    from dmm_fast.infer import GraphedSVI
    from dmm_fast.optim import ClippedAdam, PyroClippedAdam
else:
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
