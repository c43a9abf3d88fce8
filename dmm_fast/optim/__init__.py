"""Optimizers: ``ClippedAdam`` as Pyro defines it, with all parameters stepped at once.

:class:`ClippedAdam` is a plain ``torch.optim.Optimizer``; :class:`PyroClippedAdam` is what
``pyro.infer.SVI`` takes. The states of both are those of Pyro's classes and load either way.
"""

from dmm_fast.optim._clipped_adam import ClippedAdam, PyroClippedAdam

__all__ = ["ClippedAdam", "PyroClippedAdam"]
