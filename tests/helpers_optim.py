"""Pairs of parameters, for Pyro's optimizer and for this package's, and their comparison."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (3, 5), (2, 3, 4), (0, 3)]


def make_params(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Any]:
    """Random parameters; matrices are dense with a transposed layout."""
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [(t.t() if t.dim() == 2 else t).requires_grad_() for t in tensors]


def twins(params: list[Any]) -> list[Any]:
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def give_grads(*sides: list[Any], absent: float = 0.0, scale: float = 10.0) -> None:
    """Give the parameters of both sides the same random gradients, or None."""
    for group in zip(*sides, strict=True):
        there = bool(torch.rand(()) >= absent)
        grad = scale * torch.randn_like(group[0])
        for p in group:
            p.grad = grad.clone(memory_format=torch.preserve_format) if there else None


def assert_same(ours: Any, theirs: Any, where: str = "state") -> None:
    """Assert that nested dicts, lists, numbers and tensors agree in type and bitwise."""
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, check_stride=True, msg=where)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert ours == theirs, where


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0},
    {"lr": 0.1, "clip_norm": 0.5, "lrd": 0.9, "centered_variance": True},
    {"weight_decay": 0.3, "centered_variance": True, "eps": 1e-3, "betas": (0.0, 0.5)},
    {"clip_norm": float("inf"), "lrd": 1.01},
]
