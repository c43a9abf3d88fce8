"""Deep Markov Models in Pyro, fast.

``DMM`` is a drop-in for the ``DMM`` of Pyro's ``examples/dmm.py``; ``dmm_fast.nn`` holds its networks,
``dmm_fast.ops`` the functions below them, ``dmm_fast.infer`` training steps, evaluation and sampling,
``dmm_fast.optim`` the optimizer. ``import dmm_fast`` is enough for each: what a model does not need is
imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dmm_fast.model import DMM
from dmm_fast.nn import Combiner, Emitter, GatedTransition, GaussianEmitter, InferenceNetwork
from dmm_fast.ops import BackendError, info, use_backend

__version__ = "0.1.0"

# No modules: `from dmm_fast import *` must neither need the extras nor bring names such as `data`.
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
    "info",
    "use_backend",
]

_LAZY_MODULES = ("checkpoint", "config", "data", "elbo", "infer", "midi", "optim", "plots", "train")
_LAZY_CLASSES = {"ClippedAdam": "optim", "GraphedSVI": "infer", "PyroClippedAdam": "optim"}

# Type checkers read the imports. They do not see `__getattr__`: it would make every wrong name an Any.
if TYPE_CHECKING:
    from dmm_fast import checkpoint as checkpoint
    from dmm_fast import config as config
    from dmm_fast import data as data
    from dmm_fast import elbo as elbo
    from dmm_fast import infer as infer
    from dmm_fast import midi as midi
    from dmm_fast import optim as optim
    from dmm_fast import plots as plots
    from dmm_fast import train as train
    from dmm_fast.infer import GraphedSVI
    from dmm_fast.optim import ClippedAdam, PyroClippedAdam
else:

    def __getattr__(name: str) -> object:
        """Import what is used for the first time; `import_module` makes a module an attribute."""
        if name in _LAZY_MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _LAZY_CLASSES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_LAZY_CLASSES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY_MODULES, *_LAZY_CLASSES})
