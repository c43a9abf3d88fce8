"""The libraries of compiled ops, C++, CUDA C++ and Triton: the same ops behind one way of registering them.

What an op's file says once (how its arguments are laid out, the shapes of its results, what its backward
needs) holds for every library: each function that calls one takes it as its first argument.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch

from dmm_fast import cuda, kernels, native
from dmm_fast.ops import autocast, backend, derivatives

Dtypes = tuple[torch.dtype, ...]


def provide(stem: str, op: str, compute: Callable[..., Any], on_gpu: Dtypes = ()) -> None:
    """Register ``compute(library, ...)`` for ``op`` with each backend whose library has its file's ops.

    ``on_gpu`` says for which dtypes the C++ library takes tensors of a GPU too, where it was built so.
    """
    for name, library, dtypes in _libraries(stem):
        backend.register(op, name, _forward(op, partial(compute, library)), dtypes)
    if on_gpu and native.cuda_architectures():
        backend.register(op, "cuda", _forward(op, partial(compute, torch.ops.dmm_fast)), on_gpu)


def _forward(op: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    """``compute``, which drops no tangent without a word."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if derivatives.forward_mode_is_on():
            derivatives.refuse_tangents(op, (args, kwargs))
        return compute(*args, **kwargs)

    return call


def differentiate(
    stem: str,
    name: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    save: Callable[..., Any],
    backward: Callable[..., Any],
    public: str | None = None,
) -> None:
    """Tell torch the shapes of a compiled op and of its ``_backward``, and how the two belong together.

    ``backward`` takes the library, then what autograd gives. To differentiate what it returns raises
    :class:`BackendError`, which calls the op ``public`` (None: ``name``).
    """
    public = public or name

    def refuse(ctx: Any, *incoming: Any) -> NoReturn:
        derivatives.refuse(public, "a second derivative")

    for _, library, _ in _libraries(stem):
        op = f"{library.name}::{name}"
        torch.library.register_fake(op, fake)
        torch.library.register_fake(f"{op}_backward", fake_backward)
        torch.library.register_autograd(op, _backward(public, partial(backward, library)), setup_context=save)
        torch.library.register_autograd(f"{op}_backward", refuse)


def _backward(public: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    """``compute`` in the precision of the forward pass, without a word to autograd unless that listens."""

    def call(ctx: Any, *incoming: Any) -> Any:
        if derivatives.forward_mode_is_on():
            derivatives.refuse_tangents(public, (ctx.saved_tensors, incoming))
        if autocast.is_on() and (device := autocast.device_where_on(incoming)):
            with torch.autocast(device, enabled=False):
                return compute(ctx, *incoming)
        if torch.is_grad_enabled():
            return compute(ctx, *incoming)
        # Autograd's part, in Python, would do nothing and take its time.
        with torch._C._AutoDispatchBelowAutograd():
            return compute(ctx, *incoming)

    return call


def _libraries(stem: str) -> Iterator[tuple[str, Any, Dtypes]]:
    """The backend, the library and the dtypes of each library that holds the ops of a file."""
    if native.missing is None:
        yield "cpp", torch.ops.dmm_fast, native.DTYPES
    if cuda.holds(stem):
        yield "cuda", torch.ops.dmm_fast_cuda, cuda.DTYPES
    if kernels.holds(stem):
        yield "triton", torch.ops.dmm_fast_triton, kernels.DTYPES
