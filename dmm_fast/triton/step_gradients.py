"""Weight gradients of ops over sequences: of the scans and of the input projection."""

import torch
from torch import Tensor

from dmm_fast.triton.rows import steps_of
from dmm_fast.triton.runs import neighbours_of
from dmm_fast.triton.weight_gradients import Layer, weight_gradients


def rnn_gradients(
    dx_proj: Tensor, dh_0: Tensor, h: Tensor, h_0: Tensor, lengths: Tensor, direction: str
) -> tuple[Tensor, Tensor]:
    """``dw_hh [H, H]``, and ``dh_0 [P, B, H]`` summed to the shape of ``h_0``.

    ``dw_hh`` is the sum over steps of the deltas times the h that the step read: that of the step after, or
    the start at a row's end; forward in time that of the step before, or the start at a row's first step.
    """
    start = _start_rows(h_0.expand(dh_0.shape))
    layer = Layer(_rows(dx_proj), _rows(h), start=_dense_start(start), with_bias=False)
    read, starts = neighbours_of(1 if direction == "backward" else -1, start), _summed_rows(dh_0, h_0)
    # Not on a side stream: if several layers share h_0, autograd immediately adds their gradients.
    dw, *total = weight_gradients(
        [layer], steps_of(h, lengths), h.dtype, neighbours=read, starts=starts, aside=False
    )
    return dw, total[0].view(h_0.shape) if total else dh_0.sum_to_size(h_0.shape)


def combiner_gradients(
    da: Tensor, dout: Tensor, dz_q_0: Tensor, g: Tensor, h: Tensor, z: Tensor, z_q_0: Tensor, lengths: Tensor
) -> tuple[Tensor, ...]:
    """``dz_q_0`` summed to the shape of ``z_q_0``, and those of ``w_z, b_z, w_loc, b_loc, w_scale, b_scale``.

    ``da`` is the gradient of the argument of the tanh ``g [P, B, T, H]``, ``dout [P, B, T, 2 Z]`` that of loc
    and pre_scale.
    Invalid steps are not read.
    """
    start = _start_rows(z_q_0.expand(dz_q_0.shape))
    dloc, dpre_scale = _rows(dout).chunk(2, dim=1)
    layers = [
        Layer(_rows(da), _rows(z), start=_dense_start(start)),
        Layer(dloc, _rows(g), other=_rows(h)),
        Layer(dpre_scale, _rows(g), other=_rows(h)),
    ]
    before, starts = neighbours_of(-1, start), _summed_rows(dz_q_0, z_q_0)
    gradients = weight_gradients(layers, steps_of(z, lengths), z.dtype, neighbours=before, starts=starts)
    total = gradients.pop().view(z_q_0.shape) if starts is not None else dz_q_0.sum_to_size(z_q_0.shape)
    return total, *gradients


def flow_gradients(
    da: Tensor, dout: Tensor, x: Tensor, a: Tensor, lengths: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The gradients of ``w_in, b_in, w_mean, b_mean, w_log_scale, b_log_scale`` of K flows, stacked.

    ``da [P, B, T, K, F]`` is the gradient of the argument of the ReLU ``a``, ``dout [P, B, T, K, 2 Z]`` that
    of mean and log_scale; ``x [P, B, T, K, Z]`` are the inputs of the flows. Invalid steps are not read.
    """
    (*_, K, Z), F = x.shape, a.shape[-1]
    shapes = (K, F, Z), (K, F), (K, Z, F), (K, Z), (K, Z, F), (K, Z)
    stacked = [x.new_empty(shape, dtype=dtype) for shape in shapes]
    steps, here = steps_of(x, lengths), neighbours_of(0)
    # One launch per flow: a kernel with the layers of four flows takes many times longer to compile.
    for k in range(K):
        da_k, dout_k, x_k, a_k = (each.flatten(0, 2)[:, k] for each in (da, dout, x, a))
        layers = [Layer(da_k, x_k), Layer(dout_k[:, :Z], a_k), Layer(dout_k[:, Z:], a_k)]
        into = [(w[k], b[k]) for w, b in zip(stacked[::2], stacked[1::2], strict=True)]
        # Not on a side stream: autograd immediately multiplies the gradients of flows by their masks.
        weight_gradients(layers, steps, dtype, neighbours=here, aside=False, into=into)
    return stacked


def projection_weight_gradients(dout: Tensor, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``dw [H, D], db [H]`` of a layer at every valid step; invalid steps are not read."""
    layer, steps = Layer(_rows(dout), _rows(x)), steps_of(x, lengths)
    # Not on a side stream: the bias is a sum of two parameters, so autograd immediately copies its gradient.
    dw, db = weight_gradients([layer], steps, x.dtype, neighbours=neighbours_of(0), aside=False)
    return dw, db


def _summed_rows(dstart: Tensor, start: Tensor) -> Tensor | None:
    """The rows of ``dstart [P, B, width]`` if they have to be summed, since all share one start."""
    return dstart.flatten(0, 1) if start.shape[:2] == (1, 1) and dstart.shape != start.shape else None


def _rows(tensor: Tensor) -> Tensor:
    """``[P, B, T, width]`` as a matrix."""
    return tensor.contiguous().flatten(0, 2)


def _start_rows(start: Tensor) -> Tensor:
    """``[P, B, width]`` with strides that are multiples of the width, or zero as in expanded tensors."""
    width = start.shape[2]
    whole = start.stride(2) == 1 and all(stride % width == 0 for stride in start.stride()[:2])
    return start if whole else start.contiguous()


def _dense_start(start: Tensor) -> Tensor:
    """The rows of :func:`_start_rows` as a matrix, which the kernel indexes by the strides."""
    width = start.shape[2]
    return start.as_strided((min(1, start.numel()), width), (width, 1))
