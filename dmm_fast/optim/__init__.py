"""Optimizers: ``ClippedAdam`` as Pyro defines it, with all parameters updated in one call.

:class:`ClippedAdam` is a plain ``torch.optim.Optimizer``; :class:`PyroClippedAdam` is for
``pyro.infer.SVI``. The states of both are compatible with those of Pyro's classes in both directions.
"""

from dmm_fast.optim._clipped_adam import ClippedAdam, PyroClippedAdam

__all__ = ["ClippedAdam", "PyroClippedAdam"]
