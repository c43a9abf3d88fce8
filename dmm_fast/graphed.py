"""``GraphedSVI``: ``pyro.infer.SVI`` whose steps are replayed from CUDA graphs."""

import gc
import numbers
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dmm_fast import check, native
from dmm_fast.elbo import SequenceELBO
from dmm_fast.held import Held, modes, optimizers
from dmm_fast.ops import BackendError

Step = Callable[[], Tensor]

_LIKELY_CAUSES = (
    "likely causes: the step waits for the GPU, as .cpu() does; it recreates a parameter; an autograd graph "
    "of its parameters made on another stream is still alive, such as that of a loss still held: del loss "
    "before the first step"
)


class CaptureError(RuntimeError):
    """A step cannot be captured as a CUDA graph; the message says why, or what is likely."""


class Capturer(Protocol):
    """How steps are run before their capture, and captured."""

    def run(self, step: Step) -> Tensor:
        """Run ``step`` as it comes, where its capture will be."""

    def capture(self, step: Step) -> Step:
        """What does the work of ``step`` again, without Python, and gives its result in the same memory."""


class GraphedSVI(SVI):
    """``pyro.infer.SVI`` that replays its steps from CUDA graphs: ``GraphedSVI(model, guide, optim, loss)``.

    A graph holds a whole step: ``gather``, the ELBO, its gradients and the optimizer. There is one for each
    signature: shape, dtype and device of the tensors given to :meth:`step`, the values of ints, bools and
    strings, and which modules of model and guide are training. A signature's first ``warm_up`` steps run as
    they come, with whatever validation Pyro is told; the next is captured, with none, and replayed. Where the
    tensors are on a CPU this is a plain ``SVI``, to the bit.

    What changes between replays is on the device: tensors are copied and floats filled into the graph's own
    inputs, where the model finds a float as a float64 tensor of no dimension; learning rates and step counts
    are the optimizer's tensors. Random numbers go on from replay to replay, and a seed set or a state
    restored between steps counts, as torch's default CUDA generator belongs to the graph; another generator
    does not, and a seed set within the model is set at the capture alone. Whatever else Python decides in a
    step is decided once. When the parameter store's names, a parameter's memory, or a number or a tensor of
    the optimizer is another than at the capture, the signature starts over with its warm-up.

    A capture fails while an autograd graph of the same parameters is alive that was made on another stream,
    usually the default one: their gradients are then accumulated on that stream. A loss, or any output of the
    model's modules, that was computed outside :meth:`step` and is still held keeps such a graph alive: drop
    it, ``del loss``, before the first steps. What :meth:`step` itself returns keeps none.

    Graphs share their memory: do not replay on two streams at once.

    Args:
        model, guide, optim, loss, loss_and_grads: as ``SVI`` takes them. On a GPU every optimizer has to be
            capturable: ``PyroClippedAdam({..., "capturable": True})``.
        gather: makes the arguments of model and guide, a tuple, of those of :meth:`step`, inside the graph:
            ``lambda indices, T, factor: (*data.batch(indices, T), factor)``. None: they are the same.
        max_graphs: graphs kept; beyond it the least recently used goes. 0: a plain ``SVI`` everywhere.
        warm_up: steps of a signature before its capture, at least 1.
        capturer: in place of CUDA graphs, then on any device.

    Raises:
        ValueError: ``max_graphs`` or ``warm_up`` is out of range.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim,
        loss: Any,
        loss_and_grads: Callable[..., Any] | None = None,
        *,
        gather: Callable[..., tuple[Any, ...]] | None = None,
        max_graphs: int = 32,
        warm_up: int = 1,
        capturer: Capturer | None = None,
    ) -> None:
        super().__init__(model, guide, optim, loss, loss_and_grads)
        for name, value, least in (("max_graphs", max_graphs, 0), ("warm_up", warm_up, 1)):
            if value < least:
                check.fail(name, f"an int from {least}", str(value))
        self.gather, self.max_graphs, self.warm_up = gather, max_graphs, warm_up
        self._capturer = capturer
        plain = loss_and_grads is None and type(loss) is Trace_ELBO
        self._compute = SequenceELBO(loss).loss_and_grads if plain else self.loss_and_grads
        self._kept: OrderedDict[object, _Kept] = OrderedDict()

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take a gradient step; ``SVI.step`` with the loss as a float64 tensor that nobody has read.

        On a GPU ``loss.item()`` waits for the step. A loss that is no finite number shows there alone: the
        parameters are spoilt by then, as after ``SVI.step``.

        Raises:
            TypeError: an argument is no tensor, number, string or None; the loss is several numbers.
            ValueError: the tensors are on several devices; an optimizer is not capturable.
            CaptureError: a RuntimeError: the step cannot be captured, and the message says why or what is
                likely. On a GPU torch itself may be of no use to the process after that.
        """
        capturer = self._capturer_for([*args, *kwargs.values()])
        if capturer is None:
            return _tensor_of(super().step(*self._gathered(args, kwargs), **self._passed(kwargs)))
        key = (_signature(args, kwargs), modes(self.model, self.guide))
        kept = self._kept.get(key)
        if kept is None or kept.is_stale(self.optim):
            kept = self._kept[key] = _Kept(args, kwargs)
        self._kept.move_to_end(key)
        kept.fill(args, kwargs)
        if kept.steps < self.warm_up:
            loss = capturer.run(partial(self._run, kept))
            _check_capturable(self.optim)
            kept.steps += 1
            return loss
        if kept.replay is None:
            kept.replay = _capture(capturer, partial(self._captured, kept))
            kept.held = Held(self.optim)
            while len(self._kept) > self.max_graphs:
                self._kept.popitem(last=False)
        return kept.replay().clone()

    def _capturer_for(self, values: list[Any]) -> Capturer | None:
        """Who captures a step with these arguments: None where it is to be a plain one."""
        if self.max_graphs == 0 or self._capturer is not None:
            return self._capturer if self.max_graphs else None
        tensors = [value for value in values if isinstance(value, Tensor)]
        # Without any, a model that holds its data is where its parameters are.
        for tensor in tensors or [p for _, p in pyro.get_param_store().named_parameters()]:
            if tensor.is_cuda:
                self._capturer = CudaGraphs(tensor.device)
                break
        return self._capturer

    def _gathered(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return args if self.gather is None else self.gather(*args, **kwargs)

    def _passed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs if self.gather is None else {}

    def _run(self, kept: "_Kept") -> Tensor:
        """A step as it comes."""
        loss, params = self._loss_and_grads(kept)
        self.optim(params)
        zero_grads(params)
        return loss

    def _captured(self, kept: "_Kept") -> Tensor:
        """A step for a graph: no validation, which reads values, and gradients that nothing needs to zero."""
        known = [param for _, param in pyro.get_param_store().named_parameters()]
        with pyro.validation_enabled(False), _gradients_aside(known) as aside:
            loss, params = self._loss_and_grads(kept)
            new = params - set(known)
            if new:
                check.fail("model", "the parameters of the warm-up", f"{len(new)} more", CaptureError)
            for param in params & aside:
                # One that had a gradient before has a gradient of zero now, with which Pyro steps it.
                if param.grad is None:
                    param.grad = torch.zeros_like(param)
            self.optim(params)
        return loss

    def _loss_and_grads(self, kept: "_Kept") -> tuple[Tensor, set[Any]]:
        """The loss, unread, and the parameters there are, which have their gradients."""
        args, kwargs = self._gathered(kept.args, kept.kwargs), self._passed(kept.kwargs)
        with poutine.trace(param_only=True) as capture, _NumbersStay():
            loss = self._compute(self.model, self.guide, *args, **kwargs)
        values: list[Any] = [site["value"] for site in capture.trace.nodes.values()]
        return _tensor_of(loss), {value.unconstrained() for value in values}


class CudaGraphs:
    """Steps captured as CUDA graphs, on a stream of their own, in memory that they share."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def run(self, step: Step) -> Tensor:
        """Run ``step`` on the stream where it will be captured, in its place among the work of this one."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = step()
        current.wait_stream(self._stream)
        return result

    def capture(self, step: Step) -> Step:
        """Capture ``step``; nothing is computed before the first replay."""
        graph = torch.cuda.CUDAGraph()
        # A pool that no graph uses any more cannot be taken up again.
        pool = next((other.pool() for other in self._graphs), None)
        # What Python's cycles still hold of steps on other streams would tie those into the capture.
        gc.collect()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            result = step()
        self._graphs.add(graph)

        def replay() -> Tensor:
            native.raise_on_hang()
            graph.replay()
            return result

        return replay


def _capture(capturer: Capturer, step: Step) -> Step:
    try:
        return capturer.capture(step)
    except (CaptureError, BackendError, torch.OutOfMemoryError):
        raise  # these say what is wrong
    except RuntimeError as error:
        got = f"{type(error).__name__}: {error}".partition("\n")[0]
        expected = "one that a CUDA graph can hold"
        raise CaptureError(f"step: expected {expected}, got {got} ({_LIKELY_CAUSES})") from error


class _Kept:
    """What is kept for a signature: its inputs, how many steps it has run, and then its graph."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        devices = {value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if len(devices) > 1:
            check.fail("arguments", "tensors on one device", ", ".join(sorted(map(str, devices))))
        device = next(iter(devices), None) or _device_of_parameters()
        self.args = tuple(_own(value, device) for value in args)
        self.kwargs = {name: _own(value, device) for name, value in kwargs.items()}
        self.steps = 0
        self.replay: Step | None = None
        self.held: Held | None = None

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put the arguments of a step into the inputs."""
        own = (*self.args, *self.kwargs.values())
        for mine, given in zip(own, (*args, *(kwargs[name] for name in self.kwargs)), strict=True):
            if isinstance(given, Tensor):
                mine.copy_(given, non_blocking=True)
            elif isinstance(given, float):
                mine.fill_(given)

    def is_stale(self, optim: PyroOptim) -> bool:
        """Whether the graph has something of the host that is now another."""
        return self.held is not None and not self.held.is_now(optim)


def _own(value: Any, device: torch.device) -> Any:
    """An input for a graph: memory of its own for what may change, the value itself for what may not."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, requires_grad=False)
    return torch.empty((), dtype=torch.float64, device=device) if isinstance(value, float) else value


def _device_of_parameters() -> torch.device:
    params = (param for _, param in pyro.get_param_store().named_parameters())
    return next((param.device for param in params), torch.get_default_device())


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """What of the arguments a graph is bound to."""
    return (*map(_kind, args), *((name, _kind(kwargs[name])) for name in sorted(kwargs)))


def _kind(value: Any) -> object:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, float):
        return float
    if value is not None and not isinstance(value, int | str):
        expected = "tensors, numbers, strings and None"
        check.fail("arguments", expected, check.describe(value), TypeError)
    return type(value), value


def _check_capturable(optim: PyroOptim) -> None:
    for optimizer in optimizers(optim):
        if not all(group.get("capturable", False) for group in optimizer.param_groups):
            check.fail("optim", "capturable=True for a CUDA graph", f"{type(optimizer).__name__} without it")


@contextmanager
def _gradients_aside(params: Iterable[Tensor]) -> Iterator[set[Tensor]]:
    """Without gradients, so that a backward within makes them in its own memory; those whose are aside."""
    aside = {param: param.grad for param in params if param.grad is not None}
    for param in aside:
        param.grad = None
    try:
        yield set(aside)
    finally:
        for param in params:
            param.grad = aside.get(param)


class _Unread(numbers.Number):
    """A float64 where it was computed, for sums that Pyro does with Python's numbers.

    To Pyro it is a number like any other, equal to itself, so not NaN.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().to(torch.float64)

    def __add__(self, other: Any) -> "_Unread":
        # Pyro's sums begin with a zero.
        return self if isinstance(other, int | float) and other == 0 else _Unread(self.value + _value(other))

    def __mul__(self, other: Any) -> "_Unread":
        return _Unread(self.value * _value(other))

    def __truediv__(self, other: Any) -> "_Unread":
        return self if isinstance(other, int | float) and other == 1 else _Unread(self.value / _value(other))

    def __neg__(self) -> "_Unread":
        return _Unread(-self.value)

    def __sub__(self, other: Any) -> "_Unread":
        return _Unread(self.value - _value(other))

    def __rsub__(self, other: Any) -> "_Unread":
        return _Unread(_value(other) - self.value)

    __radd__, __rmul__, __hash__ = __add__, __mul__, object.__hash__

    def __bool__(self) -> NoReturn:
        check.fail("step", "no decision by a number on the device", "one", CaptureError)

    def __float__(self) -> NoReturn:
        check.fail("step", "no number of the device on the host", "one", CaptureError)


def _value(number: Any) -> Any:
    return number.value if isinstance(number, _Unread) else number


class _NumbersStay(TorchFunctionMode):
    """``item()`` of a floating-point tensor waits for nothing: the number stays on the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_floating_point():
            return _Unread(args[0])
        return func(*args, **(kwargs or {}))


def _tensor_of(loss: Any) -> Tensor:
    if isinstance(loss, tuple):
        check.fail("loss", "one number", f"{len(loss)}", TypeError)
    if isinstance(loss, _Unread):
        return loss.value
    if isinstance(loss, Tensor):
        return loss.detach().to(torch.float64)
    return torch.tensor(loss, dtype=torch.float64)
