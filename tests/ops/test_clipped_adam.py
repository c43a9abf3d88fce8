"""``clipped_adam`` of every backend, compared with the float64 reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import reference, use_backend
from dmm_fast.ops import _tickets, clipped_adam
from tests.compare import bound, each_backend, each_backend_and_dtype, error
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
    """Parameters, gradients, averages and averages of squares, with reproducible values."""
    generator = torch.Generator().manual_seed(3)

    def draw(shape: tuple[int, ...], scale: float = 1.0, absolute: bool = False) -> Tensor:
        number = scale * torch.randn(shape, generator=generator)
        number = (number.abs() if absolute else number).to(device, dtype)
        # A transposed copy: the same values in another memory order for each tensor.
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
def test_steps_are_as_accurate_as_eager_pytorch(
    backend: str, dtype: torch.dtype, options: dict[str, Any], strided: bool
) -> None:
    hold(backend, dtype, options, strided)


@pytest.mark.usefixtures("narrower")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_so_is_the_library_on_narrower_instruction_sets(dtype: torch.dtype, options: dict[str, Any]) -> None:
    hold("cpp", dtype, options, strided=False)


def hold(backend: str, dtype: torch.dtype, options: dict[str, Any], strided: bool) -> None:
    """Compare with the float64 reference, with bounds from the error of eager PyTorch."""
    truth = run(reference.clipped_adam, torch.float64, strided, **options)
    eager = run(reference.clipped_adam, dtype, strided, **options)
    with use_backend(backend):
        got = run(clipped_adam, dtype, strided, DEVICE, **options)
    for of_truth, of_eager, of_got in zip(truth, eager, got, strict=True):
        for expected, yardstick, value in zip(of_truth, of_eager, of_got, strict=True):
            assert error(value, expected) <= bound(error(yardstick, expected), dtype)
            assert value.stride() == yardstick.stride()


@each_backend("clipped_adam")
def test_a_nan_gradient_reaches_its_parameter(backend: str) -> None:
    tensors = [[torch.full((40,), value, device=DEVICE)] for value in (1.0, 0.0, 0.0, 0.0)]
    tensors[1][0][17] = float("nan")
    with use_backend(backend):
        clipped_adam(
            *tensors, step=1, lr=1.0, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0, clip_norm=1.0
        )
    assert tensors[0][0].isnan().nonzero().flatten().tolist() == [17]


# --- numbers that are tensors -----------------------------------------------------------------------------

RULE = {"beta1": 0.96, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}


def count(n: int) -> Tensor:
    return torch.tensor(n)


def rate(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


FORMS: dict[str, Callable[[int, float], tuple[Any, Any]]] = {
    "tensors": lambda n, x: (count(n), rate(x)),
    "lists": lambda n, x: ([count(n) for _ in SHAPES], [rate(x) for _ in SHAPES]),
    "count": lambda n, x: (count(n), x),
    "rate": lambda n, x: (n, [rate(x)] * len(SHAPES)),
}


def assert_near(got: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    """Two computations of the step size differ by at most one rounding, and so do their results."""
    for ours, theirs in zip(got, expected, strict=True):
        for value, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value, other, rtol=4 * torch.finfo(value.dtype).eps, atol=1e-9)


@pytest.mark.parametrize("step", [1, 2, 1000, 2**40])
@pytest.mark.parametrize("form", FORMS)
@each_backend_and_dtype("clipped_adam")
def test_numbers_may_be_tensors(backend: str, dtype: torch.dtype, form: str, step: int) -> None:
    expected, got = lists(dtype, strided=True), lists(dtype, strided=True)
    numbers = FORMS[form](step, 0.01)
    with use_backend(backend):
        clipped_adam(*expected, step=step, lr=0.01, **RULE)
        clipped_adam(*got, step=numbers[0], lr=numbers[1], **RULE)
    assert not torch.equal(expected[0][3], lists(dtype, strided=True)[0][3])
    assert_near(got, expected)


@each_backend_and_dtype("clipped_adam")
def test_each_parameter_may_have_numbers_of_its_own(backend: str, dtype: torch.dtype) -> None:
    expected, got = lists(dtype, strided=False), lists(dtype, strided=False)
    steps, lrs = [3 * i + 1 for i in range(len(SHAPES))], [0.1 / (i + 1) for i in range(len(SHAPES))]
    with use_backend(backend):
        for i, (step, lr) in enumerate(zip(steps, lrs, strict=True)):
            clipped_adam(*([tensors[i]] for tensors in expected), step=step, lr=lr, **RULE)
        clipped_adam(*got, step=[count(n) for n in steps], lr=[rate(x) for x in lrs], **RULE)
    assert_near(got, expected)


@each_backend("clipped_adam")
def test_a_tensor_is_read_when_the_step_runs_and_is_unchanged(backend: str) -> None:
    step, lr = count(1), rate(0.5)
    with use_backend(backend):
        for _ in range(3):
            expected, got = lists(torch.float32, strided=False), lists(torch.float32, strided=False)
            clipped_adam(*expected, step=int(step), lr=float(lr), **RULE)
            clipped_adam(*got, step=step, lr=lr, **RULE)
            assert_near(got, expected)
            step += 1
            lr *= 0.5
    assert (step, lr) == (4, 0.0625)


@each_backend("clipped_adam")
def test_averages_with_betas_of_zero(backend: str) -> None:
    rule = {**RULE, "beta1": 0.0, "beta2": 0.0, "weight_decay": 0.0}
    tensors = [[torch.zeros(5)], [torch.full((5,), 0.5)], [torch.ones(5)], [torch.ones(5)]]
    with use_backend(backend):
        clipped_adam(*tensors, step=count(7), lr=rate(0.25), **rule)
    torch.testing.assert_close(tensors[0][0], torch.full((5,), -0.25))


OF_EACH, OF_ALL, OF_SOME = list(range(len(SHAPES))), [0] * len(SHAPES), [0, 1, 2, 1, 3, 0, 2, 4]


@pytest.mark.parametrize(
    ("counts", "rates"),
    [(OF_EACH, OF_EACH), (OF_ALL, OF_SOME), (OF_SOME, OF_ALL)],
    ids=["own", "one count", "one rate"],
)
@each_backend_and_dtype("clipped_adam")
def test_a_step_with_lrd_counts_and_decays_each_tensor_once(
    backend: str, dtype: torch.dtype, counts: list[int], rates: list[int]
) -> None:
    """``counts`` and ``rates`` are the indices of the number of each parameter, its own or shared."""
    expected, got = lists(dtype, strided=True), lists(dtype, strided=True)
    numbers, sizes = [3 * i for i in range(len(SHAPES))], [0.1 / (i + 1) for i in range(len(SHAPES))]
    steps, lrs = [count(n) for n in numbers], [rate(x) for x in sizes]
    of_each = {"step": [steps[i] for i in counts], "lr": [lrs[i] for i in rates]}
    with use_backend(backend):
        for _ in range(3):
            clipped_adam(*got, **of_each, lrd=0.7, **RULE)
            numbers = [n + (i in counts) for i, n in enumerate(numbers)]
            sizes = [x * 0.7 if i in rates else x for i, x in enumerate(sizes)]
            assert [int(n) for n in steps] == numbers
            assert [float(x) for x in lrs] == sizes
            now = {"step": [count(numbers[i]) for i in counts], "lr": [rate(sizes[i]) for i in rates]}
            clipped_adam(*expected, **now, **RULE)
    for ours, theirs in zip(got, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


@each_backend("clipped_adam")
def test_one_tensor_for_all_is_counted_and_decayed_once(backend: str) -> None:
    got, step, lr = lists(torch.float32, strided=False), count(0), rate(0.5)
    with use_backend(backend):
        clipped_adam(*got, step=step, lr=lr, lrd=0.5, **RULE)
    assert (step, lr) == (1, 0.25)


@each_backend("clipped_adam")
def test_a_step_of_empty_parameters_is_counted(backend: str) -> None:
    step, lr = count(0), rate(0.5)
    with use_backend(backend):
        clipped_adam(
            *([torch.ones(0), torch.ones(2, 0)] for _ in range(4)), step=step, lr=lr, lrd=0.5, **RULE
        )
    assert (step, lr) == (1, 0.25)


@pytest.mark.parametrize("seen_before", [False, True])
@each_backend("clipped_adam")
def test_a_capture_may_be_the_first_use_of_a_count(
    backend: str, seen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, got = lists(torch.float32, strided=False), lists(torch.float32, strided=False)
    step, lr = count(0), rate(0.5)
    with use_backend(backend):
        for n in (1, 2, 3):
            monkeypatch.setattr(_tickets, "is_capturing", lambda: n < 3 and not seen_before)  # noqa: B023
            clipped_adam(*got, step=step, lr=lr, lrd=0.5, **RULE)
            assert (step, lr) == (n, 0.5 ** (n + 1))
            clipped_adam(*expected, step=count(n), lr=rate(0.5 ** (n + 1)), **RULE)
    for ours, theirs in zip(got, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_ticket_lives_as_long_as_its_count() -> None:
    before, step = len(_tickets._tickets), count(0)
    ticket = _tickets.ticket_to_advance([step], [rate(0.5)], 0.5)
    assert ticket is _tickets.ticket_to_advance([step], [rate(0.5)], 0.5)
    other = count(0)
    assert ticket is not _tickets.ticket_to_advance([other], [rate(0.5)], 0.5)
    assert len(_tickets._tickets) == before + 2
    del step, other
    assert len(_tickets._tickets) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"step": torch.tensor(1.0)},
            r"^step: expected int64 of shape \(\) on cpu, got float32 of shape \(\)",
        ),
        (
            {"step": torch.tensor([1])},
            r"^step: expected int64 of shape \(\) on cpu, got int64 of shape \(1,\)",
        ),
        ({"step": [count(1)]}, r"^step: expected 2 tensors as params has, got 1"),
        ({"step": [count(1), count(0)]}, r"^step: expected an int from 1, got 0"),
        ({"lr": torch.tensor(0.1)}, r"^lr: expected float64 of shape \(\) on cpu, got float32 of shape \(\)"),
        ({"lr": rate(0.1).to("meta")}, r"^lr: expected float64 of shape \(\) on cpu, got .* on meta"),
        ({"lr": [rate(0.1)] * 3}, r"^lr: expected 2 tensors as params has, got 3"),
        ({"step": count(-1), "lr": rate(0.1), "lrd": 0.5}, r"^step: expected an int from 0, got -1"),
        ({"step": count(2**63 - 1), "lr": rate(0.1), "lrd": 0.5}, r"^step: expected an int from 0, got 9223"),
        ({"step": count(0), "lr": rate(0.1), "lrd": 0.0}, r"^lrd: expected a finite number above 0, got 0.0"),
    ],
    ids=str,
)
def test_other_tensors_are_refused(changed: dict[str, Any], message: str) -> None:
    tensors = [[torch.ones(3), torch.ones(2)] for _ in range(4)]
    with pytest.raises(ValueError, match=message):
        clipped_adam(*tensors, **{"step": 1, "lr": 0.1, **RULE, **changed})
    assert torch.equal(tensors[0][0], torch.ones(3))


def test_numbers_in_a_list_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^lr: expected Tensor, got float 0.1"):
        clipped_adam(*([torch.ones(3)] for _ in range(4)), step=1, lr=[0.1], **RULE)


@pytest.mark.parametrize("name", ["step", "lr"])
def test_a_step_with_lrd_changes_no_numbers(name: str) -> None:
    numbers = {"step": count(0), "lr": rate(0.1)} | {name: 1}
    with pytest.raises(
        TypeError, match=rf"^{name}: expected tensors, which a step with lrd changes, got int 1$"
    ):
        clipped_adam(*([torch.ones(3)] for _ in range(4)), **numbers, lrd=0.5, **RULE)


def test_a_duplicate_parameter_is_refused() -> None:
    p = torch.ones(3)
    others = ([torch.ones(3), torch.ones(3)] for _ in range(3))
    with pytest.raises(ValueError, match=r"^params: expected each tensor once, got 2 with repetitions$"):
        clipped_adam([p, p], *others, step=1, lr=0.1, **RULE)
    assert torch.equal(p, torch.ones(3))
