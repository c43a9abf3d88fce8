"""The Triton kernels as they would be launched, compiled for GPUs that are not there."""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from tests.kernels.compile_table import ARCHITECTURES

# The shared memory a block may have: on every GPU of a generation, or for 9.0 and 10.0 on the one there is.
SHARED = {80: 99 << 10, 90: 227 << 10, 100: 227 << 10}

# Stores that spill. To fit one more block on a multiprocessor the assembler puts a few words aside of its own
# accord, at 64, 80 or 128 registers; four warps for the same blocks of transition_kl spilled 26.
SPILLS = 16

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def tables() -> dict[int, list[dict[str, Any]]]:
    """What each architecture's kernels need; a process each, since a fake driver is for good."""
    runs = {
        arch: subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.compile_table", "--json", "--arch", str(arch)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for arch in ARCHITECTURES
    }
    outputs = {arch: run.communicate()[0] for arch, run in runs.items()}
    assert all(run.returncode == 0 for run in runs.values())
    return {arch: json.loads(text) for arch, text in outputs.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_fits_the_registers_and_the_shared_memory(
    tables: dict[int, list[dict[str, Any]]], arch: int
) -> None:
    kernels = tables[arch]
    names = {kernel["name"] for kernel in kernels}
    assert {"gated_transition_fwd_kernel", "gated_transition_bwd_kernel", "sum_steps_kernel"} <= names
    faults = [k for k in kernels if k["spills"] > SPILLS or k["shared"] > SHARED[arch]]
    assert not faults
