"""``ClippedAdam`` with learning rates and step counts on the device has the same results."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam as TheirClippedAdam
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from dmm_fast import check, use_backend
from dmm_fast.optim import ClippedAdam, PyroClippedAdam, _clipped_adam
from tests.compare import backends_for, dtypes_for, each_backend, each_backend_and_dtype
from tests.helpers_optim import OPTIONS, SHAPES, assert_same, give_grads, make_params, twins

RULE = {"lr": 0.1, "lrd": 0.9, "weight_decay": 0.1}


def values(params: list[Any]) -> list[Tensor]:
    return [p.detach() for p in params]


def assert_near(ours: list[Any], theirs: list[Any]) -> None:
    """The step size is computed differently, in double precision, so the last bit may differ."""
    for a, b in zip(values(ours), values(theirs), strict=True):
        eps = torch.finfo(a.dtype).eps
        torch.testing.assert_close(a, b, rtol=16 * eps, atol=16 * eps, check_stride=True)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "defaults")
@each_backend_and_dtype("clipped_adam")
def test_20_steps_equal_those_with_numbers(backend: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    mine = make_params(SHAPES, dtype)
    others = twins(mine)
    ours, theirs = ClippedAdam(mine, capturable=True, **options), ClippedAdam(others, **options)
    with use_backend(backend):
        for _ in range(20):
            give_grads(mine, others, absent=0.2)
            ours.step()
            theirs.step()
    assert_near(mine, others)
    (rate,), (number,) = ([g["lr"] for g in o.param_groups] for o in (ours, theirs))
    assert (rate.dtype, rate.shape, float(rate)) == (torch.float64, (), number)
    for p, q in zip(mine, others, strict=True):
        count = ours.state[p]["step"]
        assert (count.dtype, count.shape, int(count)) == (torch.int64, (), theirs.state[q]["step"])


def test_groups_have_their_own_rates() -> None:
    mine = make_params(SHAPES)
    others = twins(mine)

    def groups(p: list[Any]) -> list[dict[str, Any]]:
        return [{"params": p[:2]}, {"params": p[2:4]}, {"params": p[4:], "lr": 0.3, "lrd": 1.0}]

    ours, theirs = ClippedAdam(groups(mine), capturable=True, **RULE), ClippedAdam(groups(others), **RULE)
    for _ in range(3):
        give_grads(mine, others)
        ours.step()
        theirs.step()
    assert_near(mine, others)
    assert [float(g["lr"]) for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]


def test_a_rate_that_groups_share_decays_for_each() -> None:
    """As with Pyro's ``lr *= lrd``, and before any parameter is updated."""
    p = make_params([(3,), (4,)])
    optimizer = capturable([{"params": p[:1]}, {"params": p[1:], "betas": (0.5, 0.5)}], lr=0.5, lrd=0.5)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[1]["lr"] = rate
    give_grads(p)
    optimizer.step()
    assert float(rate) == 0.125
    assert [int(optimizer.state[q]["step"]) for q in p] == [1, 1]


GROUPS: dict[str, Callable[[list[Any]], list[dict[str, Any]]]] = {
    "one group": lambda p: [{"params": p}],
    "one rate, two calls": lambda p: [{"params": [*p[:4], *wide(p[4:])]}],
    "rates and counts of their own": lambda p: [{"params": [q], "lr": 0.1 * i} for i, q in enumerate(p)],
    "two rules": lambda p: [{"params": p[:3], "betas": (0.5, 0.5)}, {"params": p[3:], "eps": 1e-3}],
    "two decays": lambda p: [{"params": p[:3], "lrd": 0.5}, {"params": p[3:], "lrd": 1.5}],
    "all at once": lambda p: [
        {"params": [p[0], *wide(p[1:2])], "lrd": 0.5},
        {"params": p[2:4]},
        {"params": p[4:], "betas": (0.5, 0.5), "lr": 0.3},
    ],
}


WIDE = ("one rate, two calls", "all at once")
"""Groups with parameters in float64."""


def wide(params: list[Any]) -> list[Any]:
    return [p.detach().double().requires_grad_() for p in params]


def may_step(backend: str, groups: str) -> bool:
    """True if a backend computes all dtypes of the parameters."""
    return groups not in WIDE or torch.float64 in dtypes_for("clipped_adam", backend)


