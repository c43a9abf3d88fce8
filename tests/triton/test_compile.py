"""The Triton kernels as they would be launched, compiled for GPUs that are not there."""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from tests.triton.compile_table import ARCHITECTURES

# The shared memory a block may have: on every GPU of a generation, or for 9.0 and 10.0 on the one there is.
SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}

# Stores that spill. Where the assembler gives up a few words, it does so outside of the loops: of addresses,
# at 128 registers of 255, to fit one more block on a multiprocessor.
SPILLS = {80: 6, 90: 2, 100: 10}
SPILLS_OF_MANY = 26  # the blocks of 32 rows are as they come

# What is compiled for each: all variants would take minutes.
VARIANTS = {80: ["few"], 90: ["few", "many, tf32"], 100: ["few"]}

# Kernels of the scans that multiply.
OF_SCANS = {
    *("rnn_step_fwd_kernel", "rnn_step_bwd_kernel", "combine_kernel", "combine_bwd_kernel", "draw_kernel"),
    *("draw_bwd_kernel", "starts_bwd_kernel", "hide_kernel", "hide_bwd_kernel", "transform_kernel"),
    *("latents_bwd_kernel", "inputs_bwd_kernel"),
}

# Exact to two units in the last place, which the elementary functions are made for.
APPROXIMATE = {"div.full.f32", "ex2.approx.ftz.f32"}

TABLE = [sys.executable, "-m", "tests.triton.compile_table"]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def tables() -> dict[int, list[dict[str, Any]]]:
    """What each architecture's kernels need; a process each, since a fake driver is for good."""
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
def test_elementary_functions_are_no_coarser_than_they_are_made_for(
    tables: dict[int, list[dict[str, Any]]], arch: int
) -> None:
    assert {name for k in tables[arch] for name in k["approximate"]} <= APPROXIMATE


def test_a_network_multiplies_in_tf32_only_where_torch_allows_it(
    tables: dict[int, list[dict[str, Any]]],
) -> None:
    networks = [k for k in tables[90] if k["name"] in OF_SCANS or "transition" in k["name"]]
    assert {k["name"] for k in networks} >= OF_SCANS
    assert {(k["variant"], k["tf32"]) for k in networks} == {("few", False), ("many, tf32", True)}


def test_no_kernel_is_compiled_anew_for_another_shape_or_other_strides_of_the_batch() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.triton.compiled_anew"], capture_output=True, text=True, check=True
    )
    at_one_shape, at_all = json.loads(run.stdout)
    assert at_one_shape
    # What adds up shares of the rows is compiled for the number of shares, of three binary digits.
    del at_one_shape["sums_kernel"], at_all["sums_kernel"]
    assert at_all == at_one_shape
