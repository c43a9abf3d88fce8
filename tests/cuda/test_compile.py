"""The CUDA kernels in the loaded library, compiled for GPUs that need not be present."""

import re

import pytest

from dmm_fast import _extension
from dmm_fast.cuda import lane_tiles, scan_kernels
from dmm_fast.cuda.rnn_plans import WarpTiling
from tests.cuda.resource_table import Resources, cuobjdump, parse, table
from tests.cuda.step_budget import read_table

pytestmark = pytest.mark.skipif(not _extension.cuda_architectures(), reason="built without CUDA kernels")


@pytest.fixture(scope="module")
def kernels() -> list[Resources]:
    found = table()
    if found is None:
        pytest.skip("no cuobjdump: it comes with triton")
    return found


def test_no_kernel_spills(kernels: list[Resources]) -> None:
    assert [kernel for kernel in kernels if kernel.stack] == []


def test_all_shared_memory_is_dynamic(kernels: list[Resources]) -> None:
    """From 9.0 on the hardware reserves a kibibyte, which the tool includes."""
    assert [k for k in kernels if k.shared != (0 if k.arch < "sm_90" else 1024)] == []


def test_the_library_has_a_kernel_for_every_plan(kernels: list[Resources]) -> None:
    expected = {"clipped_adam_kernel", "cluster_kernel"}
    for way in ("fwd", "bwd"):
        for (quads,) in scan_kernels.kernels("rnn_scan"):
            expected.add(f"rnn_scan_{way}_kernel<InFloat32<{quads}> >")
        for tiles, quads in scan_kernels.kernels("rnn_scan_tensor_cores"):
            expected.add(f"rnn_scan_{way}_kernel<OnTensorCores<{tiles}, {quads}> >")
        for sizes in scan_kernels.kernels("rnn_scan_bf16"):
            expected.add(f"rnn_scan_bf16_{way}_kernel<Bf16Kernel<{', '.join(map(str, sizes))}> >")
        for kind in ("warps", "words"):
            for *sizes, several in scan_kernels.kernels(f"rnn_scan_{kind}"):
                how = ", ".join([*map(str, sizes), "true" if several else "false"])
                expected.add(f"rnn_scan_{kind}_{way}_kernel<{how}>")
        for pair in scan_kernels.kernels("combiner_scan"):
            to, back = pair if way == "fwd" else pair[::-1]
            expected.add(f"combiner_scan_{way}_kernel<{to}, {back}>")
        for sizes in scan_kernels.kernels("combiner_rows" if way == "fwd" else "combiner_rows_backward"):
            expected.add(f"combiner_rows_{way}_kernel<{', '.join(map(str, sizes))}>")
        for sizes in scan_kernels.kernels("combiner_words" if way == "fwd" else "combiner_words_backward"):
            expected.add(f"combiner_words_{way}_kernel<RowsKernel<{', '.join(map(str, sizes))}> >")
        for sizes in scan_kernels.kernels("combiner_tensor" if way == "fwd" else "combiner_tensor_backward"):
            expected.add(f"combiner_tensor_{way}_kernel<{', '.join(map(str, sizes))}>")
    machine_code = {name for name in _extension.cuda_architectures().split() if name.startswith("sm_")}
    assert {(kernel.name, kernel.arch) for kernel in kernels} == {
        (n, a) for n in expected for a in machine_code
    }


def test_the_planner_counts_the_instructions_of_the_machine_code() -> None:
    """The table counts one iteration of the loop over chunks of weights in shared memory."""
    budgets = {name: budget for name, budget in read_table().kernels.items() if "chain" in budget}
    checked = set()
    for way, backward in (("fwd", False), ("bwd", True)):
        for *sizes, rows, several in scan_kernels.kernels("rnn_scan_warps"):
            tiling = WarpTiling(*sizes)
            how = ", ".join(map(str, (*sizes, rows, "true" if several else "false")))
            budget = budgets[name := f"rnn_scan_warps_{way}_kernel<{how}>"]
            counted = budget["instructions"] + max(tiling.in_shared - 1, 0) * budget["repeated"]
            assert tiling.instructions(rows, bool(several)) == pytest.approx(counted, rel=0.06), name
            checked.add(name)
        # Kernels that exchange through device memory, if the table contains them.
        for *sizes, rows, several in scan_kernels.kernels("rnn_scan_words"):
            tiling = WarpTiling(*sizes)
            how = ", ".join(map(str, (*sizes, rows, "true" if several else "false")))
            if budget := budgets.get(name := f"rnn_scan_words_{way}_kernel<{how}>"):
                counted = budget["instructions"] + max(tiling.in_shared - 1, 0) * budget["repeated"]
                assert tiling.word_instructions(rows, bool(several)) == pytest.approx(counted, rel=0.08), name
                checked.add(name)
        for cut in lane_tiles.cuts(1, 1, backward):
            tiles = (
                n for tile in (cut.to_units, cut.from_units) for n in (tile.group_outputs, tile.lane_inputs)
            )
            name = f"combiner_rows_{way}_kernel<{', '.join(map(str, (cut.blocks, *tiles, cut.rows)))}>"
            if cut.blocks > 1:  # a single block stores to no other
                assert cut.instructions == pytest.approx(budgets[name]["instructions"], rel=0.05), name
                checked.add(name)
        for cut in lane_tiles.word_cuts(1, 1, backward):
            tiles = (
                n for tile in (cut.to_units, cut.from_units) for n in (tile.group_outputs, tile.lane_inputs)
            )
            name = f"combiner_words_{way}_kernel<RowsKernel<{', '.join(map(str, (*tiles, cut.rows)))}> >"
            if budget := budgets.get(name):
                assert cut.word_instructions == pytest.approx(budget["instructions"], rel=0.05), name
                checked.add(name)
    assert {name for name in budgets if re.search("_(warps|rows|words)_", name)} == checked


@pytest.mark.usefixtures("kernels")
def test_the_library_has_the_architectures_that_it_names() -> None:
    listed = cuobjdump("-lelf", "-lptx")
    assert listed is not None
    files = re.findall(r"\.sm_(\w+)\.(cubin|ptx)\b", listed)
    held = {("sm_" if kind == "cubin" else "compute_") + arch for arch, kind in files}
    assert held == set(_extension.cuda_architectures().split())


REPORT = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z1av:
  REG:255 STACK:16 SHARED:2048 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z1bv:
  REG:4 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_a_report_is_read_kernel_by_kernel() -> None:
    assert parse(REPORT) == [Resources("_Z1av", "sm_90", 255, 16, 2048), Resources("_Z1bv", "sm_90", 4, 0, 0)]
    assert parse("") == []
