"""``clipped_adam`` through every backend, held to the float64 reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import reference, use_backend
from dmm_fast.ops import clipped_adam
from tests.compare import EAGER_FACTOR, FLOOR_EPS, each_backend, each_backend_and_dtype, error
from tests.device import DEVICE

SHAPES = [(), (1,), (7,), (3, 5), (33, 65), (0,), (600, 88), (2, 3, 4)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 2.0},
    {"centered_variance": True, "weight_decay": 0.1},
    {"clip_norm": float("inf")},
]
STEPS = 5


def lists(dtype: torch.dtype, strided: bool, device: str = "cpu") -> list[list[Tensor]]:
    """Parameters, gradients, averages and averages of squares, the same numbers everywhere."""
    generator = torch.Generator().manual_seed(3)

    def draw(shape: tuple[int, ...], scale: float = 1.0, absolute: bool = False) -> Tensor:
        number = scale * torch.randn(shape, generator=generator)
        number = (number.abs() if absolute else number).to(device, dtype)
        # A transposed copy: the same values in another order in memory, and each tensor in its own.
        return number.mT.contiguous().mT if strided and number.dim() == 2 else number

    return [
        [draw(s) for s in SHAPES],
        [draw(s, 10.0) for s in SHAPES],
        [draw(s, 0.1) for s in SHAPES],
        [draw(s, 0.1, absolute=True).contiguous() for s in SHAPES],
    ]


def run(
    function: Any, dtype: torch.dtype, strided: bool, device: str = "cpu", **options: Any
) -> list[list[Tensor]]:
    tensors = lists(dtype, strided, device)
    settings = {"weight_decay": 0.0, "clip_norm": 10.0, **options}
    for step in range(1, STEPS + 1):
        function(*tensors, step=step, lr=1e-2, beta1=0.96, beta2=0.999, eps=1e-8, **settings)
    return tensors


@pytest.mark.parametrize("strided", [False, True], ids=["dense", "strided"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "plain")
@each_backend_and_dtype("clipped_adam")
def test_steps_are_as_near_the_truth_as_eager_pytorch(
    backend: str, dtype: torch.dtype, options: dict[str, Any], strided: bool
) -> None:
    hold(backend, dtype, options, strided)


@pytest.mark.usefixtures("narrower")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_so_is_the_library_on_narrower_instruction_sets(dtype: torch.dtype, options: dict[str, Any]) -> None:
    hold("cpp", dtype, options, strided=False)


def hold(backend: str, dtype: torch.dtype, options: dict[str, Any], strided: bool) -> None:
    """Compare with the float64 reference, by what eager PyTorch is off."""
    truth = run(reference.clipped_adam, torch.float64, strided, **options)
    eager = run(reference.clipped_adam, dtype, strided, **options)
    with use_backend(backend):
        got = run(clipped_adam, dtype, strided, DEVICE, **options)
    for of_truth, of_eager, of_got in zip(truth, eager, got, strict=True):
        for expected, yardstick, value in zip(of_truth, of_eager, of_got, strict=True):
            bound = max(EAGER_FACTOR * error(yardstick, expected), FLOOR_EPS * torch.finfo(dtype).eps)
            assert error(value, expected) <= bound
            assert value.stride() == yardstick.stride()


@each_backend("clipped_adam")
def test_a_gradient_that_is_no_number_reaches_its_parameter(backend: str) -> None:
    tensors = [[torch.full((40,), value, device=DEVICE)] for value in (1.0, 0.0, 0.0, 0.0)]
    tensors[1][0][17] = float("nan")
    with use_backend(backend):
        clipped_adam(
            *tensors, step=1, lr=1.0, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0, clip_norm=1.0
        )
    assert tensors[0][0].isnan().nonzero().flatten().tolist() == [17]
