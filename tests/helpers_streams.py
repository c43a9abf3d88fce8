"""Simulation of two streams, which detects launches on shared memory without an order."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmm_fast import check
from dmm_fast.triton import side_stream


@dataclass(frozen=True)
class Launch:
    """A launch: name, stream, and the addresses that it reads and writes."""

    name: str
    stream: str
    read: list[tuple[int, int]]
    written: list[tuple[int, int]]


@dataclass(frozen=True)
class Wait:
    """A wait: later launches on ``stream`` come after earlier launches on ``other``."""

    stream: str
    other: str


class Stream:
    """A stream that records its waits."""

    def __init__(self, name: str, events: list[Launch | Wait]) -> None:
        self.name, self._events = name, events

    def wait_stream(self, other: "Stream") -> None:
        self._events.append(Wait(self.name, other.name))


class Order:
    """A main stream and a side stream, the current one, and all events on them."""

    def __init__(self) -> None:
        self.events: list[Launch | Wait] = []
        self.main, self.side = Stream("main", self.events), Stream("side", self.events)
        self.current = self.main

    @contextmanager
    def enter(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def launch(self, name: str, read: list[Tensor], written: list[Tensor]) -> None:
        spans = ([*map(_span, tensors)] for tensors in (read, written))
        self.events.append(Launch(name, self.current.name, *spans))


def races(events: list[Launch | Wait]) -> list[tuple[str, str]]:
    """Pairs of launches on shared memory, at least one of them writing, that no wait orders."""
    found, before = [], list[tuple[int, Launch]]()
    known: dict[str, dict[str, int]] = {
        "main": {},
        "side": {},
    }  # number of launches of each stream that precede the next one here
    for event in events:
        here = known[event.stream]
        if isinstance(event, Wait):
            for name, count in known[event.other].items():
                here[name] = max(count, here.get(name, 0))
            continue
        for number, old in before:
            both = _meet(old.written, event.read + event.written) or _meet(old.read, event.written)
            if both and number > here.get(old.stream, 0):
                found.append((old.name, event.name))
        here[event.stream] = here.get(event.stream, 0) + 1
        before.append((here[event.stream], event))
    return found


def _span(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _meet(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    return any(a < d and c < b for a, b in some for c, d in others)


class _Operators(TorchDispatchMode):
    """Records every operator as a launch, except for views and for ops whose kernels are launches.

    The kernel of the optimizer receives addresses, so its op is the launch.
    """

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._order = order

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view and (func.namespace != "dmm_fast" or func._schema.is_mutable):
            written = [*_tensors(result), *_tensors(side_stream._written(func, args, kwargs))]
            self._order.launch(str(func), _tensors((args, kwargs)), written)
        return result


class SteppedBeside:
    """A capturer that runs its captures once with a stand-in for a side stream, without replays."""

    def __init__(self, order: Order, within: Callable[[], AbstractContextManager[Any]]) -> None:
        self.order, self.within = order, within
        self.captures = 0

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        return step()

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        capture = partial(self._capture, step, torch.get_rng_state())
        with patch.object(side_stream, "_current_stream", lambda tensor: self.order.current):
            return side_stream.capture_beside(capture, self.order.main, self.order.side, self.order.enter)

    def _capture(
        self, step: Callable[[], Tensor], random: Tensor, context: AbstractContextManager[None]
    ) -> Callable[[], Tensor]:
        self.captures += 1
        torch.set_rng_state(random)
        unread = patch.object(check, "values_are_readable", lambda tensor: False)
        with unread, self.within(), context, _Operators(self.order):
            loss = step()
        return lambda: loss


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


@contextmanager
def noted_kernels(order: Order) -> Iterator[None]:
    """Record the launches of interpreted Triton kernels; memory that changes counts as written."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def noted(self: Any, *args: Any, **options: Any) -> None:
        tensors = _tensors((args, options))
        before = [_bytes(each) for each in tensors]
        run(self, *args, **options)
        pairs = zip(tensors, before, strict=True)
        written = [each for each, old in pairs if not torch.equal(_bytes(each), old)]
        order.launch(self.__name__, tensors, written)

    with patch.object(InterpretedFunction, "run", noted):
        yield


def _bytes(tensor: Tensor) -> Tensor:
    """A copy of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()