@pytest.mark.parametrize("absent", [0.0, 0.5], ids=["", "gradients missing"])
@pytest.mark.parametrize(
    ("backend", "groups"),
    [(b, g) for b in backends_for("clipped_adam") for g in GROUPS if may_step(b, g)],
)
def test_counts_and_rates_are_exact(backend: str, groups: str, absent: float) -> None:
    """Equal to numbers on the host for any grouping; a scheduler sets the rates once."""
    sides = []
    for make, ours in ((ClippedAdam, False), (capturable, True)):
        torch.manual_seed(5)
        optimizer = make(GROUPS[groups](make_params(SHAPES)), **RULE)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        scheduler = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
        for i in range(5):
            give_grads(params, absent=absent)
            with use_backend(backend if ours else None):
                optimizer.step()
            if i == 2:
                scheduler.step()
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        counts = [int(optimizer.state[p]["step"]) if p in optimizer.state else 0 for p in params]
        sides.append((params, rates, counts))
    (theirs, *expected), (mine, *got) = sides
    assert got == expected
    assert_near(mine, theirs)


@pytest.mark.parametrize("backend", [b for b in backends_for("clipped_adam") if b != "reference"])
def test_a_step_is_one_operation(backend: str) -> None:
    p = make_params([(3,), (2, 3)])
    optimizer = capturable([{"params": p[:1]}, {"params": p[1:], "lr": 0.5}], **RULE)
    for _ in range(2):
        give_grads(p)
        with use_backend(backend), _Operations() as operations:
            optimizer.step()
    assert operations.names == ["dmm_fast::clipped_adam"]


