"""Resources of the Triton kernels, compiled without a GPU: registers, spills, shared memory.

    python -m tests.triton.compile_table [--arch 90] [--variant few] [--json]

The ops run at the tutorial's sizes on CPU tensors, with every launch replaced by a compilation, so that
exactly the launched kernels are compiled. Results are not used.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel, with the first variant that launches it.

    ``approximate`` are the PTX instructions that do not round correctly.
    """

    name: str
    variant: str
    arch: int
    warps: int
    registers: int
    spills: int
    shared: int
    tf32: bool
    approximate: list[str]


# The largest number of rows of a small batch, and torch's precision of products.
VARIANTS = {
    "few": (1 << 30, "highest"),
    "many": (0, "highest"),
    "few, tf32": (1 << 30, "high"),
    "many, tf32": (0, "high"),
}


class NoGpu:
    """A driver that reports a device of some architecture, which is never used."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(kernel: Any, variant: str, arch: int) -> Compiled:
    """The output of the assembler for a compiled kernel."""
    import triton

    tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([f"{tools}/cuobjdump", "-res-usage", file.name], text=True)
        code = subprocess.check_output([f"{tools}/nvdisasm", "-c", file.name], text=True)
    registers = re.findall(r"REG:(\d+)", usage)
    ptx = kernel.asm["ptx"]
    return Compiled(
        name=kernel.metadata.name,
        variant=variant,
        arch=arch,
        warps=kernel.metadata.num_warps,
        registers=int(registers[0]),
        spills=len(re.findall(r"\bSTL\b", code)),
        shared=kernel.metadata.shared,
        # If three such products replace one, their factors are rounded first.
        tf32="tf32" in ptx and "cvt.rna.tf32" not in ptx,
        approximate=sorted(set(re.findall(r"\b\w+\.(?:approx|full)[.\w]*", ptx))),
    )


def take_cpu_tensors() -> None:
    """Make the Triton ops accept CPU tensors, as if they were interpreted."""
    from dmm_fast.ops import _backends, _registry

    _backends.PREFERENCE["cpu"] += ("triton",)
    _registry.route_on("cpu")


def run_every_pass(op_name: str, case: Any) -> None:
    """Run forward and backward pass of the op, and the backward passes that also return the value."""
    from dmm_fast.ops.schema import OPS
    from tests.compiled import calls_of

    op, backward = OPS[op_name], calls_of(op_name, case, "triton")[-1]
    if op.valued:
        for optional in (True, False) if op.optional else (True,):
            backward.run(with_out=True, **{f"with_d{name}": optional for name in op.optional})


def compile_all(arch: int, variants: Sequence[str]) -> list[Compiled]:
    """Compile every kernel that forward and backward passes of all ops launch at the tutorial's sizes.

    For each variant; some of them share kernels.
    """
    # Set before the package is imported, as a torch without CUDA would have no Triton ops.
    torch.version.cuda = torch.version.cuda or "none"
    import triton
    from triton.runtime.jit import JITFunction

    from dmm_fast import ops
    from dmm_fast.ops.schema import OPS
    from dmm_fast.triton import scan, tuning
    from tests.cases import CASES
    from tests.compare import backends_for

    found: dict[Any, tuple[Any, str]] = {}
    variant = ""
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.setdefault(kernel.hash, (kernel, variant))
        return kernel

    take_cpu_tensors()
    triton.runtime.driver.set_active(NoGpu(arch))
    JITFunction.run = compile_only
    case = CASES["tutorial"]
    by_triton = [op for op in OPS if "triton" in backends_for(op)]
    for variant in variants:
        few, precision = VARIANTS[variant]
        tuning.FEW_PLACES = scan.FEW_ROWS = few
        torch.set_float32_matmul_precision(precision)
        for op in by_triton:
            run_every_pass(op, case)
        run_every_pass("rnn_scan", replace(case, direction="forward"))
    rule = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}
    with ops.use_backend("triton"):
        for step in (1, torch.tensor(1)):
            ops.clipped_adam(*([torch.ones(7)] for _ in range(4)), step=step, **rule)
        rule |= {"lr": torch.tensor(0.1, dtype=torch.float64), "lrd": 0.9}
        ops.clipped_adam(*([torch.ones(7)] for _ in range(4)), step=torch.tensor(1), **rule)
    table = (resources(*compiled, arch) for compiled in found.values())
    return sorted(table, key=lambda c: (c.name, list(VARIANTS).index(c.variant), c.shared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="the compute capability, without its dot")
    parser.add_argument(
        "--variant", action="append", choices=VARIANTS, help="may be given again; all of them by default"
    )
    parser.add_argument("--json", action="store_true", help="for a program to read")
    given = parser.parse_args()
    table = compile_all(given.arch, given.variant or list(VARIANTS))
    if given.json:
        print(json.dumps([asdict(kernel) for kernel in table]))
        return
    print(
        f"{'kernel':33} {'variant':9} {'arch':>4} {'warps':>5} {'registers':>9} {'spills':>6} {'shared':>7}"
    )
    for k in table:
        numbers = f"{k.arch:4} {k.warps:5} {k.registers:9} {k.spills:6} {k.shared:7}"
        print(f"{k.name:33} {k.variant:9} {numbers}")


if __name__ == "__main__":
    main()
