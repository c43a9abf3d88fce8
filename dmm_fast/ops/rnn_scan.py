"""The inference network's recurrence, backward in time."""

from typing import Any

from torch import Tensor

from dmm_fast import check, reference
from dmm_fast.ops import backend, compiled
from dmm_fast.ops.autocast import in_float32
from dmm_fast.ops.layout import fresh, particles, starts_of_scan

_pick = backend.reference_op("rnn_scan", reference.rnn_scan)


@in_float32
def rnn_scan(
    x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str = "relu"
) -> Tensor:
    r"""Run ``h_t = f(x_proj_t + W_hh h_{t+1})`` from each row's own end back to ``t = 1``.

    Args:
        x_proj: ``[..., B, T, H]``, the projected inputs ``x W_ih^T + b_ih + b_hh``.
        w_hh: ``[H, H]``.
        h_0: what row ``b`` starts from at ``t = lengths[b]``; of any shape that broadcasts to
            ``[..., B, H]``.
        lengths: int64 ``[B]``, values in ``[0, T]``.
        nonlinearity: ``"relu"`` or ``"tanh"``.

    Returns:
        ``h [..., B, T, H]``, zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``x_proj`` is no floating-point tensor.

    Source: arXiv 1609.09869, section 4; ``nn.RNN`` on the reversed batch in Pyro's ``examples/dmm.py``.
    """
    B, T, H = check.sequences("x_proj", x_proj)
    check.like("w_hh", w_hh, x_proj, "x_proj")
    check.shape("w_hh", w_hh, (H, H))
    check.like("h_0", h_0, x_proj, "x_proj")
    check.broadcastable("h_0", h_0, (*x_proj.shape[:-2], H), "[..., B, H]")
    check.lengths(lengths, B, T, x_proj.device)
    check.kind("nonlinearity", nonlinearity, str)
    if nonlinearity not in ("relu", "tanh"):
        check.fail("nonlinearity", "'relu' or 'tanh'", repr(nonlinearity))
    return _pick(x_proj)(x_proj, w_hh, h_0, lengths, nonlinearity)


def _compute(
    library: Any, x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str = "relu"
) -> Tensor:
    lead, H = x_proj.shape[:-2], x_proj.shape[-1]
    h: Tensor = library.rnn_scan(
        particles(x_proj, lead, 2), w_hh, starts_of_scan(library, h_0, lead, H), lengths, nonlinearity
    )
    return h.reshape(x_proj.shape)


def _fake(x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str) -> Tensor:
    return x_proj.new_empty(x_proj.shape)


def _fake_backward(
    dh: Tensor, h: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str
) -> tuple[Tensor, ...]:
    return fresh(h, w_hh, h_0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, w_hh, h_0, lengths, ctx.nonlinearity = inputs
    ctx.save_for_backward(output, w_hh, h_0, lengths)


def _backward(library: Any, ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
    grads = library.rnn_scan_backward(dh, *ctx.saved_tensors, ctx.nonlinearity)
    return (*grads, None, None)


compiled.differentiate("rnn_scan", "rnn_scan", _fake, _fake_backward, _save, _backward)
compiled.provide("rnn_scan", "rnn_scan", _compute)
