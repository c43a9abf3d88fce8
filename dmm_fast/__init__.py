"""Deep Markov Models in Pyro, fast.

``DMM`` is a drop-in for the ``DMM`` of Pyro's ``examples/dmm.py``; ``dmm_fast.nn`` holds its networks,
``dmm_fast.ops`` the functions below them, ``dmm_fast.infer`` training steps, evaluation and sampling.
"""

from dmm_fast.model import DMM
from dmm_fast.nn import Combiner, Emitter, GatedTransition, GaussianEmitter, InferenceNetwork
from dmm_fast.ops import BackendError, info, use_backend

__version__ = "0.1.0"

__all__ = [
    "DMM",
    "BackendError",
    "Combiner",
    "Emitter",
    "GatedTransition",
    "GaussianEmitter",
    "InferenceNetwork",
    "__version__",
    "info",
    "use_backend",
]
