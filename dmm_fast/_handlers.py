"""Inspection of the Pyro effect handlers that are active around a model or a guide."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import pyro
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from dmm_fast import check

_M = TypeVar("_M", bound=Messenger)


def _around(kind: type[_M]) -> Iterator[_M]:
    return (handler for handler in _PYRO_STACK if isinstance(handler, kind))


def rows_plate(B: int) -> AbstractContextManager[object]:
    """The plate of the rows of a mini-batch: ``z_minibatch``, unless an enclosing plate has this dimension.

    Within ``pyro.plate("data", N, subsample_size=B)`` the rows belong to that plate, and its scale N / B is
    applied once to each.

    Raises:
        ValueError: an enclosing plate has the dimension of the rows and another size.
    """
    for plate in _around(IndepMessenger):
        if plate.dim == -1 and plate.name != "z_minibatch":
            rows = getattr(plate, "subsample_size", plate.size)
            if rows != B:
                expected = (
                    f"as many rows as the mini-batch inside it, {B} (subsample_size={B}, or subsample= with "
                    f"the mini-batch's indices), or a dimension left of the rows (dim=-2)"
                )
                check.fail(f"plate {plate.name!r}", expected, f"{rows} rows at dim=-1")
            return nullcontext()
    return pyro.plate("z_minibatch", B)


def rows_in(mini_batch: object) -> Tensor | None:
    """``[B]`` bool: the rows of ``mini_batch`` that no enclosing ``poutine.mask`` masks out.

    None if no enclosing mask is a tensor over rows.
    """
    rows: Tensor | None = None
    for handler in _around(MaskMessenger):
        # A mask that is a Python bool concerns no data: Predictive uses it to skip log-densities.
        if isinstance(handler.mask, Tensor) and isinstance(mini_batch, Tensor) and mini_batch.dim() > 0:
            mask: Tensor = handler.mask
            B = mini_batch.shape[0]
            if mask.dim() > 0 and mask.shape[-1] in (1, B):
                # Dimensions left of the rows are particles, which share the data.
                mask = mask.expand(*mask.shape[:-1], B).reshape(-1, B).any(0)
                rows = mask if rows is None else rows & mask
    return rows


def refuse_enumeration() -> None:
    """Refuse a site over whole sequences under enumeration.

    Raises:
        ValueError: the program runs under ``poutine.enum``, as in ``TraceTMC_ELBO`` and ``TraceEnum_ELBO``.
    """
    if next(_around(EnumMessenger), None) is not None:
        check.fail(
            "per_step_sites",
            "True under TraceTMC_ELBO and TraceEnum_ELBO, which combine the draws of each time step",
            "False: with one site per sequence they would compute another estimator",
        )


def replayed_sites() -> set[str]:
    """The names of the sites that a guide has drawn for the running model."""
    traces = [handler.trace for handler in _around(ReplayMessenger)]
    return {name for trace in traces if trace is not None for name in trace.nodes}
