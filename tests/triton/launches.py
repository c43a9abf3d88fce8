"""Launches of rowwise kernels in an SVI step at the tutorial's size, compiled without a GPU."""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from tests.cuda.machine_code import Instruction, instructions
from tests.triton.compile_table import NoGpu, take_cpu_tensors

OPS = ("emission_log_prob", "transition_log_prob", "drawn_log_prob", "input_projection", "combiner_heads")
"""Of an SVI step of a DMM: those with rowwise kernels, and the layers beside the combiner's scan."""


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel by an op.

    ``passes`` are the iterations of each loop with matrix products, in the order of their starts.
    """

    op: str
    kernel: str
    blocks: str  # rows, columns and inputs per block
    grid: tuple[int, ...]
    warps: int
    registers: int
    spills: int
    shared: int
    code: list[Instruction]
    passes: list[int]

    @property
    def programs(self) -> int:
        """The number of programs."""
        return prod(self.grid)


def tool(name: str, *arguments: str) -> str:
    """The output of one of the tools of Triton's compiler."""
    import triton

    folder = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    return subprocess.check_output([os.path.join(folder, name), *arguments], text=True)


_CONSTANT = re.compile(r"(%[\w.-]+) = arith\.constant (-?\d+) : i\d+")
_LOOP = re.compile(r"( *)(?:%[\w.:]+ = )?scf\.for %[\w.-]+ = (%[\w.-]+) to (%[\w.-]+) step (%[\w.-]+)")


def passes_of(ttgir: str, unknown: int = 1) -> list[int]:
    """The iterations of each loop with matrix products, in the order of their starts.

    Args:
        ttgir: the kernel in Triton's GPU IR.
        unknown: the iterations of a loop whose bounds are read on the device.
    """
    known = {name: int(value) for name, value in _CONSTANT.findall(ttgir)}
    found: list[int] = []
    for match in _LOOP.finditer(ttgir):
        indent, *bounds = match.groups()
        body = ttgir[match.end() : ttgir.index(f"\n{indent}}}", match.end())]
        if "tt.dot" in body or "warp_group_dot" in body:
            begin, end, step = (known.get(name) for name in bounds)
            given = begin is not None and end is not None and step is not None
            found.append(-((begin - end) // step) if given else unknown)
    return found


def launch_of(op: str, kernel: Any, grid: tuple[int, ...], options: dict[str, Any]) -> Launch:
    """The launch of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = tool("cuobjdump", "-res-usage", "-sass", file.name)
    code = instructions(said)
    (registers,) = re.findall(r"REG:(\d+)", said)
    blocks = options.get("blocks")
    unknown = 1
    if "splits" in options:  # the parts that the rows of a product are split into
        unknown = -(-options["count"] // options["splits"] // blocks.K.value)
    return Launch(
        op=op,
        kernel=kernel.metadata.name,
        blocks="x".join(str(getattr(b, "value", b)) for b in blocks[:3]) if isinstance(blocks, tuple) else "",
        grid=grid,
        warps=kernel.metadata.num_warps,
        registers=int(registers),
        spills=sum(instruction.kind == "STL" for instruction in code),
        shared=kernel.metadata.shared,
        code=code,
        passes=passes_of(kernel.asm["ttgir"], unknown),
    )


def call(op: str) -> None:
    """Run an op at the tutorial's size as in a step: with its gradients, or by a backward op."""
    from benchmarks.draws import Sizes, differentiable, draw
    from dmm_fast import ops
    from dmm_fast.ops._registry import call_valued
    from dmm_fast.ops.schema import OPS as SCHEMA
    from dmm_fast.triton.step_layers import step_layers

    sizes, generator = Sizes(), torch.Generator().manual_seed(0)
    if op == "combiner_heads":
        drawn = draw(SCHEMA["combiner_scan"].arguments, sizes, generator)
        w = drawn["weights"]
        step_layers(
            drawn["h"][None], [(w.w_loc, w.b_loc), (w.w_scale, w.b_scale)], drawn["lengths"], scale=0.5
        )
        return
    drawn = draw(SCHEMA[op].arguments, sizes, generator)
    wanted = [t.requires_grad_() for name, t in differentiable(drawn).items() if name not in ("x", "eps")]
    if SCHEMA[op].valued:
        call_valued(torch.ones(sizes.B), op, *drawn.values())
        return
    outputs = getattr(ops, op)(**drawn)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.grad([output.sum() for output in outputs], wanted, allow_unused=True)


def all_launches(names: Sequence[str] = OPS, arch: int = 90) -> list[Launch]:
    """Compile every launch of these ops, forward and backward, instead of executing it.

    No kernel can run in this process afterwards.
    """
    # Set before the package is imported, as a torch without CUDA would have no Triton ops.
    torch.version.cuda = torch.version.cuda or "none"
    import triton
    from triton.runtime.jit import JITFunction

    from dmm_fast import ops

    run = JITFunction.run
    found: list[tuple[str, Any, tuple[int, ...], dict[str, Any]]] = []
    op = ""

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        named = dict(zip(self.arg_names, args, strict=False)) | options
        found.append((op, kernel, tuple(grid), named))
        return kernel

    take_cpu_tensors()
    triton.runtime.driver.set_active(NoGpu(arch))
    JITFunction.run = compile_only
    with ops.use_backend("triton"):
        for op in names:
            call(op)
    return [launch_of(*launch) for launch in found]
