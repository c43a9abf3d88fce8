"""Choice of the backend on a GPU, and of the GPU."""

import pytest
import torch

from dmm_fast import ops
from dmm_fast.ops import BACKENDS, BackendError, _backends
from dmm_fast.ops.schema import OPS
from tests.cases import CASES
from tests.compare import backends_for, compare, run_backend
from tests.gpu.calls import OP_BACKENDS
from tests.inputs import build


@pytest.mark.parametrize("op_name", OPS)
def test_a_backend_without_the_op_is_refused_without_fallback(
    op_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("this backend was not asked for")

    inputs, able = build(op_name, CASES["small"]), backends_for(op_name)
    held = _backends._implementations[op_name]
    for name in held:
        monkeypatch.setitem(held, name, _backends.Implementation(fail, held[name].dtypes))
    for name in BACKENDS:
        if name not in able:
            with ops.use_backend(name), pytest.raises(BackendError, match=f"{op_name} on cuda"):
                getattr(ops, op_name)(**inputs)


@pytest.mark.parametrize(("op_name", "name"), OP_BACKENDS)
def test_the_requested_backend_computes(op_name: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sentinel = object()
    held = _backends._implementations[op_name]
    monkeypatch.setitem(held, name, _backends.Implementation(lambda *args: sentinel, held[name].dtypes))
    with ops.use_backend(name):
        assert getattr(ops, op_name)(**build(op_name, CASES["small"])) is sentinel


@pytest.mark.parametrize("op_name", OPS)
def test_tensors_on_another_device_are_named(op_name: str) -> None:
    inputs = build(op_name, CASES["small"])
    leading = OPS[op_name].leading
    inputs[leading] = inputs[leading].cpu()
    with pytest.raises(ValueError, match=r"expected .* on cpu"):
        getattr(ops, op_name)(**inputs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("op_name", "name"), OP_BACKENDS)
def test_an_op_computes_on_the_device_of_its_tensors(op_name: str, name: str) -> None:
    case = CASES["primes"]
    assert torch.cuda.current_device() == 0
    on_second = run_backend(op_name, build(op_name, case, torch.float32, "cuda:1"), case, name)
    assert {value.device.index for value in on_second.values()} == {1}
    on_first = run_backend(op_name, build(op_name, case), case, name)
    for key, value in on_first.items():
        torch.testing.assert_close(on_second[key].cpu(), value.cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_name", OPS)
def test_by_default_the_best_backend_computes(op_name: str) -> None:
    chosen = _backends.chosen(op_name, "cuda")
    assert chosen == next(b for b in ("cuda", "triton", "reference") if b in backends_for(op_name))
    compare(op_name, CASES["particles"], chosen)
