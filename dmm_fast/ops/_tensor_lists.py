"""Checks of parallel lists of tensors that an op changes in place: equal properties, disjoint memory.

An optimizer step has hundreds of tensors. Common properties are checked for all at once, by ``map``; only if
this check fails are the tensors examined one by one.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import add, attrgetter, gt
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from dmm_fast import check

Lists: TypeAlias = Mapping[str, Sequence[Tensor]]

_dtype, _device, _bytes = attrgetter("dtype"), attrgetter("device"), attrgetter("nbytes")


def check_alike(lists: Lists) -> None:
    """Check that all lists have the same length and strided tensors of one floating dtype on one device.

    Each tensor must have the shape of the tensor at the same index of the first list.

    Raises:
        TypeError: a value is not a list, or an element is not a floating-point tensor.
        ValueError: a list or a tensor differs from the first.
    """
    first_name, first = next(iter(lists.items()))
    for name, tensors in lists.items():
        check.kind(name, tensors, list, tuple)
        if len(tensors) != len(first):
            check.fail(name, f"{len(first)} tensors as {first_name} has", str(len(tensors)))
    # torch.compile cannot use the fast check; it traces the check of each tensor once.
    if not torch.compiler.is_compiling() and _are_alike(list(lists.values())):
        return
    for name, tensors in lists.items():
        for place, tensor in enumerate(tensors):
            label = f"{name}[{place}]"
            check.floating(label, tensor)
            check.like(label, tensor, first[0], f"{first_name}[0]")
            check.shape(label, tensor, first[place].shape)


def _are_alike(lists: Sequence[Sequence[Tensor]]) -> bool:
    every = [*chain.from_iterable(lists)]
    if not all(issubclass(kind, Tensor) for kind in set(map(type, every))):
        return False
    dtypes, devices = set(map(_dtype, every)), set(map(_device, every))
    first, *others = ([*map(Tensor.size, tensors)] for tensors in lists)
    return (
        len(dtypes) == len(devices) == 1
        and next(iter(dtypes)).is_floating_point
        and all(shapes == first for shapes in others)
        and (are_contiguous(every) or all(tensor.layout == torch.strided for tensor in every))
    )


def are_contiguous(tensors: Sequence[Tensor]) -> bool:
    """True if every tensor is contiguous."""
    return all(map(Tensor.is_contiguous, tensors))


class _Span(NamedTuple):
    """The memory of a tensor, from its first element to the end of its last one, as byte addresses."""

    start: int
    end: int
    name: str
    place: int
    tensor: Tensor


def check_apart(lists: Lists, may_meet: str) -> None:
    """Check that no memory is shared by two of the tensors, or by two elements of one.

    The tensors of the list ``may_meet`` may share memory with each other. Nothing is checked while
    torch.compile traces, since there are no addresses then.

    Raises:
        ValueError: two tensors overlap, or one overlaps itself.
    """
    every = [*chain.from_iterable(lists.values())]
    if torch.compiler.is_compiling() or every[0].device.type == "meta":
        return
    if are_contiguous(every):
        starts = [*map(Tensor.data_ptr, every)]
        ends = sorted(map(add, starts, map(_bytes, every)))
        starts.sort()
        # The intervals are disjoint if and only if the i-th smallest end precedes the (i + 1)-th start.
        if not any(map(gt, ends, starts[1:])):
            return
    spans = sorted(
        (
            _Span(tensor.data_ptr(), tensor.data_ptr() + _extent(tensor), name, place, tensor)
            for name, tensors in lists.items()
            for place, tensor in enumerate(tensors)
            if tensor.numel()
        ),
        key=lambda span: span.start,
    )
    open_spans: list[_Span] = []
    for span in spans:
        if not span.tensor.is_contiguous() and _repeats(span.tensor.shape, span.tensor.stride()):
            got = f"{check.describe(span.tensor)} with stride {span.tensor.stride()}"
            check.fail(f"{span.name}[{span.place}]", "no two elements at one address", got)
        open_spans = [other for other in open_spans if other.end > span.start]
        for other in open_spans:
            if not (span.name == other.name == may_meet) and _meet(other, span):
                expected = f"memory apart from that of {other.name}[{other.place}]"
                got = f"{check.describe(span.tensor)} that overlaps it"
                check.fail(f"{span.name}[{span.place}]", expected, got)
        open_spans.append(span)


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last one."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.itemsize


def _meet(a: _Span, b: _Span) -> bool:
    """True if two tensors share an element, where ``b`` starts within the span of ``a``."""
    if a.tensor.is_contiguous() and b.tensor.is_contiguous():
        return True
    between, rest = divmod(b.start - a.start, a.tensor.itemsize)
    return rest > 0 or _places_meet(
        a.tensor.shape, a.tensor.stride(), b.tensor.shape, b.tensor.stride(), between
    )


# Cached since an optimizer checks the same tensors at each step.
@lru_cache(maxsize=1024)
def _places_meet(
    a_shape: torch.Size,
    a_stride: tuple[int, ...],
    b_shape: torch.Size,
    b_stride: tuple[int, ...],
    between: int,
) -> bool:
    return bool(torch.isin(_places(b_shape, b_stride) + between, _places(a_shape, a_stride)).any())


@lru_cache(maxsize=1024)
def _repeats(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    reach = 0
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1 and step <= reach:
            return _places(shape, stride).unique().numel() < shape.numel()
        reach += (size - 1) * step
    return False  # each stride is larger than the extent of all smaller dimensions


def _places(shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """The offset of each element from the first one, in elements."""
    places = torch.zeros((), dtype=torch.int64)
    for size, step in zip(shape, stride, strict=True):
        places = places.unsqueeze(-1) + torch.arange(size) * step
    return places.flatten()
