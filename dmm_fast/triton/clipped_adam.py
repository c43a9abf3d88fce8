"""A step of Adam with clipped gradients: every element of every tensor is read and written once.

One launch does all tensors. Where they lie is in a table on the device, with a line for each program.
"""

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.triton.common import cdiv, on_device_of

BLOCK = 2048  # elements of a program
_POINTED_TO = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_Places = tuple[tuple[int, ...], ...]
"""For each parameter the addresses of it, its gradient and its averages, how many elements each has, and
the addresses of its step count and its learning rate (0 where those are numbers)."""


def clipped_adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    centered_variance: bool,
    steps: list[Tensor],
    lrs: list[Tensor],
) -> None:
    """Step every tensor in place; the four of a parameter are dense and laid out in memory alike.

    ``steps`` and ``lrs`` hold a tensor for each parameter; where one is empty, ``step`` or ``lr`` counts.
    """
    first = params[0]
    on_device = bool(steps or lrs)
    if on_device:  # a number joins the tensors
        steps = steps or [torch.full((), step, dtype=torch.int64, device=first.device)] * len(params)
        lrs = lrs or [torch.full((), lr, dtype=torch.float64, device=first.device)] * len(params)
    fours = zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    sizes = (p.numel() for p in params)
    numbers = zip(steps, lrs, strict=True) if on_device else [()] * len(params)
    places = tuple(
        (*_addresses(four), size, *(_addresses(two) or (0, 0)))
        for four, size, two in zip(fours, sizes, numbers, strict=True)
    )
    programs = sum(cdiv(place[4], BLOCK) for place in places)
    if programs == 0:
        return
    with on_device_of(first):
        clipped_adam_kernel[(programs,)](
            _table(places, first),
            *(beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay, clip_norm),
            *(_log(beta1), _log(beta2)),
            0.0 if on_device else lr * math.sqrt(1 - beta2**step) / (1 - beta1**step),
            ON_DEVICE=on_device,
            DECAYS=weight_decay != 0,
            CENTERED=centered_variance,
            DTYPE=_POINTED_TO[first.dtype],
            BLOCK=BLOCK,
        )


def _addresses(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors)


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


def _table(places: _Places, like: Tensor) -> Tensor:
    """int64 ``[programs, 7]`` beside ``like``: places, with how many elements there are from there on."""
    if not like.is_cuda:
        return _lines(places, like.itemsize)
    if torch.cuda.is_current_stream_capturing():
        # The copy becomes a part of the graph and runs at each replay: what it reads has to stay.
        host = _lines(places, like.itemsize).pin_memory()
        _read_by_graphs.append(host)
        return host.to(like.device, non_blocking=True)
    return _kept_table(places, like.itemsize, torch.cuda.current_stream())


_read_by_graphs: list[Tensor] = []


@lru_cache(maxsize=64)
def _kept_table(places: _Places, itemsize: int, stream: torch.cuda.Stream) -> Tensor:
    """The table, kept for later steps: an optimizer's tensors mostly stay where they are.

    Each ``stream`` has its own: on another than the one that copies it, it might not be there yet. From
    pinned memory the copy makes the host wait for nothing.
    """
    return _lines(places, itemsize).pin_memory().to(stream.device, non_blocking=True)


def _lines(places: _Places, itemsize: int) -> Tensor:
    lines = [
        [*(address + start * itemsize for address in four), min(BLOCK, size - start), step, lr]
        for *four, size, step, lr in places
        for start in range(0, size, BLOCK)
    ]
    return torch.tensor(lines)


@triton.jit
def clipped_adam_kernel(  # type: ignore[no-untyped-def]
    table,
    beta1,
    rest1,
    beta2,
    rest2,
    eps,
    weight_decay,
    clip_norm,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    step_size,
    ON_DEVICE: tl.constexpr,
    DECAYS: tl.constexpr,
    CENTERED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program steps the elements of one line of ``table``: up to ``BLOCK`` of one parameter.

    Reads and writes them in the parameter, its gradient (which is clamped) and its two averages. With
    ``ON_DEVICE`` the line says where the step count and the learning rate are; else there is ``step_size``.
    """
    line = table + tl.program_id(0) * 7
    i = tl.arange(0, BLOCK)
    here = i < tl.load(line + 4)
    param = tl.load(line).to(tl.pointer_type(DTYPE)) + i
    grad = tl.load(line + 1).to(tl.pointer_type(DTYPE)) + i
    exp_avg = tl.load(line + 2).to(tl.pointer_type(DTYPE)) + i
    exp_avg_sq = tl.load(line + 3).to(tl.pointer_type(DTYPE)) + i

    p = tl.load(param, mask=here, other=0.0).to(tl.float32)
    g = tl.load(grad, mask=here, other=0.0).to(tl.float32)
    m = tl.load(exp_avg, mask=here, other=0.0).to(tl.float32)
    v = tl.load(exp_avg_sq, mask=here, other=0.0).to(tl.float32)

    if ON_DEVICE:
        step = tl.load(tl.load(line + 5).to(tl.pointer_type(tl.int64))).to(tl.float64)
        lr = tl.load(tl.load(line + 6).to(tl.pointer_type(tl.float64)))
        corrected = lr * tl.sqrt(1.0 - tl.exp(step * log_beta2)) / (1.0 - tl.exp(step * log_beta1))
        step_size = corrected.to(tl.float32)

    g = tl.where(g < -clip_norm, -clip_norm, tl.where(g > clip_norm, clip_norm, g))  # NaN stays
    d = g + weight_decay * p if DECAYS else g
    m = m * beta1 + rest1 * d
    e = d - m if CENTERED else d
    v = v * beta2 + rest2 * (e * e)
    p -= step_size * tl.div_rn(m, tl.sqrt_rn(v) + eps)

    tl.store(grad, g.to(DTYPE), mask=here)
    tl.store(exp_avg, m.to(DTYPE), mask=here)
    tl.store(exp_avg_sq, v.to(DTYPE), mask=here)
    tl.store(param, p.to(DTYPE), mask=here)
