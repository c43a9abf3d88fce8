"""Weight gradients of ops over sequences: of the two scans, and of what the first of them reads."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import on_device_of
from dmm_fast.triton.rows import decoded, steps_of
from dmm_fast.triton.weight_gradients import Layer, lengths_of, weight_gradients


def rnn_gradients(
    dx_proj: Tensor, dh_0: Tensor, h: Tensor, h_0: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """``dw_hh [H, H]``, and ``dh_0 [P, B, H]`` summed to the shape of ``h_0``.

    The first is at each step the deltas by the h of the step after, or by the start at a row's own end.
    """
    start = _start_rows(h_0.expand(dh_0.shape))
    layer = Layer(_rows(dx_proj), _rows(h), start=_dense_start(start), with_bias=False)
    table = _table(h, lengths, 1, start)
    starts = _summed_rows(dh_0, h_0)
    dw, *total = weight_gradients([layer], steps_of(h, lengths), h.dtype, table=table, starts=starts)
    return dw, total[0].view(h_0.shape) if total else dh_0.sum_to_size(h_0.shape)


def combiner_gradients(
    da: Tensor, dout: Tensor, dz_q_0: Tensor, g: Tensor, h: Tensor, z: Tensor, z_q_0: Tensor, lengths: Tensor
) -> tuple[Tensor, ...]:
    """``dz_q_0`` summed to the shape of ``z_q_0``, and those of ``w_z, b_z, w_loc, b_loc, w_scale, b_scale``.

    ``da`` is of what ``g [P, B, T, H]`` is the tanh of; ``dout [P, B, T, 2 Z]`` is of loc and of pre_scale.
    Nothing is read of what is not valid.
    """
    start = _start_rows(z_q_0.expand(dz_q_0.shape))
    dloc, dpre_scale = _rows(dout).chunk(2, dim=1)
    layers = [
        Layer(_rows(da), _rows(z), start=_dense_start(start)),
        Layer(dloc, _rows(g), other=_rows(h)),
        Layer(dpre_scale, _rows(g), other=_rows(h)),
    ]
    table, starts = _table(z, lengths, -1, start), _summed_rows(dz_q_0, z_q_0)
    gradients = weight_gradients(layers, steps_of(z, lengths), z.dtype, table=table, starts=starts)
    total = gradients.pop().view(z_q_0.shape) if starts is not None else dz_q_0.sum_to_size(z_q_0.shape)
    return total, *gradients


def projection_weight_gradients(dout: Tensor, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``dw [H, D], db [H]`` of a layer at every valid step; nothing is read of what is not valid."""
    steps = steps_of(x, lengths)
    dw, db = weight_gradients([Layer(_rows(dout), _rows(x))], steps, x.dtype, table=_table(x, lengths, 0))
    return dw, db


def _summed_rows(dstart: Tensor, start: Tensor) -> Tensor | None:
    """The rows of ``dstart [P, B, width]``, which it has a sum of where all begin with one."""
    return dstart.flatten(0, 1) if start.shape[:2] == (1, 1) and dstart.shape != start.shape else None


def _rows(tensor: Tensor) -> Tensor:
    """``[P, B, T, width]`` as a matrix."""
    return tensor.contiguous().flatten(0, 2)


def _start_rows(start: Tensor) -> Tensor:
    """``[P, B, width]`` whose sequences begin whole rows apart, as those of an expanded tensor do."""
    width = start.shape[2]
    whole = start.stride(2) == 1 and all(stride % width == 0 for stride in start.stride()[:2])
    return start if whole else start.contiguous()


def _dense_start(start: Tensor) -> Tensor:
    """The rows of :func:`_start_rows` as a matrix; the table knows which is whose."""
    width = start.shape[2]
    return start.as_strided((min(1, start.numel()), width), (width, 1))


def _table(like: Tensor, lengths: Tensor, shift: int, start: Tensor | None = None) -> Tensor:
    """Rows of ``[P, B, T, width]`` tensors by the numbers of valid steps, int32 ``[2, P B T]``, in order.

    The second is of the steps ``shift`` further; beyond a row's ends it is -1 - i for row i of ``start``.
    """
    P, B, T, width = like.shape
    table = torch.empty((2 if shift else 1, P * B * T), dtype=torch.int32, device=like.device)
    strides = (0, 0) if start is None else (start.stride(0) // width, start.stride(1) // width)
    if table.numel():
        with on_device_of(like):
            steps = steps_of(like, lengths)
            table_kernel[(P * B,)](
                table, steps, *strides, P * B * T, SHIFT=shift, BLOCK_B=64, BLOCK_T=128, num_warps=1
            )
    return table


@triton.jit(do_not_specialize=["start_p", "start_b", "count"])
def table_kernel(  # type: ignore[no-untyped-def]
    table, steps, start_p, start_b, count, SHIFT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr
):
    """A sequence: the rows of its valid steps, and those of their neighbours, table [2, count]."""
    particle, b = tl.program_id(0) // decoded(steps.batch), tl.program_id(0) % decoded(steps.batch)
    number = tl.full((), 0, tl.int64)
    length = number
    total = number
    first = 0
    while first < decoded(steps.batch):
        others = first + tl.arange(0, BLOCK_B)
        lengths = lengths_of(steps, others)
        number += tl.sum(tl.where(others < b, lengths, 0), 0)
        length += tl.sum(tl.where(others == b, lengths, 0), 0)
        total += tl.sum(lengths, 0)
        first += BLOCK_B
    to = table + particle * total + number
    row = tl.program_id(0) * decoded(steps.steps)
    step = tl.arange(0, BLOCK_T)
    while tl.min(step, 0) < length:
        valid = step < length
        tl.store(to + step, row + step, mask=valid)
        if SHIFT != 0:
            beyond = (step + SHIFT < 0) | (step + SHIFT >= length)
            neighbour = tl.where(beyond, -1 - (particle * start_p + b * start_b), row + step + SHIFT)
            tl.store(to + count + step, neighbour, mask=valid)
        step += BLOCK_T
