"""Registration of the ops with torch, derived from the table of ops.

Each row of the table becomes an op ``dmm_fast::<name>`` and an op of its gradients,
``dmm_fast::<name>_backward``. The C++ library computes them on a CPU. On a GPU a router in this module
dispatches each call to Triton or CUDA, that is to the function of the same name in ``dmm_fast.triton`` or
``dmm_fast.cuda``. The last argument of an op is the requested backend, so that a backward pass uses the
backend of its forward pass, also in a compiled graph.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, NoReturn

import torch
from torch import Tensor

from dmm_fast import _extension, cuda, reference, triton
from dmm_fast.ops import _autocast, _backends, _derivatives
from dmm_fast.ops._checks import check_arguments
from dmm_fast.ops._layout import Layout, bound_sizes, shape_of
from dmm_fast.ops.schema import CLIPPED_ADAM, OPS, signatures
from dmm_fast.ops.schema._signature import Argument, Op, Signature

_library = torch.library.Library("dmm_fast", "FRAGMENT")
_ops: Any = torch.ops.dmm_fast

Function = Callable[..., Any]


# --- calls of ops ---------------------------------------------------------------------------------------


def call(name: str, *given: Any) -> Any:
    """Check the arguments of an op, and compute it.

    Raises:
        ValueError: an argument does not fit the table.
        TypeError: an argument has the wrong type.
        BackendError: the requested backend cannot compute the op.
    """
    return _in_float32(_call, name, given) if _autocast.is_on() else _call(name, given)


def call_unchecked(name: str, *given: Any) -> Any:
    """Compute an op without checking its arguments, except under autocast, which changes dtypes."""
    return _in_float32(_call, name, given) if _autocast.is_on() else _compute(name, given)


def call_valued(gradient: Tensor, name: str, *given: Any) -> Any:
    """Compute an op without checking its arguments, with its gradients in the same pass if possible.

    Args:
        gradient: the gradient with respect to the op's result, of the same shape. It is read now and not in
            the backward pass, which can run only once.
        name: the op.
        given: its arguments.
    """
    op = OPS[name]
    leading = given[_LEADING[name]]
    is_compiled = _backends.chosen(name, leading.device.type, leading.dtype) != "reference"
    if not (op.valued and is_compiled) or _autocast.is_on() or not _derivatives.is_recorded_plainly():
        return call_unchecked(name, *given)
    backend = _backends.requested(name) or ""
    values, lead = _layouts[name].flatten(given, _takes_full_starts(leading, backend))
    is_wanted = any(isinstance(value, Tensor) and value.requires_grad for value in values)
    if gradient.shape != lead or not is_wanted:
        return call_unchecked(name, *given)
    out: Tensor = _Valued.apply(name, backend, gradient.reshape(-1, lead[-1]), *values)
    return out.reshape(lead)


class _Valued(torch.autograd.Function):
    """An op whose forward pass runs its backward kernel, which returns the gradients and the value."""

    @staticmethod
    def forward(ctx: Any, name: str, backend: str, gradient: Tensor, *values: Any) -> Tensor:
        op = OPS[name]
        names = [argument.name for argument in op.forward.flat_arguments[:-1]]
        needed = dict(zip(names, ctx.needs_input_grad[3:], strict=True))
        wanted = [needed[optional] for optional in op.optional]
        # The backward op of a valued op reads all its arguments.
        *gradients, out = getattr(_ops, op.backward.name).default(gradient, *values, *wanted, True, backend)
        made = dict(zip([result.name for result in op.backward.flat_results[:-1]], gradients, strict=True))
        ctx.gradients = [made[f"d{each}"] if is_needed else None for each, is_needed in needed.items()]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # Dropped here, so that autograd adopts the gradients of parameters instead of copying them.
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, None, *gradients


def _call(name: str, given: tuple[Any, ...]) -> Any:
    check_arguments(name, given)
    return _compute(name, given)


def _compute(name: str, given: tuple[Any, ...]) -> Any:
    return _backends.implementation(name, given[_LEADING[name]])(*given)


def _in_float32(function: Function, name: str, given: tuple[Any, ...]) -> Any:
    return _autocast.in_float32(partial(function, name), given)


_LEADING = {op.name: op.arguments.index(op.leading_argument) for op in OPS.values()}
_layouts = {op.name: Layout(op) for op in OPS.values()}


def _takes_full_starts(leading: Tensor, backend: str) -> bool:
    """True if the backend, or by default that of the device, needs one start for each row."""
    return leading.device.type == "cpu" and backend in ("", "cpp")


def _compiled(op: Op) -> Function:
    """The compiled op as a function with the arguments and the results of the reference."""
    layout, overload = _layouts[op.name], getattr(_ops, op.name).default
    is_single = len(op.results) == 1
    places = [i for i, argument in enumerate(op.arguments) if argument.has_gradient]

    def compute(*given: Any) -> Any:
        if _derivatives.forward_mode_is_on():
            _derivatives.refuse_tangents(op.name, given)
        backend = _backends.requested(op.name) or ""
        full_starts = _takes_full_starts(given[_LEADING[op.name]], backend)
        values, lead = layout.flatten(given, full_starts)
        if op.kept:
            values.append(_derivatives.may_be_recorded([given[i] for i in places]))
        made = overload(*values, backend)
        results = layout.restore((made,) if is_single else made[: len(op.results)], lead)
        return results[0] if is_single else results

    return compute


# --- shapes ---------------------------------------------------------------------------------------------


def _fake(op: Op) -> Function:
    """The shapes of an op's results."""
    signature = op.forward
    leading = [argument.name for argument in signature.flat_arguments].index(op.leading)
    flags = len(signature.flat_arguments) - 1 - len(op.kept_results)

    def fake(*given: Any) -> Any:
        sizes, like = bound_sizes(signature, given), given[leading]
        made = [like.new_empty(shape_of(result, sizes)) for result in op.results]
        wide = torch.promote_types(like.dtype, torch.float32)
        for kept, is_wanted in zip(op.kept_results, given[flags:-1], strict=True):
            made.append(like.new_empty(shape_of(kept, sizes) if is_wanted else (0,), dtype=wide))
        return made[0] if len(made) == 1 else tuple(made)

    return fake


