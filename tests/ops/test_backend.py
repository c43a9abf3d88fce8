"""Backends: the default, explicit requests, which never fall back, and the report of both."""

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dmm_fast
from dmm_fast import _extension, ops, reference
from dmm_fast.ops import BACKENDS, BackendError, _backends
from dmm_fast.ops.schema import OPS
from tests.cases import CASES
from tests.compare import backends_for, compare
from tests.device import cpu_only
from tests.inputs import build

pytestmark = [cpu_only, pytest.mark.usefixtures("no_request")]


def fail_if_called(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("this backend was not asked for")


# --- requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b for b in BACKENDS if b != "reference"])
def test_a_backend_without_the_op_is_refused_without_fallback(
    double_op: Callable[[Tensor], Tensor], name: str
) -> None:
    _backends.register("double", "reference", fail_if_called)
    with ops.use_backend(name), pytest.raises(BackendError) as caught:
        double_op(torch.ones(2))
    message = str(caught.value)
    assert message.startswith("backend: expected one that computes double on cpu in float32 (reference), got")
    assert repr(name) in message


@pytest.mark.parametrize("op_name", OPS)
def test_every_op_refuses_a_backend_it_lacks(op_name: str) -> None:
    inputs = build(op_name, CASES["small"])
    lacking = [name for name in BACKENDS if name not in backends_for(op_name)]
    assert "cuda" in lacking  # the tensors are on a CPU
    for name in lacking:
        with ops.use_backend(name), pytest.raises(BackendError, match=f"{op_name} on cpu"):
            getattr(ops, op_name)(**inputs)


def test_a_backend_for_another_device_is_refused(double_op: Callable[[Tensor], Tensor]) -> None:
    _backends.register("double", "cuda", fail_if_called)
    assert double_op(torch.ones(2)).tolist() == [2, 2]
    with ops.use_backend("cuda"), pytest.raises(BackendError):
        double_op(torch.ones(2))


def test_an_error_of_the_backend_causes_no_fallback(
    double_op: Callable[[Tensor], Tensor],
) -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("broken")

    _backends.register("double", "cpp", broken)
    with pytest.raises(RuntimeError, match="broken"):
        double_op(torch.ones(2))
    with ops.use_backend("cpp"), pytest.raises(RuntimeError, match="broken"):
        double_op(torch.ones(2))


def test_the_default_is_the_best_that_is_registered(
    double_op: Callable[[Tensor], Tensor],
) -> None:
    assert _backends.chosen("double", "cpu") == "reference"
    _backends.register("double", "triton", fail_if_called)
    assert _backends.chosen("double", "cuda") == "triton"
    _backends.register("double", "cuda", fail_if_called)
    assert _backends.chosen("double", "cuda") == "cuda"
    assert _backends.chosen("double", "cpu") == "reference"
    _backends.register("double", "cpp", lambda x: 3 * x)
    assert _backends.chosen("double", "cpu") == "cpp"
    assert _backends.chosen("double", "meta") == "reference"
    assert double_op(torch.ones(2)).tolist() == [3, 3]
    with ops.use_backend("reference"):
        assert double_op(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize("op_name", OPS)
def test_every_op_asks_for_its_own_implementation(op_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sentinel = object()
    monkeypatch.setitem(
        _backends._implementations[op_name], "cpp", _backends.Implementation(lambda *args: sentinel, None)
    )
    with ops.use_backend("cpp"):
        assert getattr(ops, op_name)(**build(op_name, CASES["small"])) is sentinel


@pytest.mark.skipif(not _extension.cuda_architectures(), reason="built without CUDA kernels")
def test_a_cuda_kernel_is_preferred_for_its_dtypes() -> None:
    assert _backends.chosen("clipped_adam", "cuda") == "cuda"
    assert _backends.chosen("clipped_adam", "cuda", torch.float64) == "reference"
    with ops.use_backend("cuda"), pytest.raises(BackendError, match="clipped_adam on cuda in float64"):
        _backends.chosen("clipped_adam", "cuda", torch.float64)


# --- the report -----------------------------------------------------------------------------------------


def test_info() -> None:
    info = dmm_fast.info()
    assert info["dmm_fast"] == dmm_fast.__version__
    assert info["torch"] == torch.__version__
    assert info["python"] == platform.python_version()
    assert info["cuda"] == torch.version.cuda
    assert (info["device"] is None) == (not torch.cuda.is_available())
    assert info["threads"] == torch.get_num_threads()
    known = (None,) if _extension.missing else ("avx512", "avx2", "baseline")
    assert info["instruction_set"] in known
    assert tuple(info["backends"]) == BACKENDS
    assert info["backends"]["reference"] is True
    assert info["requested"] is None
    assert set(OPS) | {"clipped_adam"} == set(info["ops"])
    for op_name in OPS:
        assert info["ops"][op_name]["cpu"] in backends_for(op_name)
        assert info["ops"][op_name].keys() == {"cpu", "cuda"}


def test_info_follows_what_is_registered(double_op: Callable[[Tensor], Tensor]) -> None:
    assert dmm_fast.info()["backends"] == {b: b == "reference" for b in BACKENDS}
    _backends.register("double", "cpp", fail_if_called)
    with ops.use_backend("reference"):
        info = dmm_fast.info()
    assert info["backends"]["cpp"] is True
    assert info["ops"] == {"double": {"cpu": "cpp", "cuda": "reference"}}
    assert info["requested"] == "reference"


# --- the comparison of backends can fail ----------------------------------------------------------------


def _scaled(factor: float) -> Callable[..., Any]:
    return lambda z, weights: reference.emitter(z, weights) * factor


def _without_gradient_of_weights(z: Tensor, weights: Any) -> Tensor:
    return reference.emitter(z, type(weights)(*(w.detach() for w in weights)))


def _in_place(z: Tensor, weights: Any) -> Tensor:
    z.data.add_(1)
    return reference.emitter(z, weights)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (_scaled(1 + 1e-5), "output 0: relative error 1.00e-05"),
        (_scaled(float("nan")), "output 0: relative error inf"),
        (_without_gradient_of_weights, "gradient of weights.w_in: relative error 1.00e"),
        (_in_place, "z: changed in place"),
        (lambda z, w: reference.emitter(z, w).double(), "output 0: torch.float64"),
        (lambda z, w: reference.emitter(z, w)[..., :1], "output 0: torch.float32"),
    ],
    ids=["value", "nan", "gradient", "in place", "dtype", "shape"],
)
def test_compare_detects_a_wrong_backend(
    wrong: Callable[..., Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        _backends._implementations["emitter"], "cpp", _backends.Implementation(reference.emitter, None)
    )
    compare("emitter", CASES["particles"], "cpp")
    monkeypatch.setitem(_backends._implementations["emitter"], "cpp", _backends.Implementation(wrong, None))
    with pytest.raises(AssertionError) as caught:
        compare("emitter", CASES["particles"], "cpp")
    assert said in str(caught.value)


def test_compare_detects_an_effect_of_invalid_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(x_proj: Tensor, *given: Any) -> Tensor:
        return reference.rnn_scan(x_proj, *given) + 1e-30 * x_proj

    monkeypatch.setitem(_backends._implementations["rnn_scan"], "cpp", _backends.Implementation(leaky, None))
    case = CASES["one_row"]
    with pytest.raises(AssertionError) as caught:
        compare("rnn_scan", case, "cpp", torch.float64)
    assert "gradient of x_proj: not zero at what is invalid or masked" in str(caught.value)
    assert "output 0: not zero past the end" in str(caught.value)
