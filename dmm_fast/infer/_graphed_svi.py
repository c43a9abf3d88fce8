"""``GraphedSVI``: ``pyro.infer.SVI`` whose steps are replayed from CUDA graphs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import zero_grads
from pyro.optim import PyroOptim
from torch import Tensor

from dmm_fast import check
from dmm_fast.infer._cuda_graphs import Capturer, CudaGraphs, captured
from dmm_fast.infer._held import Held, Modules, optimizers
from dmm_fast.infer._kept import Kept
from dmm_fast.infer._sequence_elbo import SequenceELBO
from dmm_fast.infer._signatures import Call, Signature, Turnover, changes, signature, started_over
from dmm_fast.infer._unread import CaptureError as CaptureError
from dmm_fast.infer._unread import NumbersStay, loss_tensor
from dmm_fast.triton import side_stream


class GraphedSVI(SVI):
    """``pyro.infer.SVI`` that replays its steps from CUDA graphs: ``GraphedSVI(model, guide, optim, loss)``.

    A graph holds a whole step: ``gather``, the ELBO, its gradients and the optimizer. There is one graph for
    each signature: the shapes, dtypes and devices of the tensors given to :meth:`step`, the values of ints,
    bools and strings, and the training mode of each module of model and guide. The first ``warm_up`` steps of
    a signature run without a graph, with Pyro's validation as it is set; the next step is captured, without
    validation, and replayed from then on. If the tensors are on a CPU, this is a plain ``SVI``, bit for bit.
    :meth:`steps` takes several steps in one graph, whose signature is that of all of them: one launch, and
    one check for changes, serve all steps.

    Up to ``max_graphs`` graphs are kept, and as many signatures that have no graph yet; beyond that the least
    recently used is dropped. If signatures keep displacing each other or keep starting over, so that more
    steps are captured than replayed, a single ``RuntimeWarning`` names the difference between the signatures
    and a remedy.

    Inputs that change between replays are on the device: tensors are copied and floats filled into the
    graph's own inputs, so that the model receives a float as a float64 tensor of no dimension; learning rates
    and step counts are tensors of the optimizer. Random numbers continue from replay to replay. A seed set or
    a state restored between steps takes effect, since torch's default CUDA generator is registered with the
    graph. Other generators are not, and a seed set within the model takes effect at the capture only. All
    other decisions that Python makes in a step are made once, at the capture.

    Several models can be trained in turn, each by its own ``GraphedSVI``, also under the same names: before a
    replay the step's own parameters, if they belong to a module, are put back into Pyro's store. A signature
    starts over with its warm-up when one of the following, which its graph depends on, has changed since its
    last plain or captured step:

    - a module of model or guide, its parameters and buffers, their memory and ``requires_grad``, a hook on
      it, on a parameter or on all modules, or a ``forward`` set on it. The modules considered are those that
      model and guide are, are methods of, wrap with Pyro's handlers or ``functools.partial``, or close over;
    - a parameter that is only in the store, as ``pyro.param`` makes it, or its memory;
    - a hyperparameter or a state tensor of the optimizer.

    A capture fails while an autograd graph of the same parameters exists that was made on another stream,
    usually the default one, because their gradients are then accumulated on that stream. A reference to a
    loss, or to any output of the model's modules, computed outside :meth:`step` keeps such a graph alive:
    delete it, ``del loss``, before the first steps. The result of :meth:`step` itself keeps none alive.

    Graphs share their memory: do not replay on two streams at once.

    Args:
        model, guide, optim, loss, loss_and_grads: as in ``SVI``. On a GPU every optimizer has to be
            capturable: ``PyroClippedAdam({..., "capturable": True})``.
        gather: a function that turns the arguments of :meth:`step` into a tuple of arguments of model and
            guide, inside the graph: ``lambda indices, T, factor: (*data.batch(indices, T), factor)``. None:
            the arguments are the same.
        max_graphs: largest number of graphs kept. 0: a plain ``SVI`` on every device.
        warm_up: number of calls with a signature before its capture, at least 1.
        overlap: compute weight gradients on a second stream of the graph, concurrently with the scans, which
            leave a part of the GPU idle. The results are the same. Every parameter must be used once per
            step, and its gradient must not be read before the optimizer, so it can have no hooks; otherwise
            a ``RuntimeWarning`` is given and the step is captured without overlap, which runs its Python
            code once more.
        capturer: an object to use in place of CUDA graphs, on any device.

    Raises:
        TypeError: an argument has the wrong type.
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
        overlap: bool = False,
        capturer: Capturer | None = None,
    ) -> None:
        for name, value in (("model", model), ("guide", guide), ("loss", loss)):
            check.function(name, value)
        for name, optional in (("loss_and_grads", loss_and_grads), ("gather", gather)):
            if optional is not None:
                check.function(name, optional)
        for method in ("run", "capture"):
            if capturer is not None and not hasattr(capturer, method):
                expected = "an object with run() and capture()"
                check.fail("capturer", expected, check.describe(capturer), TypeError)
        check.kind("optim", optim, PyroOptim)
        check.int_between("max_graphs", max_graphs, 0)
        check.size("warm_up", warm_up)
        check.kind("overlap", overlap, bool)
        super().__init__(model, guide, optim, loss, loss_and_grads)
        self.gather, self.max_graphs, self.warm_up = gather, max_graphs, warm_up
        self.overlap, self._capturer = overlap, capturer
        plain = loss_and_grads is None and type(loss) in (Trace_ELBO, TraceMeanField_ELBO)
        self._compute = SequenceELBO(loss).loss_and_grads if plain else self.loss_and_grads
        self._kept: dict[Signature, Kept] = {}
        self._modules: Modules | None = None
        self._turnover = Turnover()
        self._known_forms: set[object] = set()

    def step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take a gradient step like ``SVI.step``, but return the loss as a float64 tensor, unsynchronised.

        On a GPU ``loss.item()`` waits for the step. A loss that is not finite is noticed only there, when
        the parameters have been updated with it, as after ``SVI.step``.

        Raises:
            TypeError: an argument is not a tensor, number, string or None; model and guide do not accept the
                arguments; or the loss is not a single number.
            ValueError: the tensors are on several devices, or an optimizer is not capturable.
            CaptureError: a RuntimeError: the step cannot be captured; the message gives the reason or the
                likely one. On a GPU torch may be unusable in this process afterwards.
        """
        return self._take([(args, kwargs)])[0]

    def steps(self, batches: Iterable[tuple[Any, ...]], **kwargs: Any) -> Tensor:
        """Take several gradient steps, ``step(*batch, **kwargs)`` for each batch, in one graph on a GPU.

        Parameters, optimizer, losses and random numbers are bitwise those of as many calls of :meth:`step`,
        except that all arguments of a graph are read before its first step. There is a graph for each
        sequence of signatures, with its own warm-up and capture: the more signatures the steps have, such as
        different numbers of time steps, the fewer steps should share a graph.

        Args:
            batches: the arguments of each step, a tuple or a list: ``[(*batch, factor), ...]``.
            kwargs: keyword arguments, the same for all steps.

        Returns:
            The loss before each step, float64 ``[len(batches)]``, unsynchronised.

        Raises:
            TypeError: ``batches`` is not an iterable of tuples; or as :meth:`step`.
            ValueError: ``batches`` is empty; or as :meth:`step`.
            CaptureError: as :meth:`step`.
        """
        expected = "the arguments of each step, a tuple each"
        given = check.elements("batches", batches, expected)
        for batch in given:
            if not isinstance(batch, tuple | list):
                check.fail("batches", expected, f"one that is {check.describe(batch)}", TypeError)
        if not given:
            check.fail("batches", "the arguments of at least one step", "none")
        return self._take([(tuple(batch), kwargs) for batch in given])

    def _take(self, calls: list[Call]) -> Tensor:
        """Take a step for each of ``calls``; returns one loss for each."""
        capturer = self._capturer_for(calls)
        if capturer is None:
            for args, kwargs in calls:
                self._check_takes(args, kwargs)
            return torch.stack([self._plain(args, kwargs) for args, kwargs in calls])
        self._turnover.steps += len(calls)
        modules = self._modules_now()
        key = signature(calls, modules.modes())
        kept = self._kept.get(key)
        change = None if kept is None or kept.held is None else kept.held.change(modules, self.optim)
        if kept is None or change is not None:
            kept = self._begin(key, calls, change)
            self._make_room(key)
        kept.used = self._turnover.steps
        kept.fill(calls)
        if kept.replay is None:
            if kept.warm_ups < self.warm_up:
                losses = capturer.run(partial(self._run, kept))
                _check_capturable(self.optim)
                kept.warm_ups += 1
                kept.held = Held(self._modules_now(), self.optim, kept.params)
                return losses
            kept.replay = captured(capturer, partial(self._captured, kept))
            kept.held = Held(self._modules_now(), self.optim, kept.params)
            self._make_room(key)
        return kept.replay().clone()

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Take a step of ``SVI`` itself."""
        return loss_tensor(super().step(*self._gathered(args, kwargs), **self._passed(kwargs)))

    def _begin(self, key: Signature, calls: list[Call], change: str | None) -> Kept:
        """Begin a new signature, or start one over because of ``change``."""
        for args, kwargs in calls:
            self._check_takes(args, kwargs)
        kept = self._kept[key] = Kept(calls)
        kept.used = self._turnover.steps
        if change is not None:
            self._turnover.count([started_over(change)], self.max_graphs)
        return kept

    def _modules_now(self) -> Modules:
        """The modules of model and guide, cached as long as nothing about them has changed."""
        known = self._modules
        self._modules = known.now(self.model, self.guide) if known else Modules(self.model, self.guide)
        return self._modules

    def _make_room(self, newest: Signature) -> None:
        """Drop the least recently used graphs, and signatures without a graph, beyond ``max_graphs`` each."""
        for has_graph in (False, True):
            alike = [key for key, kept in self._kept.items() if (kept.replay is not None) is has_graph]
            alike.sort(key=lambda key: self._kept[key].used)
            for key in alike[: max(0, len(alike) - self.max_graphs)]:
                del self._kept[key]
                self._turnover.count(changes(key, newest), self.max_graphs)

    def _capturer_for(self, calls: list[Call]) -> Capturer | None:
        """The capturer for steps with these arguments; None: take plain steps."""
        if self.max_graphs == 0 or self._capturer is not None:
            return self._capturer if self.max_graphs else None
        values = [value for args, kwargs in calls for value in (*args, *kwargs.values())]
        tensors = [value for value in values if isinstance(value, Tensor)]
        # If no argument is a tensor, the model holds its data, and its parameters tell the device.
        for tensor in tensors or [p for _, p in pyro.get_param_store().named_parameters()]:
            if tensor.is_cuda:
                self._capturer = CudaGraphs(tensor.device, self.overlap)
                break
        return self._capturer

    def _check_takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check that model and guide, or ``gather``, accept the arguments of a step, once for each form."""
        form = (len(args), *kwargs)
        if form in self._known_forms:
            return
        for function in (self.guide, self.model) if self.gather is None else (self.gather,):
            check.takes("arguments", function, args, kwargs)
        self._known_forms.add(form)

    def _gathered(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return args if self.gather is None else self.gather(*args, **kwargs)

    def _passed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs if self.gather is None else {}

    def _run(self, kept: Kept) -> Tensor:
        """Take steps without a graph."""
        losses = []
        for call in kept.calls:
            loss, params = self._loss_and_grads(kept, call)
            self.optim(params)
            zero_grads(params)
            losses.append(loss)
        return torch.stack(losses)

    def _captured(self, kept: Kept) -> Tensor:
        """Take the steps to be captured: without validation, which reads values, or zeroing of gradients."""
        known = {param for _, param in pyro.get_param_store().named_parameters()}
        if kept.held is not None:
            known.update(kept.held.params)
        with pyro.validation_enabled(False):
            losses = [self._captured_step(kept, call, known) for call in kept.calls]
        # For a single loss, a view saves the launch of torch.stack.
        return torch.stack(losses) if len(losses) > 1 else losses[0].reshape(1)

    def _captured_step(self, kept: Kept, call: Call, known: set[Tensor]) -> Tensor:
        with _gradients_aside(known) as aside:
            loss, params = self._loss_and_grads(kept, call)
            side_stream.join(params)
            new = [param for param in params if param not in known]
            if new:
                check.fail("model", "the parameters of the warm-up", f"{len(new)} more", CaptureError)
            for param in filter(aside.__contains__, params):
                # Pyro would step a parameter that had a gradient before with one of zero, so this does too.
                if param.grad is None:
                    param.grad = torch.zeros_like(param)
            self.optim(params)
        return loss

    def _loss_and_grads(self, kept: Kept, call: Call) -> tuple[Tensor, list[Tensor]]:
        """The loss, unsynchronised, and each parameter of the step once, with its gradient computed."""
        args, kwargs = self._gathered(*call), self._passed(call[1])
        with poutine.trace(param_only=True) as capture, NumbersStay():
            loss = self._compute(self.model, self.guide, *args, **kwargs)
        sites: Any = capture.trace.nodes.items()
        params = {name: site["value"].unconstrained() for name, site in sites}
        kept.params.update(params)
        return loss_tensor(loss), list(dict.fromkeys(params.values()))


def _check_capturable(optim: PyroOptim) -> None:
    for optimizer in optimizers(optim):
        if not all(group.get("capturable", False) for group in optimizer.param_groups):
            check.fail("optim", "capturable=True for a CUDA graph", f"{type(optimizer).__name__} without it")


@contextmanager
def _gradients_aside(params: Iterable[Tensor]) -> Iterator[set[Tensor]]:
    """Set gradients to None, so that a captured backward allocates them in the graph's own memory.

    Yields the parameters that had a gradient; the gradients are restored on exit.
    """
    aside = {param: param.grad for param in params if param.grad is not None}
    for param in aside:
        param.grad = None
    try:
        yield set(aside)
    finally:
        for param in params:
            param.grad = aside.get(param)
