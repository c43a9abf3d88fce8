"""Random arguments of an op at given sizes, drawn as the table of ops describes them.

Tests and benchmarks share this module. It belongs to the benchmarks because tests may import benchmarks but
not the other way round, and the package itself draws no arguments.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS
from dmm_fast import check, reference
from dmm_fast.ops.schema import WEIGHTS
from dmm_fast.ops.schema._signature import Argument, size_of, sizes_in

MAX_DRAWS = 1000

Inputs = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes by the letters of the table of ops, by default the tutorial's, and variants of a call."""

    B: int = TUTORIAL_BATCH
    T: int = TUTORIAL_STEPS
    D: int = 88
    Z: int = 100
    H: int = 600
    R: int = 200
    G: int = 200
    E: int = 100
    U: int = 100
    K: int = 2
    F: int = 100
    X: int = 0
    particles: tuple[int, ...] = ()
    shared: bool = False  # x, h and value have no particle dimensions
    start: str = "one"  # shape of h_0, z_0, z_q_0: "one" [Z], "rows" [B, Z] or "particles" [..., B, Z]
    lengths: str = "full"  # "ragged" includes a row of one step, "zeros" also rows of no step
    mask: str = "none"  # or "steps" [B, T] or "dims" [B, T, D]
    layout: str = "contiguous"  # "expanded": drawn once and expanded over particles and rows
    nonlinearity: str = "relu"
    direction: str = "backward"

    @property
    def letters(self) -> dict[str, int]:
        """The sizes by letter."""
        given = {name: size for name, size in vars(self).items() if name.isupper()}
        return {**given, "I": self.Z + self.X}

    def shape(self, word: str) -> tuple[list[int], list[int]]:
        """The shape to draw and the shape to expand it to; they differ for the layout "expanded"."""
        expand, letters = self.layout == "expanded", self.letters
        starts = {"one": (), "rows": (self.B,), "particles": (*self.particles, self.B)}
        drawn: list[int] = []
        full: list[int] = []
        for size in sizes_in(
            word.replace("N", "NBT").replace("n", "nBT")
        ):  # rows of a single step are drawn as those of sequences
            sizes: tuple[int, ...]
            if size in "PN":
                sizes = self.particles
            elif size in "pn":
                sizes = () if self.shared else self.particles
            elif size == "s":
                sizes = starts["particles" if expand else self.start]
            else:
                sizes = (size_of(size, letters),)
            once = expand and (size in "pns" or (size == "B" and word[0] in "PN"))
            full += sizes
            drawn += [1] * len(sizes) if once else sizes
        return drawn, full

    def row_lengths(self) -> list[int]:
        """The lengths of the rows."""
        B, T = self.B, self.T
        if self.lengths == "full":
            return [T] * B
        ragged = [1 + (b * (T - 1)) // max(B - 1, 1) for b in range(B)] if B > 1 else [max(1, T - 2)]
        return ragged if self.lengths == "ragged" else [n if b % 2 else 0 for b, n in enumerate(ragged)]


# --- drawing ------------------------------------------------------------------------------------------------


def draw(arguments: Iterable[Argument], sizes: Sizes, generator: torch.Generator) -> Inputs:
    """Draw the arguments, float32 on the CPU, by name; flags are True, and plans are not drawn."""
    drawn: Inputs = {}
    for argument in arguments:
        if argument.kind == "tensor":
            shape, full = sizes.shape(argument.dims)
            drawn[argument.name] = numbers(argument.fact, shape, generator).expand(full)
        elif argument.kind == "weights":
            drawn[argument.name] = _weights(argument.dims, sizes, generator)
        elif argument.kind == "lengths":
            drawn[argument.name] = torch.tensor(sizes.row_lengths(), dtype=torch.int64)
        elif argument.kind == "mask":
            drawn[argument.name] = _mask(sizes, generator)
        elif argument.kind == "choice":
            drawn[argument.name] = getattr(sizes, argument.name)
        elif argument.kind == "flag":
            drawn[argument.name] = True
    return drawn


def numbers(fact: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw a tensor with the property that the table of ops calls a fact; standard normal without one.

    Raises:
        ValueError: the fact is unknown.
    """
    if fact == "weight":
        return _uniform(shape, generator)
    if fact == "uniform":
        return torch.rand(shape, generator=generator)
    number = torch.randn(shape, generator=generator)
    if fact == "binary":
        return (number > 0.5).float()
    if fact == "count":
        return (4.0 * number).exp().clamp_max(40.0).floor()
    if fact == "one_hot":
        return torch.nn.functional.one_hot(number.argmax(-1), shape[-1]).float()
    if fact == "positive":
        return 0.1 + torch.nn.functional.softplus(number)
    if fact == "sparse":
        density = torch.rand([*shape[:-1], 1], generator=generator).square()
        return number * (torch.rand(shape, generator=generator) < density)
    if fact == "wide":
        return 3.0 * number
    if fact:
        check.fail("fact", "binary, count, one_hot, positive, sparse, uniform, weight or wide", repr(fact))
    return number


def _weights(kind: str, sizes: Sizes, generator: torch.Generator) -> Any:
    """Draw weights and biases as ``nn.Linear`` does: uniform within 1 / sqrt(inputs)."""
    tensors: list[Tensor] = []
    inputs = 1
    for name, word in WEIGHTS[kind].entries:
        shape, _ = sizes.shape(word)
        inputs = shape[-1] if name.startswith("w_") else inputs
        tensors.append(_uniform(shape, generator, inputs))
    return WEIGHTS[kind].tuple_type(*tensors)


def _uniform(shape: Sequence[int], generator: torch.Generator, inputs: int | None = None) -> Tensor:
    """Draw uniformly within 1 / sqrt(inputs), by default the size of the last dimension."""
    return (2.0 * torch.rand(shape, generator=generator) - 1.0) * (1.0 / sqrt(inputs or shape[-1]))


def _mask(sizes: Sizes, generator: torch.Generator) -> Tensor | None:
    if sizes.mask == "none":
        return None
    drawn = full = [sizes.B, sizes.T] + [sizes.D] * (sizes.mask == "dims")
    if sizes.layout == "expanded":
        drawn = [sizes.B, sizes.T, 1] if sizes.mask == "dims" else [1, sizes.T]
    return (torch.rand(drawn, generator=generator) < 0.7).expand(full)


# --- kinks --------------------------------------------------------------------------------------------------


def off_kinks(op: str, draws: Iterable[Inputs], margin: float) -> Inputs:
    """The first draw of the op's arguments in which no input of a ReLU is within ``margin`` of zero.

    The sign of such an input would depend on rounding, and single entries of a gradient with it, in every
    precision and implementation.

    Raises:
        RuntimeError: there is none among the first :data:`MAX_DRAWS`.
    """
    for inputs in islice(draws, MAX_DRAWS):
        with torch.no_grad(), _NearestToAKink() as kinks:
            getattr(reference, op)(**map_tensors(inputs, to_double))
        if kinks.distance > margin:
            return inputs
    raise RuntimeError(f"{op}: expected a draw without a ReLU input near zero in {MAX_DRAWS}, got none")


class _NearestToAKink(TorchFunctionMode):
    """Keeps the smallest magnitude of the inputs of all ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = inf

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func in (torch.relu, torch.nn.functional.relu) and args[0].numel():
            self.distance = min(self.distance, args[0].abs().min().item())
        return func(*args, **(kwargs or {}))


# --- the tensors of arguments -------------------------------------------------------------------------------


def tensors(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """All tensors with their names: ``weights.<field>`` within weights, ``<list>.<i>`` within a list."""
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple | list):
            yield from ((f"{name}.{part}", tensor) for part, tensor in _parts(value))


def map_tensors(inputs: Inputs, change: Callable[[str, Tensor], Tensor]) -> Inputs:
    """Apply ``change(name, tensor)`` to every tensor that :func:`tensors` names."""
    changed: Inputs = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            changed[name] = change(name, value)
        elif isinstance(value, tuple | list):
            parts = [change(f"{name}.{part}", tensor) for part, tensor in _parts(value)]
            changed[name] = parts if isinstance(value, list) else type(value)(*parts)
        else:
            changed[name] = value
    return changed


def _parts(value: Any) -> Iterator[tuple[Any, Tensor]]:
    return enumerate(value) if isinstance(value, list) else zip(value._fields, value, strict=True)


def differentiable(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors that an op is differentiable by: all floating-point tensors except the mask."""
    return {n: t for n, t in tensors(inputs) if t.is_floating_point() and n != "mask"}


def to_double(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` in float64 if it is floating-point; for :func:`map_tensors`."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor
