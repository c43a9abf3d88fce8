"""Derivatives of every op: all orders in the reference, first order and errors in other backends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from dmm_fast import ops
from dmm_fast.ops import BackendError
from dmm_fast.ops.schema import OPS
from tests.cases import CASES, TINY
from tests.compiled import DIFFERENTIABLE, OP_BACKENDS
from tests.device import DEVICE
from tests.inputs import Inputs, build, differentiable

each_compiled = pytest.mark.parametrize(
    ("op_name", "backend"), [pair for pair in OP_BACKENDS if pair[0] in DIFFERENTIABLE]
)
each_op = pytest.mark.parametrize("op_name", DIFFERENTIABLE)
# One op with a list of weights, and one without, for tests of the glue around ops.
around = pytest.mark.parametrize(
    ("op_name", "backend"), [pair for pair in OP_BACKENDS if pair[0] in ("gated_transition", "rnn_scan")]
)

Loss = Callable[..., Tensor]


def loss_of(op_name: str, inputs: Inputs) -> Tensor:
    outputs = getattr(ops, op_name)(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum((output.square().sum() for output in outputs), torch.zeros((), device=DEVICE))


def first_derivatives(op_name: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs, and gradients of a loss with create_graph."""
    inputs = build(op_name, TINY, dtype)
    wanted = [tensor.requires_grad_() for tensor in differentiable(inputs).values()]
    return wanted, list(torch.autograd.grad(loss_of(op_name, inputs), wanted, create_graph=True))


def by_tensor(op_name: str, inputs: Inputs, name: str) -> Loss:
    """The loss as a function of the tensor ``name``, a field of the weights or an argument."""
    argument, _, field = name.partition(".")

    def function(tensor: Tensor) -> Tensor:
        value = inputs[argument]._replace(**{field: tensor}) if field else tensor
        return loss_of(op_name, {**inputs, argument: value})

    return function


def refusal_of(op_name: str, derivative: str) -> Any:
    named = rf"(\w+ or )?{op_name}( or \w+)?"
    message = rf'^{named}: expected first derivatives .+, got {derivative}: use_backend\("reference"\)'
    return pytest.raises(BackendError, match=message)


@pytest.mark.parametrize(
    ("op_name", "backend"), [pair for pair in OP_BACKENDS if pair[0] not in DIFFERENTIABLE]
)
def test_ops_without_gradients_refuse_a_backward_pass(op_name: str, backend: str) -> None:
    inputs = build(op_name, TINY)
    for tensor in differentiable(inputs).values():
        tensor.requires_grad_()
    message = rf"^{op_name}: expected no derivatives, .+, got a gradient: use_backend"
    with ops.use_backend(backend):
        loss = loss_of(op_name, inputs)
        with pytest.raises(BackendError, match=message):
            loss.backward()


# --- second derivatives -----------------------------------------------------------------------------------


