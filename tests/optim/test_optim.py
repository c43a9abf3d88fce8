"""``ClippedAdam`` is bitwise equal to Pyro's."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pyro
import pyro.optim
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.optim.clipped_adam import ClippedAdam as TheirClippedAdam
from torch import Tensor

from dmm_fast import use_backend
from dmm_fast.ops.clipped_adam import clipped_adam
from dmm_fast.optim import ClippedAdam, PyroClippedAdam, _clipped_adam
from tests.helpers_optim import OPTIONS, SHAPES, assert_same, give_grads, make_params, twins


@pytest.fixture(autouse=True)
def reference_backend() -> Iterator[None]:
    """Use the reference, which has the same operations in the same order as Pyro."""
    with use_backend("reference"):
        yield


TAKEN = torch.ones(3)


class TestClippedAdam:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "defaults")
    def test_50_steps_equal_bitwise_pyro(self, options: dict[str, Any], dtype: torch.dtype) -> None:
        mine = make_params(SHAPES, dtype)
        pyros = twins(mine)
        ours, theirs = ClippedAdam(mine, **options), TheirClippedAdam(pyros, **options)
        for _ in range(50):
            give_grads(mine, pyros, absent=0.2)
            ours.step()
            theirs.step()
            assert_same([p.grad for p in mine], [p.grad for p in pyros], "grad")
        assert all(p.isfinite().all() for p in mine)
        assert_same([p.data for p in mine], [p.data for p in pyros], "params")
        assert_same(ours.state_dict(), theirs.state_dict())

    @given(data=st.data())
    def test_any_shapes_and_hyper_parameters_equal_bitwise_pyro(self, data: Any) -> None:
        shapes = data.draw(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1))
        unit = st.floats(0.0, 0.9990234375)
        options = {
            "lr": data.draw(st.floats(0.0, 10.0)),
            "betas": (data.draw(unit), data.draw(unit)),
            "eps": data.draw(st.sampled_from([0.0, 1e-8, 1.0])),
            "weight_decay": data.draw(st.sampled_from([0, 0.0, 0.01, 3.0])),
            "clip_norm": data.draw(st.floats(1e-3, 1e3)),
            "lrd": data.draw(st.floats(0.5, 1.0)),
            "centered_variance": data.draw(st.booleans()),
        }
        torch.manual_seed(data.draw(st.integers(0, 2**31)))
        mine = make_params(shapes)
        pyros = twins(mine)
        ours, theirs = ClippedAdam(mine, **options), TheirClippedAdam(pyros, **options)
        for _ in range(3):
            give_grads(mine, pyros, absent=0.3)
            ours.step()
            theirs.step()
        assert_same([p.data for p in mine], [p.data for p in pyros], "params")

    def test_a_nan_gradient_stays_with_its_element(self) -> None:
        mine = make_params([(4,)])
        pyros = twins(mine)
        grad = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
        mine[0].grad, pyros[0].grad = grad.clone(), grad.clone()
        ClippedAdam(mine).step()
        TheirClippedAdam(pyros).step()
        assert mine[0].isnan().tolist() == [False, True, False, False]
        assert torch.equal(mine[0].nan_to_num(), pyros[0].nan_to_num())

    def test_groups_have_their_own_hyper_parameters(self) -> None:
        mine = make_params(SHAPES)
        pyros = twins(mine)

        def groups(p: list[Any]) -> list[dict[str, Any]]:
            return [{"params": p[:3], "lr": 0.1, "lrd": 0.9}, {"params": p[3:], "clip_norm": 0.1}]

        ours, theirs = ClippedAdam(groups(mine), lr=0.01), TheirClippedAdam(groups(pyros), lr=0.01)
        for _ in range(5):
            give_grads(mine, pyros)
            ours.step()
            theirs.step()
        assert_same([p.data for p in mine], [p.data for p in pyros])
        assert_same(ours.state_dict(), theirs.state_dict())

    def test_closure_runs_with_gradients_and_its_loss_comes_back(self) -> None:
        p = torch.ones(3, requires_grad=True)
        optimizer = ClippedAdam([p], lr=0.1)

        def closure() -> float:
            optimizer.zero_grad()
            loss = (p**2).sum()
            loss.backward()
            return loss.item()

        with torch.no_grad():
            losses = [optimizer.step(closure) for _ in range(3)]
        assert losses[0] == 3.0
        assert losses == sorted(losses, reverse=True)

    def test_a_scheduler_of_torch_drives_it(self) -> None:
        p = torch.ones(3, requires_grad=True)
        optimizer = ClippedAdam([p], lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.5

    @pytest.mark.parametrize("bad", ["sparse", "complex"])
    def test_a_sparse_or_complex_gradient_is_refused_before_any_change(self, bad: str) -> None:
        good = torch.ones(3, requires_grad=True)
        good.grad = torch.full((3,), 100.0)
        if bad == "sparse":
            p = torch.ones(3, requires_grad=True)
            p.grad = torch.ones(3).to_sparse()
            message = "grad: expected a dense gradient, got torch.sparse_coo"
        else:
            p = torch.ones(3, dtype=torch.complex64, requires_grad=True)
            p.grad = torch.ones_like(p)
            message = "params: expected floating-point parameters, got complex64"
        optimizer = ClippedAdam([good, p], lr=0.1, lrd=0.5)
        with pytest.raises(TypeError, match=message):
            optimizer.step()
        assert torch.equal(good, torch.ones(3))
        assert torch.equal(good.grad, torch.full((3,), 100.0))
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert not optimizer.state

    @pytest.mark.parametrize(
        ("options", "exc", "message"),
        [
            ({"lr": -1.0}, ValueError, r"^lr: expected a finite number from 0, got -1.0$"),
            ({"lr": float("nan")}, ValueError, r"^lr: .* got nan$"),
            ({"lr": float("inf")}, ValueError, r"^lr: .* got inf$"),
            ({"lr": "0.1"}, TypeError, r"^lr: .* got str '0.1'$"),
            ({"lr": torch.tensor(0.1)}, TypeError, r"^lr: .* got float32 of shape \(\)"),
            ({"betas": (1.0, 0.9)}, ValueError, r"^betas\[0\]: expected a number in \[0, 1\)"),
            ({"betas": (0.9, -0.1)}, ValueError, r"^betas\[1\]: .* got -0.1$"),
            ({"betas": (0.9, float("nan"))}, ValueError, r"^betas\[1\]: .* got nan$"),
            ({"betas": (0.9,)}, TypeError, r"^betas: expected two numbers, got tuple"),
            ({"betas": 0.9}, TypeError, r"^betas: expected two numbers, got float 0.9$"),
            ({"eps": -1e-8}, ValueError, r"^eps: .* got -1e-08$"),
            ({"weight_decay": -0.1}, ValueError, r"^weight_decay: .* got -0.1$"),
            ({"clip_norm": 0.0}, ValueError, r"^clip_norm: expected a number above 0, got 0.0$"),
            ({"clip_norm": float("nan")}, ValueError, r"^clip_norm: .* got nan$"),
            ({"lrd": 0.0}, ValueError, r"^lrd: expected a finite number above 0, got 0.0$"),
            ({"centered_variance": 1}, TypeError, r"^centered_variance: expected a bool, got int"),
        ],
        ids=str,
    )
    def test_bad_hyper_parameters_are_refused_by_name(
        self, options: dict[str, Any], exc: type[Exception], message: str
    ) -> None:
        p = torch.ones(3, requires_grad=True)
        with pytest.raises(exc, match=message):
            ClippedAdam([p], **options)
        optimizer = ClippedAdam([p])
        with pytest.raises(exc, match=message):
            optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], **options})
        assert len(optimizer.param_groups) == 1

    @pytest.mark.parametrize(
        ("params", "exc", "message"),
        [
            (
                torch.ones(3),
                TypeError,
                "^params: expected an iterable of parameters or of dicts, got float32",
            ),
            ([], ValueError, "^params: expected at least one parameter, got none$"),
            (["a"], TypeError, "^params: expected an iterable of parameters, got one that is str 'a'$"),
            ([torch.ones(3, requires_grad=True) * 2], ValueError, "^params: expected leaf tensors, got"),
            ([{"lr": 0.1}], ValueError, r"^param_group: expected an entry 'params', got \['lr'\]$"),
            ([{"params": {torch.ones(3)}}], TypeError, "^params: .* in an order, got set$"),
            ([("a", torch.ones(3)), torch.ones(3)], ValueError, "^params: expected names for all"),
            ([{"params": [TAKEN]}, {"params": TAKEN}], ValueError, "^params: expected each .* in one group"),
        ],
    )
    def test_values_other_than_parameters_are_refused(
        self, params: Any, exc: type[Exception], message: str
    ) -> None:
        with pytest.raises(exc, match=message):
            ClippedAdam(params)

    def test_parameters_have_the_forms_that_torch_accepts(self) -> None:
        module = torch.nn.Linear(2, 3)
        named = ClippedAdam(module.named_parameters())
        assert named.param_groups[0]["param_names"] == ["weight", "bias"]
        assert named.param_groups[0]["params"] == list(module.parameters())
        assert ClippedAdam([{"params": module.weight}]).param_groups[0]["params"] == [module.weight]

    def test_a_closure_that_takes_arguments_is_refused(self) -> None:
        optimizer = ClippedAdam([torch.ones(3, requires_grad=True)])
        for closure in (lambda x: x, torch.nn.Linear(2, 3), len):
            with pytest.raises(TypeError, match=r"^closure: expected arguments that fit \("):
                optimizer.step(closure)


class TestStateDict:
    @pytest.mark.parametrize(
        ("first", "then"),
        [
            (ClippedAdam, ClippedAdam),
            (ClippedAdam, TheirClippedAdam),
            (TheirClippedAdam, ClippedAdam),
        ],
    )
    def test_the_state_of_either_continues_in_either(self, first: Any, then: Any) -> None:
        whole = make_params(SHAPES)
        broken = twins(whole)
        options = {"lr": 0.1, "lrd": 0.9, "weight_decay": 0.1}
        unbroken, before = first(whole, **options), first(broken, **options)
        after = then(broken)
        for i in range(10):
            give_grads(whole, broken, absent=0.3)
            unbroken.step()
            before.step() if i < 5 else after.step()
            if i == 4:
                after.load_state_dict(copy.deepcopy(before.state_dict()))
        assert_same([p.data for p in broken], [p.data for p in whole])
        assert_same(after.state_dict(), unbroken.state_dict())

    def test_deepcopy_continues_alike(self) -> None:
        p = make_params([(3,)])
        optimizer = ClippedAdam(p, lr=0.1)
        give_grads(p)
        optimizer.step()
        clone = copy.deepcopy(optimizer)
        q = clone.param_groups[0]["params"]
        give_grads(p, q)
        optimizer.step()
        clone.step()
        assert_same(q[0].data, p[0].data)

    def test_a_state_from_before_centered_variance_loads(self) -> None:
        p = make_params([(3,)])
        state = ClippedAdam(p, lr=0.5).state_dict()
        del state["param_groups"][0]["centered_variance"]
        optimizer = ClippedAdam(p)
        optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["centered_variance"] is False
        assert optimizer.param_groups[0]["lr"] == 0.5

    @pytest.mark.parametrize(
        ("spoil", "exc", "message"),
        [
            (lambda s: s.pop("param_groups"), ValueError, "expected an entry 'param_groups'"),
            (lambda s: s["param_groups"][0].pop("lrd"), TypeError, "^lrd: .* got NoneType None$"),
            (lambda s: s["param_groups"][0].update(lr=-1.0), ValueError, "^lr: .* got -1.0$"),
            (lambda s: s["state"][0].pop("exp_avg"), ValueError, "step, exp_avg, exp_avg_sq"),
            (lambda s: s["state"][0].update(step=0), ValueError, "step as an int from 1"),
            (
                lambda s: s["state"][0].update(step=torch.tensor(3.0)),
                ValueError,
                r"step as an int from 1, got float32 of shape \(\)",
            ),
            (
                lambda s: s["state"][0].update(exp_avg_sq=torch.zeros(4)),
                ValueError,
                r"exp_avg_sq of shape \(3,\) as its parameter has, got float32 of shape \(4,\)",
            ),
            (
                lambda s: s["state"][0].update(exp_avg=torch.zeros(3).to_sparse()),
                ValueError,
                r"exp_avg of shape \(3,\) as its parameter has, got float32 with layout torch.sparse_coo",
            ),
            (lambda s: s["state"][0].update(step=True), ValueError, "step as an int from 1, got bool True"),
            (lambda s: s["state"].update(more=1), TypeError, r"^state_dict\['state'\]: expected dict, got"),
            (lambda s: s["param_groups"].append({}), ValueError, "^state_dict: expected 1 groups .* got 2$"),
            (
                lambda s: s["param_groups"][0]["params"].append(1),
                ValueError,
                "expected 1 parameters .* got 2$",
            ),
        ],
    )
    def test_an_unfit_state_is_refused_and_the_present_one_kept(
        self, spoil: Callable[[Any], Any], exc: type[Exception], message: str
    ) -> None:
        p = make_params([(3,)])
        optimizer = ClippedAdam(p, lr=0.1)
        give_grads(p)
        optimizer.step()
        before = copy.deepcopy(optimizer.state_dict())
        state = copy.deepcopy(before)
        spoil(state)
        with pytest.raises(exc, match=message):
            optimizer.load_state_dict(state)
        assert_same(optimizer.state_dict(), before)

    def test_the_state_of_another_optimizer_is_refused(self) -> None:
        p = make_params([(3,)])
        adam = torch.optim.Adam(p)
        give_grads(p)
        adam.step()
        with pytest.raises(TypeError, match=r"^clip_norm: expected a number above 0"):
            ClippedAdam(p).load_state_dict(adam.state_dict())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of parameters in each call of the op."""
    sizes: list[int] = []

    def counted(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        sizes.append(len(params))
        clipped_adam(params, *args, **kwargs)

    monkeypatch.setattr(_clipped_adam, "clipped_adam", counted)
    return sizes


class TestBuckets:
    def test_similar_parameters_of_all_groups_need_one_call(self, calls: list[int]) -> None:
        p = make_params(SHAPES)
        give_grads(p)
        ClippedAdam([{"params": p[:2]}, {"params": p[2:]}]).step()
        assert calls == [len(SHAPES)]

    def test_step_counts_dtypes_and_rates_separate_them(self, calls: list[int]) -> None:
        p = [*make_params([(2,), (3,)]), *make_params([(2,)], torch.float64), *make_params([(2,)])]
        optimizer = ClippedAdam([{"params": p[:3]}, {"params": p[3:], "lr": 0.5}])
        give_grads(p)
        p[0].grad = None
        optimizer.step()
        assert sorted(calls) == [1, 1, 1]
        calls.clear()
        give_grads(p)
        optimizer.step()
        assert sorted(calls) == [1, 1, 1, 1]

    def test_without_gradients_there_is_no_call(self, calls: list[int]) -> None:
        optimizer = ClippedAdam(make_params(SHAPES), lr=1.0, lrd=0.5)
        optimizer.step()
        assert calls == []
        assert optimizer.param_groups[0]["lr"] == 0.5

    def test_pyro_optim_steps_all_at_once(self, calls: list[int]) -> None:
        optim = PyroClippedAdam({"lr": 0.1})
        p = [pyro.param(f"p{i}", torch.randn(shape)) for i, shape in enumerate(SHAPES)]
        give_grads(p)
        optim(p[:-1])
        give_grads(p)
        optim(p)
        assert calls == [len(p) - 1, len(p) - 1, 1]
        assert len(optim.optim_objs) == len(p)


class TestOp:
    def args(self, n: int = 2) -> list[list[Tensor]]:
        return [[torch.ones(3) for _ in range(n)] for _ in range(4)]

    options: ClassVar[dict[str, Any]] = {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }

    def test_lists_of_unequal_length_are_refused(self) -> None:
        params, grads, exp_avgs, exp_avg_sqs = self.args()
        with pytest.raises(ValueError, match=r"^exp_avgs: expected 2 tensors .* got 1$"):
            clipped_adam(params, grads, exp_avgs[:1], exp_avg_sqs, step=1, **self.options)

    def test_a_step_before_the_first_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"^step: expected an int from 1, got 0$"):
            clipped_adam(*self.args(), step=0, **self.options)

    def test_empty_lists_are_allowed(self) -> None:
        clipped_adam([], [], [], [], step=1, **self.options)

    def test_leaves_that_require_a_gradient_are_stepped_without_recording(self) -> None:
        params, grads, exp_avgs, exp_avg_sqs = self.args()
        params[0].requires_grad_()
        clipped_adam(params, grads, exp_avgs, exp_avg_sqs, step=1, **self.options)
        assert params[0].is_leaf
        assert not torch.equal(params[0], torch.ones(3))