def _fake_backward(op: Op) -> Function:
    """The shapes of an op's gradients."""
    signature = op.backward
    names = [argument.name for argument in signature.flat_arguments]

    def fake(*given: Any) -> Any:
        values = dict(zip(names, given, strict=True))
        sizes = bound_sizes(signature, given)

        def shape(gradient: Argument) -> Any:
            if not values.get(f"with_{gradient.name}", True):
                return (0,)
            by = values.get(gradient.name.removeprefix("d"))  # the argument; a start may have several shapes
            return shape_of(gradient, sizes) if by is None else by.shape

        made = tuple(given[0].new_empty(shape(gradient)) for gradient in signature.flat_results)
        return made[0] if len(made) == 1 else made

    return fake


# --- autograd -------------------------------------------------------------------------------------------


def _setup_context(op: Op) -> Function:
    """The function that saves the tensors for the backward pass."""
    places = {argument.name: i for i, argument in enumerate(op.forward.flat_arguments)}
    made_at = {result.name: i for i, result in enumerate(op.forward.results)}
    saved = [argument for argument in op.backward.flat_arguments if argument.name in places | made_at]
    tensors = [
        (argument.name in made_at, (made_at | places)[argument.name])
        for argument in saved
        if argument.kind != "choice"
    ]
    names = [places[argument.name] for argument in saved if argument.kind == "choice"]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        made = (output,) if isinstance(output, Tensor) else output
        ctx.names = [inputs[i] for i in names]
        ctx.save_for_backward(*[made[i] if is_made else inputs[i] for is_made, i in tensors])
        if op.kept:
            ctx.shapes = [result.shape for result in made]
            ctx.mark_non_differentiable(*made[len(op.results) :])
            ctx.set_materialize_grads(False)  # autograd would create zeros for the kept outputs too

    return setup_context


def _backward(op: Op) -> Function:
    """The gradients with respect to all arguments of an op, in the precision of its forward pass."""
    overload = getattr(_ops, f"{op.name}_backward").default
    arguments = op.forward.flat_arguments
    names = [argument.name for argument in arguments]
    optional = [names.index(name) for name in op.optional]
    returned = [i for i, argument in enumerate(arguments) if argument.has_gradient]
    is_name = [argument.kind == "choice" for argument in op.backward.flat_arguments[len(op.results) :]]
    values = len(op.results) if op.valued else 0
    is_name = is_name[: -1 - len(optional) - values]  # saved values; the flags and the backend follow

    def backward(ctx: Any, incoming: tuple[Any, ...]) -> tuple[Any, ...]:
        tensors, chosen = iter(ctx.saved_tensors), iter(ctx.names)
        saved = [next(chosen) if named else next(tensors) for named in is_name]
        grads = list(incoming[: len(op.results)])
        for i, grad in enumerate(grads):
            if grad is None:
                grads[i] = ctx.saved_tensors[0].new_zeros(ctx.shapes[i])
        wanted = [ctx.needs_input_grad[i] for i in optional]
        made = overload(*grads, *saved, *wanted, *[False] * values, next(chosen))
        gradients: list[Any] = [None] * len(arguments)
        made = made[: len(returned)] if isinstance(made, tuple) else (made,)
        for i, gradient in zip(returned, made, strict=True):
            gradients[i] = gradient
        for i, is_wanted in zip(optional, wanted, strict=True):
            gradients[i] = gradients[i] if is_wanted else None
        return tuple(gradients)

    def call(ctx: Any, *incoming: Any) -> Any:
        if _derivatives.forward_mode_is_on():
            _derivatives.refuse_tangents(op.name, (ctx.saved_tensors, incoming))
        if _autocast.is_on() and (device := _autocast.device_where_on(incoming)):
            with torch.autocast(device, enabled=False):
                return backward(ctx, incoming)
        if torch.is_grad_enabled():
            return backward(ctx, incoming)
        # Skips autograd's Python code for the backward op, which would take time and do nothing.
        with torch._C._AutoDispatchBelowAutograd():
            return backward(ctx, incoming)

    return call


