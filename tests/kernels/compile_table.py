"""What the Triton kernels become on a GPU that is not there: registers, spills, shared memory.

    python -m tests.kernels.compile_table [--arch 90] [--json]

The real ops run at the tutorial's sizes on CPU tensors, with every launch turned into a compilation: so
what is compiled is what would be launched, and no list of kernels is kept. Results are never looked at.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

import torch

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Compiled:
    """A kernel as it was compiled; ``rows`` tells launches of one kernel with different blocks apart."""

    name: str
    arch: int
    warps: int
    registers: int
    spills: int
    stack: int
    shared: int


class NoGpu:
    """A driver for a device of some architecture that is never used."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(kernel: Any, arch: int) -> Compiled:
    """What the assembler says of a compiled kernel."""
    import triton

    tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([f"{tools}/cuobjdump", "-res-usage", file.name], text=True)
        code = subprocess.check_output([f"{tools}/nvdisasm", "-c", file.name], text=True)
    held = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    return Compiled(
        name=kernel.metadata.name,
        arch=arch,
        warps=kernel.metadata.num_warps,
        registers=int(held["REG"]),
        spills=len(re.findall(r"\bSTL\b", code)),
        stack=int(held["STACK"]),
        shared=kernel.metadata.shared,
    )


def take_cpu_tensors() -> None:
    """Make the Triton ops take CPU tensors, as they do where they are interpreted."""
    from dmm_fast import kernels
    from dmm_fast.ops import backend

    assert kernels._library is not None
    backend._PREFERENCE["cpu"] += ("triton",)
    for module in [m for name, m in sys.modules.items() if name.startswith(f"{kernels.__name__}.")]:
        for name in getattr(module, "__all__", ()):
            kernels._library.impl(name, getattr(module, name), "CPU")


def compile_all(arch: int) -> list[Compiled]:
    """Every kernel that a forward and a backward pass of every op would launch at the tutorial's sizes."""
    # Before the package is imported: a torch without CUDA would have no Triton ops.
    torch.version.cuda = torch.version.cuda or "none"
    import triton
    from triton.runtime.jit import JITFunction

    from dmm_fast import ops
    from tests.cases import CASES, OPS
    from tests.compare import backends_for, run_backend
    from tests.inputs import build

    found: dict[Any, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found[kernel.hash] = kernel
        return kernel

    take_cpu_tensors()
    triton.runtime.driver.set_active(NoGpu(arch))
    JITFunction.run = compile_only
    case = CASES["tutorial"]
    for op in OPS:
        if "triton" in backends_for(op):
            run_backend(op, build(op, case), case, "triton")
    rule = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}
    with ops.use_backend("triton"):
        for step in (1, torch.tensor(1)):
            ops.clipped_adam(*([torch.ones(7)] for _ in range(4)), step=step, **rule)
    return sorted((resources(k, arch) for k in found.values()), key=lambda c: (c.name, c.shared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="the compute capability, without its dot")
    parser.add_argument("--json", action="store_true", help="for a program to read")
    given = parser.parse_args()
    table = compile_all(given.arch)
    if given.json:
        print(json.dumps([asdict(kernel) for kernel in table]))
        return
    print(f"{'kernel':40} {'arch':>4} {'warps':>5} {'registers':>9} {'spills':>6} {'stack':>5} {'shared':>7}")
    for k in table:
        print(f"{k.name:40} {k.arch:4} {k.warps:5} {k.registers:9} {k.spills:6} {k.stack:5} {k.shared:7}")


if __name__ == "__main__":
    main()
