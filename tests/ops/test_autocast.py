"""Ops under ``torch.autocast`` compute in float32, and accept inputs cast by autocast."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from dmm_fast import ops
from dmm_fast.ops.schema import OPS
from dmm_fast.optim import PyroClippedAdam
from tests.cases import TINY
from tests.compare import backends_for, differentiated, results
from tests.compiled import DIFFERENTIABLE
from tests.device import DEVICE, cpu_only
from tests.helpers_model import make_batch, small_dmm
from tests.inputs import build, differentiable, map_tensors

HALVES = [torch.bfloat16, torch.float16]
each_op = pytest.mark.parametrize(
    ("op_name", "backend"), [(op, backend) for op in OPS for backend in backends_for(op)]
)


def computed(op_name: str, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    outputs = getattr(ops, op_name)(**inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def rounded(dtype: torch.dtype, names: Any = None) -> Any:
    """Round the floating-point tensors of these names; None: all."""

    def to_half(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and (names is None or name in names) else tensor

    return to_half


def upcast(name: str, tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@each_op
def test_float32_is_bitwise_equal_without_autocast(op_name: str, backend: str) -> None:
    with ops.use_backend(backend):
        by = differentiated(op_name)
        expected = results(getattr(ops, op_name), TINY, build(op_name, TINY), by)
        with torch.autocast(DEVICE, torch.bfloat16):
            got = results(getattr(ops, op_name), TINY, build(op_name, TINY), by)
            assert torch.is_autocast_enabled(DEVICE)
    for name, value in expected.items():
        # The backward pass of the reference is torch's, and follows autocast.
        if backend != "reference" or name.startswith("output"):
            assert got[name].dtype == torch.float32
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@each_op
def test_half_precision_is_cast_up(op_name: str, backend: str, dtype: torch.dtype) -> None:
    inputs = build(op_name, TINY)
    everything, one = None, (OPS[op_name].leading,)
    weights = [name for name in differentiable(inputs) if name.startswith("w")] or one
    for names in (everything, one, weights):
        narrow = map_tensors(inputs, rounded(dtype, names))
        with ops.use_backend(backend):
            expected = computed(op_name, map_tensors(narrow, upcast))
            with torch.autocast(DEVICE, torch.bfloat16):
                got = computed(op_name, narrow)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b)


@pytest.mark.parametrize("op_name", DIFFERENTIABLE)
def test_gradients_come_back_in_the_dtype_of_the_inputs(op_name: str) -> None:
    inputs = map_tensors(build(op_name, TINY), rounded(torch.bfloat16))
    with torch.autocast(DEVICE, torch.bfloat16):
        got = results(getattr(ops, op_name), TINY, inputs)
    assert {got[f"gradient of {name}"].dtype for name in differentiable(inputs)} == {torch.bfloat16}


@pytest.mark.parametrize("op_name", OPS)
def test_float64_is_not_cast(op_name: str) -> None:
    inputs = build(op_name, TINY, torch.float64)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = computed(op_name, inputs)
    for a, b in zip(got, computed(op_name, inputs), strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)


@pytest.mark.parametrize("op_name", OPS)
def test_errors_are_the_same_without_autocast(op_name: str) -> None:
    inputs = {**build(op_name, TINY), OPS[op_name].leading: None}
    with pytest.raises(TypeError, match=rf"^{OPS[op_name].leading}: expected") as without:
        computed(op_name, inputs)
    with torch.autocast(DEVICE, torch.bfloat16), pytest.raises(TypeError) as under:
        computed(op_name, inputs)
    assert str(under.value) == str(without.value)


def test_without_autocast_half_precision_is_no_float32() -> None:
    inputs = map_tensors(build("emitter", TINY), rounded(torch.bfloat16, ("z",)))
    with torch.autocast(DEVICE, enabled=False), pytest.raises(ValueError, match="expected bfloat16"):
        computed("emitter", inputs)


def test_nor_is_it_under_the_autocast_of_another_device() -> None:
    inputs = map_tensors(build("emitter", TINY), rounded(torch.bfloat16, ("z",)))
    other = "cuda" if DEVICE == "cpu" else "cpu"
    torch.set_autocast_enabled(other, True)
    try:
        with pytest.raises(ValueError, match="expected bfloat16"):
            computed("emitter", inputs)
    finally:
        torch.set_autocast_enabled(other, False)


@cpu_only
def test_one_graph_holds_an_op_under_autocast() -> None:
    inputs = build("gated_transition", TINY)

    def function(z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            halved = torch.nn.functional.linear(z, torch.eye(z.shape[-1]))
            loc, _ = ops.gated_transition(halved, inputs["weights"])
        return loc

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs["z_prev"]), function(inputs["z_prev"]))


@cpu_only
@pytest.mark.parametrize("backend", backends_for("rnn_scan"))
def test_a_training_step_under_autocast(backend: str) -> None:
    def loss_of_step(*, under_autocast: bool) -> float:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        dmm = small_dmm()
        dtypes: dict[str, torch.dtype] = {}
        for name, p in dmm.named_parameters():
            p.register_hook(lambda gradient, name=name: dtypes.update({name: gradient.dtype}))
        svi = SVI(dmm.model, dmm.guide, PyroClippedAdam({"lr": 1e-3}), Trace_ELBO())
        with ops.use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=under_autocast):
            loss = svi.step(*make_batch())
        assert dtypes == {name: torch.float32 for name, _ in dmm.named_parameters()}
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in dmm.parameters())
        return loss

    assert loss_of_step(under_autocast=True) == pytest.approx(loss_of_step(under_autocast=False), rel=1e-6)