def _refuse_derivative(name: str, wanted: str, *expected: str) -> Function:
    """A backward pass that raises, for ops without gradients and for those that compute gradients."""

    def refuse(ctx: Any, *incoming: Any) -> NoReturn:
        _derivatives.refuse(name, wanted, *expected)

    return refuse


# --- the functions of the backends ----------------------------------------------------------------------


def _python_functions(op: str, stem: str) -> Iterator[tuple[str, Any, Any]]:
    """The backends with a Python function for ``op``, with their package and its module ``stem``."""
    for backend, package in (("triton", triton), ("cuda", cuda)):
        if package.missing is None and find_spec(f"{package.__name__}.{stem}") is not None:
            module = importlib.import_module(f"{package.__name__}.{stem}")
            if hasattr(module, op):
                yield backend, package, module


def _router(op: str, stem: str, signature: Signature, device: str) -> Function:
    """The function that dispatches a call on ``device`` to the backend named by its last argument."""
    functions: dict[str, Function] = {
        backend: getattr(module, signature.name) for backend, _, module in _python_functions(op, stem)
    }
    if device == "cpu" and _extension.missing is None:
        kernel = torch.library.get_kernel(f"dmm_fast::{signature.name}", "CPU")
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
        functions["cpp"] = lambda *given: kernel.call_boxed(keys, *given, "cpp")

    def route(*given: Any) -> Any:
        first = given[0] if isinstance(given[0], Tensor) else given[0][0]
        name = given[-1] or _backends.candidates(op, device, first.dtype)[0]
        if name not in functions:
            able = _backends.candidates(op, device, first.dtype)
            _backends.refuse(op, name, device, first.dtype, [each for each in able if each in functions])
        if name == "cpp":
            return functions[name](*given[:-1])
        made = functions[name](*signature.group(given)[:-1])
        if not isinstance(made, tuple):
            return made
        flat: list[Tensor] = []
        for each in made:  # the gradients of weights are a list
            flat += each if isinstance(each, list) else (each,)
        return tuple(flat)

    return route


def route_on(device: str) -> None:
    """Install the routers for ``device``: a GPU, or the CPU if Triton's or CUDA's kernels run there.

    That is the case if Triton's kernels are interpreted or CUDA's are emulated.
    """
    rows = [(op.name, op.stem, s) for op in OPS.values() for s in op.signatures]
    rows.append((CLIPPED_ADAM.name, CLIPPED_ADAM.name, CLIPPED_ADAM))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        for op, stem, signature in rows:
            route = _router(op, stem, signature, device)
            _library.impl(signature.name, route, device.upper(), allow_override=True)


def difference_of_library() -> str | None:
    """The first op whose schema in the compiled library differs from the table; None if all agree."""
    for signature in signatures():
        found = getattr(_ops, signature.name, None)
        wanted = f"dmm_fast::{signature.schema}"
        if found is None or found.default._schema != torch._C.parse_schema(wanted):
            return f"{signature.name} {'is missing' if found is None else 'has other arguments or results'}"
    return None


def _register(op: Op) -> None:
    """Register a row of the table with torch and with ``use_backend``."""
    name, backward = op.forward.name, op.backward.name
    torch.library.register_fake(f"dmm_fast::{name}", _fake(op), lib=_library)
    register_compiled(name, op.stem, _compiled(op))
    if not op.has_backward:
        refuse = _refuse_derivative(
            name, "a gradient", "no derivatives, of which a compiled backend has none"
        )
        torch.library.register_autograd(f"dmm_fast::{name}", refuse, lib=_library)
        return
    torch.library.register_fake(f"dmm_fast::{backward}", _fake_backward(op), lib=_library)
    torch.library.register_autograd(
        f"dmm_fast::{name}", _backward(op), setup_context=_setup_context(op), lib=_library
    )
    refuse = _refuse_derivative(name, "a second derivative")
    torch.library.register_autograd(f"dmm_fast::{backward}", refuse, lib=_library)


def register_compiled(op: str, stem: str, compute: Function) -> None:
    """Register ``compute``, which calls the compiled op, for each backend that implements the op."""
    if _extension.of_other_version is not None:
        return
    if _extension.missing is None:
        _backends.register(op, "cpp", compute, _extension.DTYPES)
    for backend, package, _ in _python_functions(op, stem):
        _backends.register(op, backend, compute, package.DTYPES)


if _extension.missing is None and (_difference := difference_of_library()):
    _extension.leave_out(_difference)
for _op in OPS.values():
    _backends.register(_op.name, "reference", getattr(reference, _op.name))
if _extension.of_other_version is None:
    if _extension.missing is not None:
        for _signature in signatures():
            _library.define(_signature.schema)
    for _op in OPS.values():
        _register(_op)
    route_on("cuda")
    if triton.missing is None and triton.INTERPRETED:
        route_on("cpu")
    elif triton.missing is None:
        importlib.import_module("dmm_fast.triton.names").name_kernels()
