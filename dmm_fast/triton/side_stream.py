"""A side stream within a graph capture, for weight gradients, which nothing reads before the optimizer.

No other part of a backward pass depends on the weight gradients. Computed on a side stream, they use the
multiprocessors that a scan leaves idle, and the main stream waits for them once, before the optimizer. Their
inputs are kept alive until then, so that the main stream cannot reuse their memory. The gradients themselves
must not be referenced here: autograd adopts a tensor without other references as a parameter's ``.grad``, and
copies any other. The capture of the step checks that autograd adopted them and that no operator accessed them
before the wait; otherwise the step is captured again without a side stream.
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
"""A function whose context makes a stream the current one, like ``torch.cuda.stream``."""


class OverlapError(RuntimeError):
    """A gradient of the side stream was used before the main stream waited for it."""


class Stream(Protocol):
    """The interface of ``torch.cuda.Stream`` that is used here."""

    def wait_stream(self, stream: Any) -> None:
        """Order all later launches on this stream after all earlier ones on ``stream``."""


class _Memory(NamedTuple):
    """The addresses of a tensor's storage."""

    begin: int
    end: int

    def overlaps(self, other: "_Memory") -> bool:
        return self.begin < other.end and other.begin < self.end


class _Made(NamedTuple):
    """Memory that is being written, and a weak reference to its storage."""

    memory: _Memory
    storage: StorageWeakRef


class SideStream:
    """Work on a side stream, and a record of accesses to its memory by the main stream.

    Args:
        main, side: the streams.
        enter: a function whose context makes ``side`` the current stream.
    """

    def __init__(self, main: Stream, side: Stream, enter: Enter) -> None:
        self._main, self._side, self._enter = main, side, enter
        self._held: list[Tensor] = []
        self._made: list[_Made] = []
        self._touched: str | None = None
        self._is_forked = self._is_launching = False

    @contextmanager
    def launches(self, taken: Iterable[Tensor | None], made: Iterable[Tensor]) -> Iterator[None]:
        """Launch within the block on the side stream, after all present work of the main stream.

        Args:
            taken: all tensors that the launches read or use as scratch.
            made: the gradients, contiguous and without shared memory.
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
        """Record if an operator of the main stream accesses memory in use by the side stream."""
        if not self._is_forked or self._is_launching or operator.is_view:
            return
        taken = [_memory(each) for each in tree_leaves((args, kwargs)) if _is_strided(each)]
        if any(mine.memory.overlaps(memory) for mine in self._made for memory in taken):
            self._touched = f"{operator} reads a gradient before all are complete"
        if operator._schema.is_mutable:
            written = [_memory(each) for each in _written(operator, args, kwargs) if _is_strided(each)]
            if any(_memory(mine).overlaps(memory) for mine in self._held for memory in written):
                self._touched = f"{operator} changes an input of a gradient"

    def join(self, params: Iterable[Tensor]) -> None:
        """Let the main stream wait, and check that ``params`` have adopted all gradients, unaccessed so far.

        Raises:
            OverlapError: a gradient was copied or accessed.
        """
        trouble = self._trouble(list(params)) if self._is_forked else None
        self.wait()
        if trouble is not None:
            raise OverlapError(trouble)

    def wait(self) -> None:
        """Let the main stream wait for the side stream, without checks."""
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
            return "a gradient is not adopted by a parameter without a copy"
        return None


_open: dict[Any, SideStream] = {}
"""Active side streams by main stream; a global, since backward passes run in autograd's own threads."""


def side_stream_of(tensor: Tensor) -> SideStream | None:
    """The active side stream of the current stream on the device of ``tensor``, or None."""
    return _open.get(_current_stream(tensor)) if _open else None


def join(params: list[Tensor]) -> None:
    """Let the current stream wait for its side stream, if it has one; see :meth:`SideStream.join`."""
    for side in set(filter(None, map(side_stream_of, params))):
        side.join(params)


@contextmanager
def beside(main: Stream, side: Stream, enter: Enter) -> Iterator[None]:
    """Make ``side`` the side stream of ``main`` within the block, at whose end ``main`` waits for it.

    Raises:
        OverlapError: gradients of the side stream were used before :func:`join`, or it was not called.
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
    """The result of ``capture(context)``, which enters ``context`` to use ``side`` beside ``main``.

    If this is not safe, a ``RuntimeWarning`` gives the reason, and the capture is repeated without it.
    """
    if side is not None:
        try:
            return capture(beside(main, side, enter))
        except OverlapError as error:
            warnings.warn(f"overlap: the step is captured without it: {error}", RuntimeWarning, stacklevel=2)
    return capture(nullcontext())


class _Watch(TorchDispatchMode):
    """Reports every operator to a side stream, including those of a backward pass and its hooks."""

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
    """The values of the arguments that the operator writes."""
    arguments = operator._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    written = (a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return tree_leaves([given.get(name) for name in written])
