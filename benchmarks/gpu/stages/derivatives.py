"""The float32 gradient along a random direction, against a central difference of the float64 reference.

The reference's own backward has no part in it, so this is a check of the mathematics and not of two
implementations of one mistake.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks import errors
from benchmarks.correctness import Verdict
from benchmarks.errors import Sizes
from benchmarks.gpu.calls import Function, backends_of, by, every_op, reference_of
from benchmarks.gpu.stage import Stage, Unit

SIZES = Sizes(B=5, T=7, D=23, Z=17, H=33, R=19, E=29)
# So small that no ReLU's input crosses zero: draws keep off it by more. And so large that what float64 rounds
# does not count.
STEP = 2e-8
BOUND = 1e-5
EAGER_FACTOR = 3.0


def units(stage: Stage) -> Iterator[Unit]:
    """An op of a backend is a unit; the optimizer has no gradient."""
    for op in every_op():
        if op == "clipped_adam":
            continue
        for name in backends_of(op, stage.device):
            if name != "reference":
                yield Unit(f"{op}, {name}", partial(hold, stage, op, name))


def hold(stage: Stage, op: str, name: str) -> None:
    """Write one row: the error relative to the gradient's norm."""
    error = directional_error(op, by(name, op), stage.device)
    eager = directional_error(op, by("reference", op), stage.device)
    bound = max(BOUND, EAGER_FACTOR * eager)
    case = f"derivative along a direction, B={SIZES.B}, T={SIZES.T}, ragged"
    stage.record.correctness(Verdict(op, name, case, error, bound, error <= bound).as_dict())


def directional_error(op: str, function: Function, device: str) -> float:
    """``|<gradient, v> - (L(x + e v) - L(x - e v)) / 2e| / |gradient|`` for standard normal ``v``.

    ``L`` is the inner product of the outputs with fixed random numbers.
    """
    drawn = errors.draw(op, SIZES, "ragged", seed=0)
    generator = torch.Generator().manual_seed(1)
    directions = {
        name: torch.randn(t.shape, generator=generator).to(device).double()
        for name, t in errors.differentiable(drawn)
    }
    inputs = errors.map_tensors(drawn, lambda t: t.to(device))
    weights: list[Tensor] = []

    def loss(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        given = outputs if isinstance(outputs, tuple) else (outputs,)
        if not weights:
            weights.extend(torch.randn(o.shape, generator=generator).to(device) for o in given)
        return torch.stack([(o * w.to(o.dtype)).sum() for o, w in zip(given, weights, strict=True)]).sum()

    wanted = dict(errors.differentiable(inputs))
    for tensor in wanted.values():
        tensor.requires_grad_()
    gradients = torch.autograd.grad(loss(function(**inputs)), list(wanted.values()), materialize_grads=True)
    pairs = [(g.double(), directions[n]) for n, g in zip(wanted, gradients, strict=True)]
    along = sum((g * v).sum() for g, v in pairs)
    norm = torch.stack([g.norm() for g, _ in pairs]).norm()

    def moved(by_how_much: float) -> Tensor:
        steps = iter(directions.values())  # in the order of the arguments, as they are visited
        there = errors.map_tensors(
            inputs,
            lambda t: t.detach().double() + by_how_much * next(steps) if t.is_floating_point() else t,
        )
        with torch.no_grad():
            return loss(reference_of(op)(**there))

    numeric = (moved(STEP) - moved(-STEP)) / (2 * STEP)
    error = float((along - numeric).abs() / norm)
    return error if error == error else float("inf")
