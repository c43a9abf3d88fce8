"""Backend "cuda" for CPU tensors, its kernels under the emulator.

A plugin of pytest, ``-p tests.emulated``, and of the GPU benchmarks, ``--plugin tests.emulated``.

Everything but the kernels is what runs on a GPU: the ops' Python, the plans, the kernels' sources. The tests
of the ops then offer the backend on the CPU like any other.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

emulator: Any  # the module that build.ninja makes, which is on the path
options: Any
_library = torch.library.Library("dmm_fast", "IMPL", "CPU")


def pytest_configure() -> None:
    """Before any test module is imported."""
    install()


def install() -> None:
    """Make the ops' kernels run under the emulator, and backend "cuda" one for the CPU."""
    global emulator, options
    import dmm_emulator

    from dmm_fast.cuda import lane_tiles, plan, rnn_plans
    from dmm_fast.ops import backend

    emulator, options = dmm_emulator, dmm_emulator.Options()
    for op in (
        rnn_scan_steps,
        rnn_scan_steps_backward,
        combiner_scan_steps,
        combiner_scan_steps_backward,
    ):
        _library.impl(op.__name__, op)
    backend._PREFERENCE["cpu"] = (*backend._PREFERENCE["cpu"], "cuda")
    for module in (plan, rnn_plans, lane_tiles):
        vars(module)["kernels"] = kernels  # those that the emulator was compiled with


@lru_cache
def kernels(kind: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, sizes.split(","))) for sizes in emulator.scan_kernels(kind).split())


def rnn_scan_steps(
    x_proj: Tensor, w_hh: Tensor, h_0: Tensor, lengths: Tensor, nonlinearity: str, plan: list[int]
) -> Tensor:
    h = x_proj.new_full(x_proj.shape, float("nan"))
    if h.numel():
        emulator.rnn_scan(x_proj, w_hh, h_0, lengths, nonlinearity == "tanh", plan, h, options)
    return h


def rnn_scan_steps_backward(
    dh: Tensor, h: Tensor, w_hh: Tensor, lengths: Tensor, nonlinearity: str, plan: list[int]
) -> tuple[Tensor, Tensor]:
    dx_proj = h.new_full(h.shape, float("nan"))
    dh_0 = h.new_full((*h.shape[:2], h.shape[3]), float("nan"))
    if dh_0.numel():
        is_tanh = nonlinearity == "tanh"
        emulator.rnn_scan_backward(dh, h, w_hh, lengths, is_tanh, plan, dx_proj, dh_0, options)
    return dx_proj, dh_0


def combiner_scan_steps(
    base: Tensor, eps: Tensor, z_q_0: Tensor, w_z: Tensor, b_z: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *rest, keep_g = rest
    z, loc, pre_scale = (eps.new_full(eps.shape, float("nan")) for _ in range(3))
    g = eps.new_full((*eps.shape[:3], len(w_z)) if keep_g else (0,), float("nan"))
    if z.numel():
        base, b_z = base.contiguous(), b_z.contiguous()
        emulator.combiner_scan(base, eps, z_q_0, w_z, b_z, *rest, z, loc, pre_scale, g, options)
    return z, loc, pre_scale, g


def combiner_scan_steps_backward(
    dz: Tensor, dloc: Tensor, dpre_scale: Tensor, eps: Tensor, pre_scale: Tensor, g: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    P, B, T, Z = eps.shape
    shapes = (g.shape, g.shape, (P, B, T, 2 * Z), eps.shape, (P, B, Z))
    made = tuple(eps.new_full(shape, float("nan")) for shape in shapes)
    if P * B * Z:
        emulator.combiner_scan_backward(
            dz, dloc, dpre_scale, eps, pre_scale, g.contiguous(), *rest, *made, options
        )
    return made
