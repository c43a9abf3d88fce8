"""Paths of the kernels for large batches, torch's settings or measuring, interpreted."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dmm_fast import triton
from dmm_fast.ops.schema import OPS
from tests.cases import CASES
from tests.compare import backends_for, compare, eager, error, run_backend
from tests.inputs import build

if not triton.INTERPRETED:
    pytest.skip("runs where Triton's kernels are interpreted: make triton", allow_module_level=True)

from triton.runtime.interpreter import InterpreterBuilder

from dmm_fast.triton import layers, scan, tuning

BY_TRITON = [op for op in OPS if "triton" in backends_for(op)]
each_op = pytest.mark.parametrize("op_name", BY_TRITON)

# Rows have at least 17 steps, so that parts and blocks end within rows.
CASE = CASES["many_steps"]


@each_op
def test_a_large_batch_uses_larger_blocks_and_several_parts(
    op_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FEW_PLACES", 0)
    monkeypatch.setattr(scan, "FEW_ROWS", 0)
    monkeypatch.setattr(layers, "SCRATCH_ROWS", 32)
    compare(op_name, CASE, "triton")


def test_larger_blocks_are_used_if_each_multiprocessor_has_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "INTERPRETED", False)
    assert [tuning.by_rule(count).BLOCK_M for count in (1, 8192, 8193)] == [16, 16, 32]
    assert [scan.blocks_for(rows, 600, 100).M.value for rows in (1, 128, 129)] == [8, 8, 64]


def test_a_part_of_scratch_is_whole_blocks() -> None:
    assert all(layers.SCRATCH_ROWS % config.BLOCK_M == 0 for config in tuning.CANDIDATES)
    assert list(layers.in_parts(2 * layers.SCRATCH_ROWS + 1))[-1] == (2 * layers.SCRATCH_ROWS, 1)


# --- tf32 -----------------------------------------------------------------------------------------------


def rounded(x: Any) -> Any:
    """Round to the ten bits of tf32."""
    return ((x.view(np.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(np.float32)


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Allow tf32 products, and make the interpreter round their factors."""
    dot = InterpreterBuilder.create_dot

    def rounding_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, most: Any) -> Any:
        if precision.name == "TF32":
            a, b = (type(x)(rounded(x.data), x.dtype) for x in (a, b))
        return dot(self, a, b, d, precision, most)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", rounding_dot)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@each_op
@pytest.mark.usefixtures("tensor_cores")
def test_products_are_rounded_to_tf32_where_torch_allows_it(op_name: str) -> None:
    case = CASES["particles"]
    got = run_backend(op_name, build(op_name, case), case, "triton")
    off = {name: error(got[name], truth) for name, truth in eager(op_name, case, torch.float64).items()}
    assert max(off.values()) <= 2e-3, off
    exact = ("drawn_log_prob", "normal_log_prob", "bernoulli_log_prob", "nade_draw")  # without products
    assert (off["output 0"] > 1e-6) == (op_name not in exact), off


# --- measuring ------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Enable measuring; returns the configs tried so far, the last candidate being the fastest."""
    tried: list[Any] = []

    def milliseconds(run: Any, config: Any) -> float:
        run(config)
        tried.append(config)
        return -float(len(tried))

    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "CANDIDATES", tuning.CANDIDATES[::5])  # one config of each size
    monkeypatch.setattr(tuning, "TILES", tuning.TILES[::7])
    monkeypatch.setattr(tuning, "_fastest", {})
    monkeypatch.setattr(tuning, "_measures", False)
    triton.autotune()
    return tried


def test_measuring_happens_once_for_batches_of_any_size(measured: list[Any]) -> None:
    for case in (CASE, replace(CASE, B=3, T=5)):
        compare("normal_log_prob", case, "triton")
        assert measured == 2 * list(tuning.CANDIDATES)  # forward and backward
    assert set(tuning._fastest.values()) == {tuning.CANDIDATES[-1]}


def test_each_layer_of_a_network_is_measured(measured: list[Any]) -> None:
    for case in (CASE, replace(CASE, B=3, T=5)):
        compare("gaussian_emission_log_prob", case, "triton")
        assert measured == (2 + 2) * list(tuning.TILES)  # forward and backward
    assert set(tuning._fastest.values()) == {tuning.TILES[-1]}


def test_nothing_is_measured_for_a_graph(measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "is_captured", lambda on: True)
    compare("normal_log_prob", CASE, "triton")
    assert not measured


def test_nothing_is_measured_by_default(measured: list[Any]) -> None:
    triton.autotune(False)
    compare("normal_log_prob", CASE, "triton")
    assert not measured
