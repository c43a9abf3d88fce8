"""Launches on a second stream beside a captured one: gradients that nothing reads before the optimizer.

Nothing in a backward pass waits for the gradients of the weights. On a side stream they fill the
multiprocessors that a scan leaves idle, and the main stream waits for them once, before the optimizer. What
they are made of is held until then, so that no allocation of the main stream takes its memory. They
themselves are not held: autograd makes a tensor that nobody else holds a parameter's ``.grad``, and copies
any other. That it did so, and that no operator touched them before the wait, is checked while the step is
captured; where it is not so, the step is captured again without a side stream.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")
Enter = Callable[[Any], AbstractContextManager[Any]]
"""Makes a stream the current one, as ``torch.cuda.stream`` does."""


class OverlapError(RuntimeError):
    """A gradient of the side stream was used before the main stream waited for it."""


class Stream(Protocol):
    """A stream, as torch.cuda has it."""

    def wait_stream(self, stream: Any) -> None:
        """Let what is launched here from now on come after all that was launched there."""


class _Memory(NamedTuple):
    """The addresses of a tensor's storage."""

    begin: int
    end: int

    def overlaps(self, other: "_Memory") -> bool:
        return self.begin < other.end and other.begin < self.end


class _Made(NamedTuple):
    """Memory that is being written, and whether it is still the storage it was."""

    memory: _Memory
    storage: StorageWeakRef


class SideStream:
    """Work beside a main stream, and what has happened to its memory since it began.

    Args:
        main, side: the streams.
        enter: makes ``side`` the current stream.
    """

    def __init__(self, main: Stream, side: Stream, enter: Enter) -> None:
        self._main, self._side, self._enter = main, side, enter
        self._held: list[Tensor] = []
        self._made: list[_Made] = []
        self._touched: str | None = None
        self._is_forked = self._is_launching = False

    @contextmanager
    def launches(self, taken: Iterable[Tensor | None], made: Iterable[Tensor]) -> Iterator[None]:
        """Launches within go to the side stream, behind all that the main stream has by now.

        Args:
            taken: every tensor that they read, or that is their scratch.
            made: the gradients, contiguous, each in memory of its own.
        """
        self._held += [each for each in taken if each is not None]
        self._made += [_Made(_memory(each), StorageWeakRef(each.untyped_storage())) for each in made]
        self._side.wait_stream(self._main)
        self._is_forked = True
        self._is_launching = True
        try:
            with self._enter(self._side):
                yield
        finally:
            self._is_launching = False

    def notice(self, operator: Any, args: Any, kwargs: Any) -> None:
        """Note if an operator of the main stream touches what the side stream has in work."""
        if not self._is_forked or self._is_launching or operator.is_view:
            return
        taken = [_memory(each) for each in tree_leaves((args, kwargs)) if _is_strided(each)]
        if any(mine.memory.overlaps(memory) for mine in self._made for memory in taken):
            self._touched = f"{operator} takes a gradient before all are there"
        if operator._schema.is_mutable:
            written = [_memory(each) for each in _written(operator, args, kwargs) if _is_strided(each)]
            if any(_memory(mine).overlaps(memory) for mine in self._held for memory in written):
                self._touched = f"{operator} changes what a gradient is made of"

    def join(self, params: Iterable[Tensor]) -> None:
        """Let the main stream wait, and see that all gradients are those of ``params``, untouched until now.

        Raises:
            OverlapError: they are not.
        """
        trouble = self._trouble(list(params)) if self._is_forked else None
        self.wait()
        if trouble is not None:
            raise OverlapError(trouble)

    def wait(self) -> None:
        """Let the main stream wait for the side stream, whatever has become of its results."""
        if self._is_forked:
            self._main.wait_stream(self._side)
        self._held, self._made, self._touched, self._is_forked = [], [], None, False

    def _trouble(self, params: list[Tensor]) -> str | None:
        if self._touched is not None:
            return self._touched
        if any(param._backward_hooks or param._post_accumulate_grad_hooks for param in params):
            return "a parameter has hooks"
        grads = {_memory(param.grad) for param in params if param.grad is not None}
        if any(made.storage.expired() or made.memory not in grads for made in self._made):
            return "a gradient does not become that of a parameter as it is"
        return None


_open: dict[Any, SideStream] = {}
"""Side streams by their main ones: the threads of a backward pass share nothing else with the capture."""


def side_stream_of(tensor: Tensor) -> SideStream | None:
    """The side stream of the current stream on the device of ``tensor``, if it has one now."""
    return _open.get(_current_stream(tensor)) if _open else None


def join(params: list[Tensor]) -> None:
    """Let the current stream wait for its side stream, if it has one: see :meth:`SideStream.join`."""
    for side in set(filter(None, map(side_stream_of, params))):
        side.join(params)


@contextmanager
def beside(main: Stream, side: Stream, enter: Enter) -> Iterator[None]:
    """Within, ``side`` is the side stream of ``main``, which waits for it at the end at the latest.

    Raises:
        OverlapError: gradients of the side stream were used before a :func:`join`, or there was none.
    """
    opened = _open[main] = SideStream(main, side, enter)
    try:
        with _Watch(opened):
            yield
        opened.join(())
    finally:
        opened.wait()
        del _open[main]


def capture_beside(
    capture: Callable[[AbstractContextManager[None]], Result],
    main: Stream,
    side: Stream | None,
    enter: Enter,
) -> Result:
    """The result of ``capture(context)``, which runs within ``context``: with ``side`` beside ``main``.

    Where that is not safe, a ``RuntimeWarning`` says why, and it is captured again without.
    """
    if side is not None:
        try:
            return capture(beside(main, side, enter))
        except OverlapError as error:
            warnings.warn(f"overlap: the step is captured without, as {error}", RuntimeWarning, stacklevel=2)
    return capture(nullcontext())


class _Watch(TorchDispatchMode):
    """Shows a side stream every operator, also those of a backward pass and its hooks."""

    def __init__(self, side: SideStream) -> None:
        super().__init__()
        self._side = side

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._side.notice(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _current_stream(tensor: Tensor) -> Any:
    return torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None


def _is_strided(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _memory(tensor: Tensor) -> _Memory:
    storage = tensor.untyped_storage()
    return _Memory(storage.data_ptr(), storage.data_ptr() + storage.nbytes())


def _written(operator: Any, args: Any, kwargs: Any) -> list[Any]:
    """Values that are given for the arguments that the operator writes."""
    arguments = operator._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    written = (a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return tree_leaves([given.get(name) for name in written])
