"""The layout of compiled ops: ``[P, B, ...]`` with one particle dimension; single steps are ``[N, ...]``."""

from typing import Any

import torch
from torch import Size, Tensor

from dmm_fast.ops.schema._signature import Argument, Op, Signature, sizes_in

# The arguments of a call or of a compiled op, or its results.
Values = tuple[Any, ...]


def joint(first: Size, *others: Size) -> Size:
    """The common broadcast shape; equal shapes, the usual case, are recognised cheaply."""
    return first if all(other == first for other in others) else torch.broadcast_shapes(first, *others)


class Layout:
    """Conversion of an op's arguments to the layout of its compiled form, and of results to the user's."""

    def __init__(self, op: Op) -> None:
        # The number of trailing dimensions to keep, [T, D] or [D]; [..., B] or [...] come before them.
        self._kept = 2 if op.leading_argument.dims[0] in "Pp" else 1
        self._wide = [i for i, a in enumerate(op.arguments) if a.kind == "tensor" and a.dims[0] in "PpNn"]
        self._starts = [i for i, a in enumerate(op.arguments) if a.kind == "tensor" and a.dims[0] == "s"]
        self._leading = op.arguments.index(op.leading_argument)  # a start has its number of features
        self._weights = [i for i, a in enumerate(op.arguments) if a.kind == "weights"]
        self._masks = [i for i, a in enumerate(op.arguments) if a.kind == "mask"]

    def flatten(self, given: Values, full_starts: bool) -> tuple[list[Any], Size]:
        """The arguments of the compiled op, as views where strides allow it, and the leading dimensions.

        A start shared by all rows becomes ``[1, 1, width]``, or ``[P, B, width]`` with ``full_starts``.
        """
        values = list(given)
        lead = joint(*[given[i].shape[: -self._kept] for i in self._wide])
        for i in self._wide:
            tensor: Tensor = given[i]
            wide = tensor.expand(*lead, *tensor.shape[-self._kept :])
            if self._kept == 1:
                values[i] = wide.reshape(lead.numel(), tensor.shape[-1])
            else:
                values[i] = _with_one_particle_dimension(wide, lead)
        for i in self._starts:
            values[i] = _start(given[i], lead, given[self._leading].shape[-1], full_starts)
        for i in self._masks:
            values[i] = None if given[i] is None else given[i].to(torch.bool)
        for i in reversed(self._weights):
            values[i : i + 1] = given[i]
        return values, lead

    def restore(self, results: tuple[Tensor, ...], lead: Size) -> tuple[Tensor, ...]:
        """Results of the compiled op with the leading dimensions of the arguments."""
        flat = 1 if self._kept == 1 else 2
        return tuple([result.reshape(*lead, *result.shape[flat:]) for result in results])


def _start(tensor: Tensor, lead: Size, width: int, is_full: bool) -> Tensor:
    if is_full or tensor.shape[:-1].numel() != 1:
        return _with_one_particle_dimension(tensor.expand(*lead, width), lead)
    return tensor.reshape(-1).expand(width).view(1, 1, width)


def _with_one_particle_dimension(wide: Tensor, lead: Size) -> Tensor:
    """``wide [*lead, ...]`` with the particle dimensions of ``lead``, none or several, merged into one."""
    if len(lead) == 1:
        return wide.unsqueeze(0)
    return wide if len(lead) == 2 else wide.flatten(0, len(lead) - 2)


def bound_sizes(signature: Signature, given: Values) -> dict[str, int]:
    """The size of each letter, from the arguments of a compiled op."""
    sizes: dict[str, int] = {}
    for argument, value in zip(signature.flat_arguments, given, strict=True):
        if argument.kind == "tensor":
            letters = sizes_in(argument.dims.removeprefix("s"))
            for letter, size in zip(reversed(letters), reversed(value.shape), strict=False):
                sizes.setdefault(letter.upper(), size)
    return sizes


def shape_of(argument: Argument, sizes: dict[str, int]) -> list[int]:
    """The shape of an argument or a result of a compiled op."""
    return [sizes[letter.upper()] for letter in sizes_in(argument.dims)]
