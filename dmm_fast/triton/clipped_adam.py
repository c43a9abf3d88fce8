"""A step of Adam with clipped gradients: every element of every tensor is read and written once.

One launch updates all tensors. Their addresses are in a table on the device: a line for each program,
followed by a line for each parameter with the addresses of its step count and learning rate.
"""

import math
from functools import lru_cache
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm_fast.ops._tickets import ticket_to_advance
from dmm_fast.triton.common import cdiv, on_device_of

BLOCK = 2048  # elements of a program
_LINE = tl.constexpr(7)  # entries of a program's line
_AT_ONCE = tl.constexpr(64)  # parameters whose counts and rates the last program updates at a time
_POINTED_TO = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_Places = tuple[tuple[int, ...], ...]
"""For each parameter the addresses of the parameter, its gradient and its moments, the number of elements,
and the addresses of its step count and its learning rate (0 if they are numbers)."""


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
    lrd: float,
    advance: bool,
) -> None:
    """Update every tensor in place; the four tensors of a parameter are dense and have the same layout.

    ``steps`` and ``lrs`` have a tensor for each parameter; if one is empty, ``step`` or ``lr`` is used. With
    ``advance`` the step counts are incremented and the rates multiplied by ``lrd`` first.
    """
    first = params[0]
    on_device = bool(steps or lrs)
    if on_device:  # if one of them is a number, make tensors of it too
        steps = steps or [torch.full((), step, dtype=torch.int64, device=first.device)] * len(params)
        lrs = lrs or [torch.full((), lr, dtype=torch.float64, device=first.device)] * len(params)
    fours = zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    sizes = [p.numel() for p in params]
    numbers = zip(steps, lrs, strict=True) if on_device else [()] * len(params)
    places = tuple(
        (*_addresses(four), size, *(_addresses(two) or (0, 0)))
        for four, size, two in zip(fours, sizes, numbers, strict=True)
    )
    programs = sum(map(_programs, sizes))
    with on_device_of(first):
        ticket = ticket_to_advance(steps, lrs, lrd) if advance else None
        clipped_adam_kernel[(programs,)](
            _table(places, first),
            ticket,
            len(params),
            *(beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay, clip_norm),
            *(_log(beta1), _log(beta2), lrd),
            0.0 if on_device else lr * math.sqrt(1 - beta2**step) / (1 - beta1**step),
            ON_DEVICE=on_device,
            ADVANCES=ticket is not None,
            DECAYS=weight_decay != 0,
            CENTERED=centered_variance,
            DTYPE=_POINTED_TO[first.dtype],
            BLOCK=BLOCK,
        )


def _programs(size: int) -> int:
    """The number of programs of a parameter: at least one, also without elements, to count its step."""
    return cdiv(max(size, 1), BLOCK)


def _addresses(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in tensors)


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


def _table(places: _Places, like: Tensor) -> Tensor:
    """The table of :func:`_lines`, int64 on the device of ``like``, in lines of 7 and then of 2."""
    if not like.is_cuda:
        return _lines(places, like.itemsize)
    if torch.cuda.is_current_stream_capturing():
        # The copy becomes a node of the graph and runs at each replay, so its source has to be kept alive.
        host = _lines(places, like.itemsize).pin_memory()
        _read_by_graphs.append(host)
        return host.to(like.device, non_blocking=True)
    return _kept_table(places, like.itemsize, torch.cuda.current_stream())


_read_by_graphs: list[Tensor] = []


@lru_cache(maxsize=64)
def _kept_table(places: _Places, itemsize: int, stream: torch.cuda.Stream) -> Tensor:
    """The table, cached for later steps, since an optimizer's tensors rarely move.

    Each ``stream`` has its own table, since on another stream the copy might not be complete. The copy from
    pinned memory is asynchronous.
    """
    return _lines(places, itemsize).pin_memory().to(stream.device, non_blocking=True)


def _lines(places: _Places, itemsize: int) -> Tensor:
    """A line for each program: its addresses, the remaining elements, and the addresses of its numbers.

    They are followed by a line for each parameter: the addresses of its step count and its learning rate, or
    0 if a later parameter shares them, so that each is changed once.
    """
    lines = [
        (*(address + start * itemsize for address in four), min(BLOCK, size - start), step, lr)
        for *four, size, step, lr in places
        for start in range(0, _programs(size) * BLOCK, BLOCK)
    ]
    last = {number: i for i, place in enumerate(places) for number in place[5:]}
    changed = [number if last[number] == i else 0 for i, place in enumerate(places) for number in place[5:]]
    return torch.tensor([*chain.from_iterable(lines), *changed])


@triton.jit
def _advance(lines, n_params, lrd):  # type: ignore[no-untyped-def]
    """Increment the step counts and decay the rates in ``lines``, which have two addresses per parameter."""
    for first in range(0, n_params, _AT_ONCE):
        i = first + tl.arange(0, _AT_ONCE)
        counted = tl.load(lines + 2 * i, mask=i < n_params, other=0)
        decayed = tl.load(lines + 2 * i + 1, mask=i < n_params, other=0)
        step, lr = counted.to(tl.pointer_type(tl.int64)), decayed.to(tl.pointer_type(tl.float64))
        tl.store(step, tl.load(step, mask=counted != 0) + 1, mask=counted != 0)
        tl.store(lr, tl.load(lr, mask=decayed != 0) * lrd, mask=decayed != 0)


@triton.jit
def clipped_adam_kernel(  # type: ignore[no-untyped-def]
    table,
    ticket,
    n_params,
    beta1,
    rest1,
    beta2,
    rest2,
    eps,
    weight_decay,
    clip_norm,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    lrd: tl.float64,
    step_size,
    ON_DEVICE: tl.constexpr,
    ADVANCES: tl.constexpr,
    DECAYS: tl.constexpr,
    CENTERED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update the elements of one line of ``table``, up to ``BLOCK`` elements of one parameter.

    The program reads and writes the parameter, its gradient (which is clamped) and its two moments. With
    ``ON_DEVICE`` the line has the addresses of the step count and the learning rate; otherwise ``step_size``
    is used. With ``ADVANCES`` these are the values before the step, and the last program to have read them,
    found by ``ticket``, updates those of all parameters.
    """
    line = table + tl.program_id(0) * _LINE
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
        count = tl.load(tl.load(line + 5).to(tl.pointer_type(tl.int64)))
        lr = tl.load(tl.load(line + 6).to(tl.pointer_type(tl.float64)))
        if ADVANCES:
            count += 1
            lr *= lrd
            tl.debug_barrier()  # all threads of the program have read them
            if tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(0) - 1:
                tl.store(ticket, 0)
                _advance(table + tl.num_programs(0) * _LINE, n_params, lrd)
        step = count.to(tl.float64)
        corrected = lr * tl.sqrt(1.0 - tl.exp(step * log_beta2)) / (1.0 - tl.exp(step * log_beta1))
        step_size = corrected.to(tl.float32)

    g = tl.where(g < -clip_norm, -clip_norm, tl.where(g > clip_norm, clip_norm, g))  # propagates NaN
    d = g + weight_decay * p if DECAYS else g
    m = m * beta1 + rest1 * d
    e = d - m if CENTERED else d
    v = v * beta2 + rest2 * (e * e)
    p -= step_size * tl.div_rn(m, tl.sqrt_rn(v) + eps)

    tl.store(grad, g.to(DTYPE), mask=here)
    tl.store(exp_avg, m.to(DTYPE), mask=here)
    tl.store(exp_avg_sq, v.to(DTYPE), mask=here)
    tl.store(param, p.to(DTYPE), mask=here)