@each_compiled
def test_no_gradient_can_be_differentiated(op_name: str, backend: str) -> None:
    """By no input, nor by the incoming gradient, which ``torch.autograd.functional.jvp`` needs."""
    inputs = build(op_name, TINY)
    wanted = [tensor.requires_grad_() for tensor in differentiable(inputs).values()]
    with ops.use_backend(backend):
        outputs = getattr(ops, op_name)(**inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        incoming = [torch.ones_like(output, requires_grad=True) for output in outputs]
        plain = torch.autograd.grad(outputs, wanted, incoming, retain_graph=True)
        attached = torch.autograd.grad(outputs, wanted, incoming, create_graph=True)
        for gradient, expected in zip(attached, plain, strict=True):
            assert torch.equal(gradient, expected)
            assert not expected.requires_grad
            for by in (wanted, incoming):
                with refusal_of(op_name, "a second derivative"):
                    torch.autograd.grad(gradient.sum(), by, retain_graph=True, allow_unused=True)


@around
def test_a_hessian_is_refused(op_name: str, backend: str) -> None:
    inputs = build(op_name, TINY)
    function = by_tensor(op_name, inputs, OPS[op_name].leading)
    with ops.use_backend(backend):
        for vectorize in (False, True):
            with refusal_of(op_name, "a second derivative"):
                torch.autograd.functional.hessian(function, inputs[OPS[op_name].leading], vectorize=vectorize)
        with refusal_of(op_name, "forward mode"):
            torch.func.hessian(function)(inputs[OPS[op_name].leading])


@around
def test_an_unused_graph_for_higher_derivatives_is_allowed(op_name: str, backend: str) -> None:
    """As in optimizers with closures; only differentiating through an op again is refused."""
    with ops.use_backend(backend):
        _, gradients = first_derivatives(op_name)
        other = torch.ones((), device=DEVICE, requires_grad=True)
        (gradient,) = torch.autograd.grad(other * gradients[0].detach().sum(), other, create_graph=True)
        assert torch.equal(gradient, gradients[0].sum())


@each_op
def test_the_reference_is_differentiated_twice(op_name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    with ops.use_backend("reference"):
        inputs, gradients = first_derivatives(op_name, torch.float64)
        along = [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t) for t in inputs]
        total = sum((g * v).sum() for g, v in zip(gradients, along, strict=True))
        second = torch.autograd.grad(total, inputs, allow_unused=True)
        slope = sum((s * v).sum() for s, v in zip(second, along, strict=True) if s is not None)
        # The directional derivative of the gradients from their values at two points.
        step, values = 1e-5, []
        for sign in (1, -1):
            moved = iter([(t + sign * step * v).detach() for t, v in zip(inputs, along, strict=True)])
            given = _replaced(op_name, moved)
            wanted = [tensor.requires_grad_() for tensor in differentiable(given).values()]
            there = torch.autograd.grad(loss_of(op_name, given), wanted)
            values.append(sum((g * v).sum() for g, v in zip(there, along, strict=True)))
    torch.testing.assert_close(slope, (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def _replaced(op_name: str, values: Any) -> Inputs:
    """The op's inputs with every differentiable tensor from ``values``, in their order."""
    inputs = build(op_name, TINY, torch.float64)
    wanted = differentiable(inputs)
    return {
        name: type(value)(*(next(values) for _ in value))
        if isinstance(value, tuple)
        else (next(values) if name in wanted else value)
        for name, value in inputs.items()
    }


# --- forward mode -----------------------------------------------------------------------------------------


@each_compiled
def test_a_tangent_of_any_input_is_refused(op_name: str, backend: str) -> None:
    inputs = build(op_name, TINY)
    with ops.use_backend(backend), forward_ad.dual_level():
        for name, tensor in differentiable(inputs).items():
            dual = forward_ad.make_dual(tensor, torch.ones_like(tensor))
            with refusal_of(op_name, "forward mode"):
                by_tensor(op_name, inputs, name)(dual)
        loss_of(op_name, inputs)  # without a tangent


@each_compiled
def test_a_tangent_of_an_incoming_gradient_is_refused(op_name: str, backend: str) -> None:
    inputs = build(op_name, TINY)
    wanted = [tensor.requires_grad_() for tensor in differentiable(inputs).values()]
    with ops.use_backend(backend):
        loss = loss_of(op_name, inputs)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones_like(loss), torch.ones_like(loss))
            with refusal_of(op_name, "forward mode"):
                torch.autograd.grad(loss, wanted, dual)


@around
def test_transforms_in_forward_mode_are_refused(op_name: str, backend: str) -> None:
    inputs = build(op_name, TINY)
    name = OPS[op_name].leading
    function, tensor = by_tensor(op_name, inputs, name), inputs[name].nan_to_num()

    def jvp(inner: Loss) -> Tensor:
        return torch.func.jvp(inner, (tensor,), (tensor,))[1]

    transforms: list[Callable[[], Any]] = [
        lambda: jvp(function),
        lambda: torch.func.jacfwd(function)(tensor),
        # The tangent belongs to the outer of two transforms.
        lambda: jvp(lambda outer: jvp(lambda inner: inner.sum() * function(outer))),
        lambda: jvp(lambda outer: torch.func.vmap(lambda _: function(outer))(torch.ones(2, device=DEVICE))),
        lambda: jvp(lambda outer: torch.func.grad(lambda inner: inner.sum() * function(outer))(tensor).sum()),
    ]
    with ops.use_backend(backend):
        for transform in transforms:
            with refusal_of(op_name, "forward mode"):
                transform()
        # Tensors made within a transform are wrapped as well, but have no tangent.
        assert torch.equal(jvp(lambda x: x.sum() * function(tensor + 0)), tensor.sum() * function(tensor))


@around
def test_transforms_in_reverse_mode_raise_or_are_correct(op_name: str, backend: str) -> None:
    """Some of torch's transforms support an op; none of them may return a wrong result."""
    inputs = build(op_name, TINY)
    name = OPS[op_name].leading
    function, tensor = by_tensor(op_name, inputs, name), inputs[name].nan_to_num()
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.vmap, _batched_jacobian):
        with ops.use_backend("reference"):
            expected = transform(function)(tensor)
        with ops.use_backend(backend):
            try:
                got = transform(function)(tensor)
            except RuntimeError:
                continue
        torch.testing.assert_close(got, expected)


def _batched_jacobian(function: Loss) -> Loss:
    return lambda x: torch.autograd.functional.jacobian(function, x, create_graph=True, vectorize=True)


@each_op
def test_the_reference_has_a_forward_mode(op_name: str) -> None:
    inputs = build(op_name, CASES["primes"], torch.float64)
    name = OPS[op_name].leading
    function, tensor = by_tensor(op_name, inputs, name), inputs[name].nan_to_num()
    generator = torch.Generator().manual_seed(5)
    along = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(DEVICE)
    with ops.use_backend("reference"):
        _, slope = torch.func.jvp(function, (tensor,), (along,))
        gradient = torch.func.grad(function)(tensor)
    torch.testing.assert_close(slope, (gradient * along).sum(), rtol=1e-9, atol=1e-9)
