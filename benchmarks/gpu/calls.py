"""One call of an op at some sizes on a device: what is run, how much it has to do, who can do it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import errors
from benchmarks.errors import ADAM_OPTIONS, Inputs, Sizes
from dmm_fast import ops, reference
from dmm_fast.ops import BackendError, backend

Function = Callable[..., Any]


def backends_of(op: str, device: str) -> list[str]:
    """Who computes the op in float32 on the device in this build, the reference last."""
    able = []
    for name in ops.BACKENDS[::-1]:
        with ops.use_backend(name):
            try:
                able.append(backend.chosen(op, device))
            except BackendError:
                continue
    return able


def every_op() -> list[str]:
    """The names of all ops."""
    return list(ops.info()["ops"])


def by(name: str, op: str) -> Function:
    """The public op, computed by the backend of that name."""

    def function(**inputs: Any) -> Any:
        with ops.use_backend(name):
            return getattr(ops, op)(**inputs)

    return function


def reference_of(op: str) -> Function:
    """The reference itself, for torch.compile: without checks and choice."""
    function: Function = getattr(reference, op)
    return function


class Call:
    """An op's arguments on a device, drawn as they come, and what is timed with them.

    Every floating argument wants a gradient, so ``forward`` saves what a training step would.
    """

    def __init__(self, op: str, sizes: Sizes, device: str, *, case: str = "full", seed: int = 0) -> None:
        self.op = op
        generator = torch.Generator().manual_seed(seed)
        drawn = errors.draw_once(op, sizes, case, generator)
        self.inputs: Inputs = errors.map_tensors(drawn, lambda tensor: tensor.to(device))
        self.steps_in_place = op == "clipped_adam"
        self.wanted: list[Tensor] = []
        self.incoming: list[Tensor] = []
        if not self.steps_in_place:
            self.wanted = [tensor for _, tensor in errors.differentiable(self.inputs)]
            with torch.no_grad():
                outputs = _tuple(by("reference", op)(**self.inputs))
            self.incoming = [torch.randn_like(output) for output in outputs]
            for tensor in self.wanted:
                tensor.requires_grad_()

    def forward(self, function: Function) -> Callable[[], Any]:
        """The op alone."""
        if self.steps_in_place:
            return lambda: function(**self.inputs, **ADAM_OPTIONS)
        return lambda: function(**self.inputs)

    def both(self, function: Function) -> Callable[[], Any]:
        """The op and the gradient of every argument."""
        return lambda: self._gradients(_tuple(function(**self.inputs)))

    def backward(self, function: Function) -> Callable[[], Any]:
        """The gradients alone, of one call made now."""
        outputs = _tuple(function(**self.inputs))
        return lambda: self._gradients(outputs, retain_graph=True)

    def _gradients(self, outputs: tuple[Tensor, ...], **options: Any) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(outputs, self.wanted, self.incoming, allow_unused=True, **options)

    # --- how much there is to do ------------------------------------------------------------------------

    def flops(self) -> int:
        """Of the forward: each matrix meets each row once, and a multiply-add is two.

        What is elementwise is not counted. The backward of a product is two such products.
        """
        if self.steps_in_place:
            return 0
        tensors = list(_tensors(self.inputs))
        rows = max(t.shape[0] * t.shape[1] for t in tensors if t.dim() == 3)
        return 2 * rows * sum(t.numel() for t in tensors if t.dim() == 2)

    def bytes_forward(self) -> int:
        """Every argument read once, every result written once. The optimizer writes all it reads."""
        if self.steps_in_place:
            return 2 * sum(map(_bytes, _tensors(self.inputs)))
        return sum(map(_bytes, _tensors(self.inputs))) + sum(map(_bytes, self.incoming))

    def bytes_both(self) -> int:
        """The forward's; then arguments and incoming gradients read once, every gradient written once."""
        return 2 * self.bytes_forward() + sum(map(_bytes, self.wanted))


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _tensors(inputs: Inputs) -> Iterator[Tensor]:
    for value in inputs.values():
        yield from (value,) if isinstance(value, Tensor) else value


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