class _Operations(TorchDispatchMode):
    """Records the names of the operations that modify tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class _Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@each_backend("clipped_adam")
def test_a_step_reads_no_value_on_the_host(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "values_are_readable", lambda tensor: False)  # as on a GPU
    p = make_params(SHAPES)
    optimizer = ClippedAdam(p, capturable=True, **RULE)
    give_grads(p)
    with use_backend(backend), _Reads() as reads:
        optimizer.step()
        assert reads.count == 0
        float(optimizer.param_groups[0]["lr"])
        assert reads.count == 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of parameters in each call of the op."""
    sizes: list[int] = []
    op = _clipped_adam.clipped_adam

    def counted(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        sizes.append(len(params))
        op(params, *args, **kwargs)

    monkeypatch.setattr(_clipped_adam, "clipped_adam", counted)
    return sizes


def test_one_call_steps_parameters_with_counts_and_rates_of_their_own(calls: list[int]) -> None:
    p = make_params(SHAPES)
    optimizer = ClippedAdam([{"params": p[:3]}, {"params": p[3:], "lr": 0.5}], capturable=True)
    give_grads(p)
    p[0].grad = None
    optimizer.step()
    give_grads(p)
    optimizer.step()
    assert calls == [len(p) - 1, len(p)]


def test_pyro_s_optimizers_step_together_too(calls: list[int]) -> None:
    ours, theirs = PyroClippedAdam({**RULE, "capturable": True}), PyroClippedAdam(RULE)
    p = [pyro.param(f"p{i}", torch.randn(shape)) for i, shape in enumerate(SHAPES)]
    q = [pyro.param(f"q{i}", t.detach().clone()) for i, t in enumerate(p)]
    for used in (slice(1, None), slice(None), slice(2)):
        give_grads(p[used], q[used])
        ours(p[used])
        theirs(q[used])
    assert_near(p, q)
    n = len(p)
    assert calls == [n - 1, n - 1, n, 1, n - 1, 2, 1, 1]


class TestNumbersBecomeTensors:
    def test_a_scheduler_of_torch_fills_the_rate(self) -> None:
        p = torch.ones(3, requires_grad=True)
        optimizer = ClippedAdam([p], lr=1.0, capturable=True)
        rate = optimizer.param_groups[0]["lr"]
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] is rate
        assert float(rate) == 0.5

    def test_a_changed_number_takes_effect_in_the_next_step(self) -> None:
        mine = make_params([(3,)])
        others = twins(mine)
        ours, theirs = ClippedAdam(mine, capturable=True, **RULE), ClippedAdam(others, **RULE)
        for lr in (0.1, 0.4):
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["lr"] = lr
            give_grads(mine, others)
            ours.step()
            theirs.step()
        assert_near(mine, others)
        assert float(ours.param_groups[0]["lr"]) == 0.4 * 0.9

    def test_the_first_step_of_a_capture_is_refused_before_any_change(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        p = make_params([(3,)])
        optimizer = ClippedAdam(p, capturable=True, **RULE)
        give_grads(p)
        before = p[0].detach().clone()
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        with monkeypatch.context() as capturing:
            capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            message = r"^params: expected a step before the capture of a CUDA graph, got the first one within"
            with pytest.raises(RuntimeError, match=message):
                optimizer.step()
            assert torch.equal(p[0], before)
            assert float(optimizer.param_groups[0]["lr"]) == 0.1
        optimizer.step()
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
        with pytest.raises(RuntimeError, match=r"^lr: expected a step before the capture"):
            optimizer.step()
        assert int(optimizer.state[p[0]]["step"]) == 2

    @pytest.mark.parametrize(
        ("options", "exc", "message"),
        [
            ({"capturable": 1}, TypeError, r"^capturable: expected a bool, got int 1$"),
            (
                {"capturable": True, "lr": -1.0},
                ValueError,
                r"^lr: expected a finite number from 0, got -1.0$",
            ),
            ({"capturable": True, "lr": torch.tensor(0.1)}, TypeError, r"^lr: .* got float32 of shape \(\)"),
        ],
    )
    def test_bad_arguments_are_refused(
        self, options: dict[str, Any], exc: type[Exception], message: str
    ) -> None:
        with pytest.raises(exc, match=message):
            ClippedAdam([torch.ones(3, requires_grad=True)], **options)

    def test_a_group_on_two_devices_is_refused(self) -> None:
        p = [torch.ones(3, requires_grad=True), torch.ones(3, device="meta", requires_grad=True)]
        optimizer = ClippedAdam(p, capturable=True)
        for t in p:
            t.grad = torch.ones_like(t)
        with pytest.raises(
            ValueError, match=r"^params: expected one device for a capturable group, cpu, got"
        ):
            optimizer.step()
        assert torch.equal(p[0], torch.ones(3))


def capturable(params: list[Any], **options: Any) -> ClippedAdam:
    return ClippedAdam(params, capturable=True, **options)


class TestStateDict:
    @pytest.mark.parametrize(
        ("first", "then"),
        [
            (capturable, capturable),
            (capturable, ClippedAdam),
            (ClippedAdam, capturable),
            (TheirClippedAdam, capturable),
        ],
    )
    def test_the_state_of_one_continues_in_another(self, first: Any, then: Any) -> None:
        whole = make_params(SHAPES)
        broken = twins(whole)
        unbroken, before, after = ClippedAdam(whole, **RULE), first(broken, **RULE), then(broken)
        for i in range(6):
            give_grads(whole, broken, absent=0.3)
            unbroken.step()
            before.step() if i < 3 else after.step()
            if i == 2:
                file = io.BytesIO()
                torch.save(before.state_dict(), file)
                file.seek(0)
                after.load_state_dict(torch.load(file))
        assert_near(broken, whole)
        kept = Tensor if then is capturable else (int, float)
        assert all(isinstance(g["lr"], kept) for g in after.param_groups)
        assert all(isinstance(s["step"], kept) for s in after.state.values())
        assert [float(g["lr"]) for g in after.param_groups] == [g["lr"] for g in unbroken.param_groups]
        assert [int(s["step"]) for s in after.state.values()] == [
            s["step"] for s in unbroken.state.values() if s
        ]

    def test_a_plain_state_does_not_mention_it(self) -> None:
        assert "capturable" not in ClippedAdam(make_params([(3,)])).state_dict()["param_groups"][0]
        assert capturable(make_params([(3,)])).state_dict()["param_groups"][0]["capturable"] is True

    def test_deepcopy_continues_alike_with_numbers_of_its_own(self) -> None:
        p = make_params([(3,)])
        optimizer = capturable(p, **RULE)
        give_grads(p)
        optimizer.step()
        clone = copy.deepcopy(optimizer)
        q = clone.param_groups[0]["params"]
        give_grads(p, q)
        optimizer.step()
        clone.step()
        assert_same(q[0].data, p[0].data)
        assert int(clone.state[q[0]]["step"]) == int(optimizer.state[p[0]]["step"]) == 2
        assert float(clone.param_groups[0]["lr"]) == float(optimizer.param_groups[0]["lr"])

    @pytest.mark.parametrize(
        ("spoilt", "message"),
        [
            ({"step": torch.tensor(0)}, r"^state_dict: expected step as an int from 1, got int 0$"),
            ({"step": torch.tensor([1])}, r"^state_dict: expected step as an int from 1"),
        ],
    )
    def test_an_unfit_count_is_refused(self, spoilt: dict[str, Any], message: str) -> None:
        p = make_params([(3,)])
        optimizer = capturable(p)
        give_grads(p)
        optimizer.step()
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0].update(spoilt)
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
