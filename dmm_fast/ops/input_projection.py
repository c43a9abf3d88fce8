"""The projected data that the inference network's recurrence reads."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.layout import fresh, particles

_pick = backend.reference_op("input_projection", reference.input_projection)


@in_float32
def input_projection(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    r"""``x_proj_t = W x_t + b`` on valid steps.

    Rows of few nonzero values, as piano rolls have them, may be computed from those alone: a weight that
    is not finite is then seen only where it meets one.

    Args:
        x: ``[..., B, T, D]``; what stands past the end of a row is not read.
        w: ``[H, D]``, ``W_ih`` of a recurrent layer.
        b: ``[H]``, its ``b_ih + b_hh``.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``x_proj [..., B, T, H]``, zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``x`` is no floating-point tensor.

    Source: arXiv 1609.09869, section 4; the first half of ``nn.RNN`` in Pyro's ``examples/dmm.py``.
    """
    B, T, D = check.sequences("x", x)
    check.like("w", w, x, "x")
    if w.dim() != 2 or w.shape[1] != D:
        check.fail("w", f"shape (H, {D})", check.describe(w))
    check.like("b", b, x, "x")
    check.shape("b", b, (w.shape[0],))
    check.lengths(lengths, B, T, x.device)
    return _pick(x)(x, w, b, lengths)


def _compute(library: Any, x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    lead = x.shape[:-2]
    x_proj: Tensor = library.input_projection(particles(x, lead, 2), w, b, lengths)
    return x_proj.reshape(*x.shape[:-1], w.shape[0])


def _fake(x: Tensor, w: Tensor, b: Tensor, lengths: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _fake_backward(dout: Tensor, x: Tensor, w: Tensor, lengths: Tensor, with_dx: bool) -> tuple[Tensor, ...]:
    P, B, T, D = x.shape
    return x.new_empty((P, B, T if with_dx else 0, D)), *fresh(w), w.new_empty(w.shape[:1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, lengths = inputs
    ctx.save_for_backward(x, w, lengths)


def _backward(library: Any, ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    with_dx = ctx.needs_input_grad[0]
    dx, dw, db = library.input_projection_backward(dout, *ctx.saved_tensors, with_dx)
    return dx if with_dx else None, dw, db, None


compiled.differentiate("input_projection", "input_projection", _fake, _fake_backward, _save, _backward)
compiled.provide("input_projection", "input_projection", _compute)
