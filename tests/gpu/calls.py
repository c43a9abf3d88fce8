"""A call of an op, forward and backward, with its arguments already on the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.ops.schema import OPS
from tests.cases import CASES, Case
from tests.compare import Results, backends_for, error, evaluate, incoming_gradients
from tests.device import DEVICE
from tests.inputs import Inputs, build, tensors

OP_BACKENDS = [(op, backend) for op in OPS for backend in backends_for(op)]
RAGGED = replace(CASES["primes"], layout="contiguous", incoming="random")


@dataclass
class Prepared:
    """An op, its arguments and incoming gradients; ``run`` copies nothing to the device."""

    op_name: str
    backend: str
    inputs: Inputs
    incoming: list[Tensor | None]
    function: Callable[..., Any]

    def run(self) -> Results:
        """Outputs and gradients by name."""
        with ops.use_backend(self.backend):
            outputs, gradients = evaluate(self.function, self.inputs, lambda outputs: self.incoming)
        named = {f"output {k}": output for k, output in enumerate(outputs)}
        return named | {f"gradient of {name}": gradient for name, gradient in gradients.items()}

    def take(self, other: "Prepared") -> None:
        """Copy the values of ``other`` into the memory of this call."""
        with torch.no_grad():
            for (_, mine), (_, theirs) in zip(tensors(self.inputs), tensors(other.inputs), strict=True):
                mine.copy_(theirs)
            for mine_in, theirs_in in zip(self.incoming, other.incoming, strict=True):
                assert mine_in is not None
                assert theirs_in is not None
                mine_in.copy_(theirs_in)


def prepare(op_name: str, backend: str, case: Case = RAGGED, device: str = DEVICE) -> Prepared:
    """The call of ``op_name`` on ``case``, after one run that compiles its kernels."""
    inputs = build(op_name, case, torch.float32, device)
    function = getattr(ops, op_name)
    incoming: list[Tensor | None] = []

    def draw(outputs: tuple[Tensor, ...]) -> list[Tensor | None]:
        incoming.extend(incoming_gradients(outputs, case))
        return incoming

    with ops.use_backend(backend):
        evaluate(function, inputs, draw)
    return Prepared(op_name, backend, inputs, incoming, function)


def assert_near(got: Results, expected: Results) -> None:
    """Equal up to the order of summation."""
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert error(value, expected[name].double()) <= 1e-6, name
