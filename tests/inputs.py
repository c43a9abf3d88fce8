"""The inputs of an op at a shape.

They are drawn once, as numbers that float32 holds exactly, so that a run in float32 and one in float64
see the same numbers. A draw whose smallest ReLU pre-activation lies within ``RELU_MARGIN`` of zero is
drawn again: there the two precisions may take different sides, and single elements jump.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dmm_fast import reference
from tests.cases import OPS, WEIGHTS, Case, Op
from tests.device import DEVICE

RELU_MARGIN = 1e-5

Inputs = dict[str, Any]


def _shape(spec: str, case: Case) -> tuple[list[int], list[int]]:
    """The shape that is drawn and the one it is expanded to; they differ in layout "expanded"."""
    expand = case.layout == "expanded"
    drawn: list[int] = []
    full: list[int] = []
    starts = {"one": (), "rows": (case.B,), "particles": (*case.particles, case.B)}
    for letter in spec:
        sizes: tuple[int, ...]
        if letter == "P":
            sizes = case.particles
        elif letter == "p":
            sizes = () if case.shared else case.particles
        elif letter == "s":
            sizes = starts["particles" if expand else case.start]
        else:
            sizes = (getattr(case, letter),)
        once = expand and (letter in "ps" or (letter == "B" and spec[0] == "P"))
        full += sizes
        drawn += [1] * len(sizes) if once else sizes
    return drawn, full


def _draw(spec: str, case: Case, generator: torch.Generator) -> Tensor:
    dims, _, kind = spec.partition(":")
    drawn, full = _shape(dims, case)
    number = torch.randn(drawn, generator=generator)
    if kind == "binary":
        number = (number > 0.5).float()
    elif kind == "positive":
        number = 0.1 + torch.nn.functional.softplus(number)
    elif kind == "sparse":  # rows from all zero to dense
        density = torch.rand([*drawn[:-1], 1], generator=generator).square()
        number = number * (torch.rand(drawn, generator=generator) < density)
    elif kind == "wide":
        number = 3.0 * number
    return number.expand(full)


def _draw_weights(kind: str, case: Case, generator: torch.Generator) -> Any:
    """Weights and biases as ``nn.Linear`` draws them: uniform within 1 / sqrt(inputs)."""
    cls, words = WEIGHTS[kind]
    tensors: list[Tensor] = []
    bound = 1.0
    for word in words.split():
        shape = [getattr(case, letter) for letter in word]
        bound = 1.0 / sqrt(shape[-1]) if len(word) == 2 else bound
        tensors.append((2.0 * torch.rand(shape, generator=generator) - 1.0) * bound)
    return cls(*tensors)


def row_lengths(case: Case) -> list[int]:
    """The lengths of the rows, a function of the kind and the sizes alone."""
    B, T = case.B, case.T
    if case.lengths == "full":
        return [T] * B
    ragged = [1 + (b * (T - 1)) // max(B - 1, 1) for b in range(B)] if B > 1 else [max(1, T - 2)]
    return ragged if case.lengths == "ragged" else [n if b % 2 else 0 for b, n in enumerate(ragged)]


def _draw_mask(case: Case, generator: torch.Generator) -> Tensor | None:
    if case.mask == "none":
        return None
    drawn = full = [case.B, case.T] + [case.D] * (case.mask == "dims")
    if case.layout == "expanded":
        drawn = [case.B, case.T, 1] if case.mask == "dims" else [1, case.T]
    return (torch.rand(drawn, generator=generator) < 0.7).expand(full)


def _draw_all(op: Op, case: Case, attempt: int) -> Inputs:
    seed = zlib.crc32(f"{op.name} {case.name} {case.seed} {attempt}".encode())
    generator = torch.Generator().manual_seed(seed)
    values: Inputs = {}
    for name, spec in op.args.items():
        if spec in WEIGHTS:
            values[name] = _draw_weights(spec, case, generator)
        elif spec == "lengths":
            values[name] = torch.tensor(row_lengths(case), dtype=torch.int64)
        elif spec == "mask":
            values[name] = _draw_mask(case, generator)
        elif spec == "name":
            values[name] = case.nonlinearity
        elif spec == "HH":
            bound = 1.0 / sqrt(case.H)
            values[name] = (2.0 * torch.rand(case.H, case.H, generator=generator) - 1.0) * bound
        else:
            values[name] = _draw(spec, case, generator)
    return values


class _ReluMargin(TorchFunctionMode):
    """Keeps the smallest magnitude that goes into a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = inf

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func in (torch.relu, torch.nn.functional.relu) and args[0].numel():
            self.margin = min(self.margin, args[0].abs().min().item())
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=256)
def _numbers(op_name: str, case: Case) -> Inputs:
    """What is drawn, before dtype, poison and layout; the first attempt that keeps off every kink."""
    for attempt in range(100):
        values = _draw_all(OPS[op_name], case, attempt)
        with torch.no_grad(), _ReluMargin() as mode:
            getattr(reference, op_name)(**map_tensors(values, _double))
        if mode.margin > RELU_MARGIN:
            return values
    raise AssertionError(f"{op_name}, {case.name}: every draw has a ReLU input next to zero")


def _double(name: str, tensor: Tensor) -> Tensor:
    return _to(tensor, torch.float64 if tensor.is_floating_point() else tensor.dtype)


def _to(tensor: Tensor, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """``tensor`` elsewhere; what was expanded stays expanded, where ``Tensor.to`` would copy it."""
    once = [slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride()]
    return tensor[tuple(once)].to(device, dtype).expand(tensor.shape)


def map_tensors(values: Inputs, change: Callable[[str, Tensor], Tensor]) -> Inputs:
    """Apply ``change(name, tensor)`` to every tensor, those within a named tuple of weights too."""
    changed: Inputs = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            changed[name] = change(name, value)
        elif isinstance(value, tuple):
            fields = zip(value._fields, value, strict=True)
            changed[name] = type(value)(*(change(f"{name}.{f}", t) for f, t in fields))
        else:
            changed[name] = value
    return changed


def tensors(values: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name; a field of the weights is ``weights.<field>``."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((f"{name}.{f}", t) for f, t in zip(value._fields, value, strict=True))


def differentiable(values: Inputs) -> dict[str, Tensor]:
    """What has a gradient: every floating tensor but the mask."""
    return {n: t for n, t in tensors(values) if t.is_floating_point() and n != "mask"}


def hidden(op: Op, values: Inputs, name: str, of: Tensor) -> Tensor | None:
    """Which entries of argument ``name`` must leave no trace, or None where all of them count."""
    spec = op.args.get(name, "").partition(":")[0]
    if not op.is_sequence or "T" not in spec:
        return None
    valid = reference.valid_steps(values["lengths"], of.shape[-2]).unsqueeze(-1)
    mask = values.get("mask")
    if mask is not None and spec.endswith("D"):
        valid = valid & (mask if mask.dim() == 3 else mask.unsqueeze(-1)).bool()
    return ~valid.expand(of.shape)


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in other memory; what lies between them is NaN, -1 or True."""
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
    """The arguments of the op by name, in the order of its signature; tensors need no gradient yet."""
    op, numbers = OPS[op_name], _numbers(op_name, case)

    def finish(name: str, tensor: Tensor) -> Tensor:
        entries = hidden(op, numbers, name, tensor) if case.poison else None
        if entries is not None:
            tensor = tensor.masked_fill(entries, float(case.poison))
        as_float = tensor.is_floating_point() or (name, case.mask_dtype) == ("mask", "float")
        return lay_out(_to(tensor, dtype if as_float else tensor.dtype, device), case.layout)

    return map_tensors(numbers, finish)
