"""Calls of an op at given sizes: their operations and bytes, and the backends that can run them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.draws import Inputs, Sizes, differentiable, map_tensors, tensors
from benchmarks.errors import ADAM_OPTIONS, arguments, as_tuple
from benchmarks.gpu.record import Record
from dmm_fast import ops, reference
from dmm_fast.ops import _backends
from dmm_fast.ops.schema import OPS

SCANS = ("rnn_scan", "combiner_scan", "flow_scan")
Function = Callable[..., Any]


def backends_of(op: str, device: str) -> list[str]:
    """The backends of this build that compute the op in float32 on the device, the reference last."""
    able = _backends.candidates(op, device, torch.float32)
    return [name for name in ops.BACKENDS[::-1] if name in able]


def runnable(op: str, device: str, record: Record) -> list[str]:
    """List the backends whose kernels of the op have not failed the smoke test."""
    failed = {row["backend"] for row in record.failed_kernels() if row["op"] == op}
    return [name for name in backends_of(op, device) if name not in failed]


def every_op() -> list[str]:
    """The names of all ops."""
    return list(ops.info()["ops"])


def by(name: str, op: str) -> Function:
    """The public op, computed by the given backend."""

    def function(**inputs: Any) -> Any:
        with ops.use_backend(name):
            return getattr(ops, op)(**inputs)

    return function


def reference_of(op: str) -> Function:
    """The reference function, without argument checks and choice of backend."""
    function: Function = getattr(reference, op)
    return function


class Call:
    """Random arguments of an op on a device, and functions to time with them.

    Every floating-point argument of a differentiable op requires a gradient, so that ``forward`` saves the
    same tensors as a training step.
    """

    def __init__(self, op: str, sizes: Sizes, device: str) -> None:
        self.op = op
        self.inputs: Inputs = arguments(op, sizes, torch.Generator().manual_seed(0), device)
        self.steps_in_place = op == "clipped_adam"
        self.wanted: list[Tensor] = []
        self.incoming: list[Tensor] = []
        if not self.steps_in_place:
            self.wanted = [*differentiable(self.inputs).values()]
            with torch.no_grad():
                outputs = as_tuple(by("reference", op)(**self.inputs))
            self.incoming = [torch.randn_like(output) for output in outputs]
            if not OPS[op].has_backward:
                self.wanted = []
            for tensor in self.wanted:
                tensor.requires_grad_()

    def forward(self, function: Function) -> Callable[[], Any]:
        """A function that calls the op."""
        if self.steps_in_place:
            return lambda: function(**self.inputs, **ADAM_OPTIONS)
        return lambda: function(**self.inputs)

    def both(self, function: Function) -> Callable[[], Any]:
        """A function that calls the op and computes the gradient of every argument."""
        return lambda: self._gradients(as_tuple(function(**self.inputs)))

    def backward(self, function: Function) -> Callable[[], Any]:
        """A function that computes only the gradients, of a call made here, by copies of the arguments.

        The autograd graph of the call stays alive, and its leaves remain tied to the current stream. A
        capture on another stream that used the same leaves would fail (pytorch/pytorch#137483).
        """
        inputs = map_tensors(self.inputs, lambda _, tensor: tensor.detach().clone())
        wanted = [tensor.requires_grad_() for tensor in differentiable(inputs).values()]
        outputs = as_tuple(function(**inputs))
        options = {"allow_unused": True, "retain_graph": True}
        return lambda: torch.autograd.grad(outputs, wanted, self.incoming, **options)

    def _gradients(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(outputs, self.wanted, self.incoming, allow_unused=True)

    # --- operations and bytes ---------------------------------------------------------------------------

    def flops(self) -> int:
        """Operations of the matrix products of the forward pass; a multiply-add counts as two.

        Elementwise operations are not counted. The backward pass of a product is two products.
        """
        if self.steps_in_place:
            return 0
        given = [(name.rpartition("."), tensor) for name, tensor in tensors(self.inputs)]
        rows = max(t.shape[0] * t.shape[1] for (group, _, _), t in given if not group and t.dim() == 3)
        return 2 * rows * sum(t.numel() for (_, _, name), t in given if name.startswith("w"))

    def bytes_forward(self) -> int:
        """Bytes of every argument read and every result written once; an optimizer writes what it reads."""
        read = sum(_bytes(tensor) for _, tensor in tensors(self.inputs))
        return read + (read if self.steps_in_place else sum(map(_bytes, self.incoming)))

    def bytes_both(self) -> int:
        """Bytes of the forward pass, then of arguments and incoming gradients read, and gradients written."""
        return 2 * self.bytes_forward() + sum(map(_bytes, self.wanted))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
