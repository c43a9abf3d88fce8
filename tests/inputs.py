"""Inputs of an op for a case.

They are drawn once, as numbers that float32 holds exactly, so that a run in float32 and one in float64
see the same numbers.
"""

import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import torch
from torch import Tensor

from benchmarks.draws import Inputs, draw, map_tensors, off_kinks
from benchmarks.draws import differentiable as differentiable
from benchmarks.draws import tensors as tensors
from dmm_fast import reference
from dmm_fast.ops.schema import OPS
from dmm_fast.ops.schema._signature import Op
from tests.cases import Case
from tests.device import DEVICE

RELU_MARGIN = 1e-5


@lru_cache(maxsize=256)
def _numbers(op_name: str, case: Case) -> Inputs:
    """The drawn inputs, before dtype, poison and layout are applied."""
    return off_kinks(op_name, _draws(op_name, case), RELU_MARGIN)


def _draws(op_name: str, case: Case) -> Iterator[Inputs]:
    for attempt in count():
        seed = zlib.crc32(f"{op_name} {case.name} {case.seed} {attempt}".encode())
        yield draw(OPS[op_name].arguments, case, torch.Generator().manual_seed(seed))


def _to(tensor: Tensor, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """``tensor`` on another device, still expanded if it was; ``Tensor.to`` would copy it."""
    once = [slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride()]
    return tensor[tuple(once)].to(device, dtype).expand(tensor.shape)


def hidden(op: Op, values: Inputs, name: str, of: Tensor) -> Tensor | None:
    """The entries of argument ``name`` that must have no effect, or None if all of them matter."""
    spec = op.inputs.get(name, "").partition(":")[0]
    if not op.is_sequence or "T" not in spec:
        return None
    valid = reference.valid_steps(values["lengths"], of.shape[-2]).unsqueeze(-1)
    mask = values.get("mask")
    if mask is not None and spec.endswith("D"):
        valid = valid & (mask if mask.dim() == 3 else mask.unsqueeze(-1)).bool()
    return ~valid.expand(of.shape)


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; the gaps hold NaN, -1 or True."""
    if layout == "expanded":
        return tensor.detach()
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor.clone(memory_format=torch.contiguous_format)
    filler = float("nan") if tensor.is_floating_point() else -1
    if layout == "sliced" or tensor.dim() == 1:
        step = 1 if layout == "sliced" else 2
        roomy = tensor.new_full([step * size + 3 for size in tensor.shape], filler)
        view = roomy[tuple(slice(1, 1 + step * size, step) for size in tensor.shape)]
        return view.copy_(tensor)
    axis = -2 if layout == "time_major" and tensor.dim() > 2 else -1
    return tensor.movedim(axis, 0).contiguous().movedim(0, axis)


def build(op_name: str, case: Case, dtype: torch.dtype = torch.float32, device: str = DEVICE) -> Inputs:
    """The arguments of the op by name, in the order of its signature; no tensor requires a gradient."""
    op, numbers = OPS[op_name], _numbers(op_name, case)

    def finish(name: str, tensor: Tensor) -> Tensor:
        entries = hidden(op, numbers, name, tensor) if case.poison else None
        if entries is not None:
            tensor = tensor.masked_fill(entries, float(case.poison))
        as_float = tensor.is_floating_point() or (name, case.mask_dtype) == ("mask", "float")
        return lay_out(_to(tensor, dtype if as_float else tensor.dtype, device), case.layout)

    return map_tensors(numbers, finish)
