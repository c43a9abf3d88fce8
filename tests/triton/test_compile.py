"""The Triton kernels of all launches, compiled without a GPU."""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from tests.triton.compile_table import ARCHITECTURES

# The largest shared memory of a block on all GPUs of a generation, of which 9.0 and 10.0 have one.
SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}

# Stores that spill. The assembler spills a few words of addresses outside of loops, at 128 of 255 registers,
# to fit one more block on a multiprocessor.
SPILLS = {80: 6, 90: 2, 100: 10}
SPILLS_OF_MANY = 26  # the blocks of 32 rows are not tuned

# The variants to compile for each architecture; all would take minutes.
VARIANTS = {80: ["few"], 90: ["few", "many, tf32"], 100: ["few"]}

# Kernels of the scans that multiply.
OF_SCANS = {
    *("rnn_step_fwd_kernel", "rnn_step_bwd_kernel", "combine_kernel", "combine_bwd_kernel", "draw_kernel"),
    *("draw_bwd_kernel", "starts_bwd_kernel", "hide_kernel", "hide_bwd_kernel", "transform_kernel"),
    *("latents_bwd_kernel", "inputs_bwd_kernel"),
}

# Accurate to two units in the last place, as the elementary functions require.
APPROXIMATE = {"div.full.f32", "ex2.approx.ftz.f32"}

TABLE = [sys.executable, "-m", "tests.triton.compile_table"]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def tables() -> dict[int, list[dict[str, Any]]]:
    """The resources of the kernels by architecture, a process each, as a fake driver is permanent."""
    runs = {
        arch: subprocess.Popen(
            [*TABLE, "--json", "--arch", str(arch), *(f"--variant={name}" for name in VARIANTS[arch])],
            stdout=subprocess.PIPE,
            text=True,
        )
        for arch in ARCHITECTURES
    }
    outputs = {arch: run.communicate()[0] for arch, run in runs.items()}
    assert all(run.returncode == 0 for run in runs.values())
    return {arch: json.loads(text) for arch, text in outputs.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_fits_the_gpu_and_its_registers(
    tables: dict[int, list[dict[str, Any]]], arch: int
) -> None:
    kernels = tables[arch]
    names = {kernel["name"] for kernel in kernels}
    assert {"gated_transition_fwd_kernel", "gated_transition_bwd_kernel", "sum_steps_kernel"} <= names
    assert {*OF_SCANS, "passed_flows_kernel"} <= names
    faults = [
        k
        for k in kernels
        if k["shared"] > SHARED[arch]
        or k["spills"] > (SPILLS[arch] if k["variant"] == "few" else SPILLS_OF_MANY)
    ]
    assert not faults


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_elementary_functions_have_their_accuracy(tables: dict[int, list[dict[str, Any]]], arch: int) -> None:
    assert {name for k in tables[arch] for name in k["approximate"]} <= APPROXIMATE


def test_a_network_uses_tf32_only_where_torch_allows_it(
    tables: dict[int, list[dict[str, Any]]],
) -> None:
    networks = [k for k in tables[90] if k["name"] in OF_SCANS or "transition" in k["name"]]
    assert {k["name"] for k in networks} >= OF_SCANS
    assert {(k["variant"], k["tf32"]) for k in networks} == {("few", False), ("many, tf32", True)}


def test_no_kernel_is_recompiled_for_another_shape_or_other_strides_of_the_batch() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.triton.compiled_anew"], capture_output=True, text=True, check=True
    )
    at_one_shape, at_all = json.loads(run.stdout)
    assert at_one_shape
    # The kernel that sums parts of rows is compiled for each number of parts, of three binary digits.
    del at_one_shape["sums_kernel"], at_all["sums_kernel"]
    assert at_all == at_one_shape
