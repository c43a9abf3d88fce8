"""Instructions and estimated time of a step of the scans, from the machine code for compute capability 9.0.

    python -m tests.cuda.step_budget [--all] [--check] [--write] [NAME...]

No GPU is needed. A row is a turn of a kernel (:mod:`tests.cuda.turns`), as one warp passes it that does all
there is to do: a time step of all rows, or of one group where groups take turns in a loop.

Inner loops are passed once ("repeated" has their instructions). So the kernels for any size, which loop over
what others unroll, take more than their row says, and their chain has loads of weights from device memory
that a plan need not have. Their rows compare one build with another, and are no estimates.

``step_budget.json`` is the table that the library is held to.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dmm_fast.cuda.lane_tiles import LaneTile
from dmm_fast.cuda.plan import Plan, scan_plans
from dmm_fast.cuda.rnn_plans import WarpTiling
from tests.cuda.chain import chain
from tests.cuda.machine_code import ARCH, compiler, kernels
from tests.cuda.resource_table import table as resource_table
from tests.cuda.turns import Turn, find_turn, is_wait

TABLE = Path(__file__).with_suffix(".json")
SIZES = (20, 600, 100)  # B, H, Z of the tutorial
GENERAL = ("rnn_scan_fwd_kernel<InFloat32<8> >", "combiner_scan_fwd_kernel<2, 4>")

# Measured on an NVIDIA H100 80GB HBM3; the clock is that under load.
CLOCK = 1.98  # cycles a ns
EXCHANGE = 310.0  # ns, and the bytes that a block receives
BYTES = 28.0  # a ns

KINDS = {
    "ffma": ("FFMA",),
    "lds": ("LDS", "LDSM"),
    "sts": ("STS",),
    "bar": ("BAR",),
    "stas": ("STAS",),
    "shfl": ("SHFL",),
    "mufu": ("MUFU",),
    "ldg": ("LDG", "LDGSTS"),
    "stg": ("STG",),
    "branches": ("BRA", "BRX", "BSSY", "BSYNC"),
}
# The part by which a count may exceed the table's: small changes move instructions around.
TOLERANCE = {"instructions": 0.02, "chain": 0.05} | dict.fromkeys(
    ("lds", "bar", "stas", "shfl", "branches", "registers", "stack"), 0.0
)

Budget = dict[str, int]  # registers and stack; of a kernel that exchanges, also what a turn takes


class Table(NamedTuple):
    """The budgets of a library's kernels by name, and the nvcc that compiled it."""

    nvcc: str
    kernels: dict[str, Budget]


def read_library(names: Sequence[str] | None = None) -> dict[str, Budget]:
    """The budgets of all kernels of the library that is loaded.

    Args:
        names: of the kernels whose turns are read, since that takes a quarter of a second each; None: of all.
    """
    found = {
        kernel.name: {"registers": kernel.registers, "stack": kernel.stack}
        for kernel in resource_table() or []
        if kernel.arch == ARCH
    }
    for name, code in kernels(names):
        # The tutorial's rnn_scan has ReLU. The combiner has tanh and softplus.
        turn = find_turn(code, without_mufu=name.startswith("rnn_scan"))
        if turn is not None:
            found[name] |= _budget(turn)
    return found


def _budget(turn: Turn) -> Budget:
    count = Counter(passed.instruction.kind for passed in turn.path)
    return {
        "instructions": len(turn.path),
        "repeated": sum(passed.repeats for passed in turn.path),
        **{column: sum(count[kind] for kind in kinds) for column, kinds in KINDS.items()},
        "waits": sum(is_wait(passed.instruction) for passed in turn.path),
        "chain": chain(turn.path),
        "cold": turn.cold,
    }


def excess(found: dict[str, Budget], allowed: dict[str, Budget]) -> list[str]:
    """Differences from the table, a line each: kernels, and counts that have grown."""
    lines = [f"{name}: expected in the table, got none" for name in found.keys() - allowed.keys()]
    lines += [f"{name}: expected in the library, got none" for name in allowed.keys() - found.keys()]
    for name in found.keys() & allowed.keys():
        for column, tolerance in TOLERANCE.items():
            most, count = allowed[name].get(column, 0), found[name].get(column, 0)
            if count > most * (1 + tolerance):
                lines.append(f"{name}: {column}: expected at most {most}, got {count}")
    return sorted(lines)


def read_table(path: Path = TABLE) -> Table:
    """The committed table."""
    document = json.loads(path.read_text())
    return Table(document["nvcc"], document["kernels"])


def write_table(table: Table, path: Path = TABLE) -> None:
    """Writes a line for each kernel."""
    lines = (f"    {json.dumps(name)}: {json.dumps(table.kernels[name])}" for name in sorted(table.kernels))
    head = f'{{\n  "nvcc": {json.dumps(table.nvcc)},\n  "kernels": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n  }\n}\n")


class Launch(NamedTuple):
    """A kernel as a plan launches it."""

    kernel: str
    warps: int  # of a block
    groups: int  # of a cluster's rows, which take turns
    received: int  # bytes, by a block for a group and step

    @property
    def exchange(self) -> float:
        """Cycles from the last store of a block until all others have waited for it."""
        return CLOCK * (EXCHANGE + self.received / BYTES)

    def issue(self, budget: Budget) -> int:
        """Cycles that the scheduler with the most warps takes to issue what its warps do in a turn."""
        return budget["instructions"] * -(-self.warps // 4)

    def step(self, budget: Budget) -> float:
        """Estimated cycles of a step: while what one group gave is on its way, the others compute."""
        turns = -(-self.groups // budget["waits"])
        busy = max(budget["chain"], self.issue(budget))
        return max(turns * busy, busy + self.exchange)


def launch_of(scan: str, plan: Plan) -> Launch:
    """The kernel of a plan: the one place that knows how kernels are named."""
    way = "bwd" if scan.endswith("_backward") else "fwd"
    rows, at_once, size = plan[:3]
    match plan.tilings:
        case (WarpTiling() as tiling,):
            sizes = ", ".join(map(str, (*tiling, at_once, "true" if rows > at_once else "false")))
            kernel = f"rnn_scan_warps_{way}_kernel<{sizes}>"
            givers = size - 1  # a block gives itself nothing
        case (LaneTile() as to, LaneTile() as back):
            tiles = f"{to.group_outputs}, {to.lane_inputs}, {back.group_outputs}, {back.lane_inputs}"
            kernel = f"combiner_rows_{way}_kernel<{size}, {tiles}, {at_once}>"
            givers = size
        case _:
            raise ValueError(f"plan: expected one of warps or of single rows, got {plan}")
    return Launch(kernel, plan.threads // 32, -(-rows // at_once), 4 * at_once * plan.given * givers)


def print_budgets(budgets: dict[str, Budget]) -> None:
    """A row for each kernel that exchanges."""
    with_turn = {name: budget for name, budget in budgets.items() if "chain" in budget}
    if not with_turn:
        return
    columns = list(next(iter(with_turn.values())))
    print(f"{'a turn of':42}" + "".join(f"{column:>{len(column) + 2}}" for column in columns))
    for name, budget in with_turn.items():
        print(f"{name:42}" + "".join(f"{budget[column]:{len(column) + 2}}" for column in columns))


def print_estimates(launches: dict[str, Launch], budgets: dict[str, Budget]) -> None:
    """A row for each scan whose kernel is there: cycles, and microseconds of a step."""
    print(f"{'a step of':24}{'warps':>7}{'groups':>8}{'chain':>7}{'issue':>7}{'exchange':>10}{'us':>6}")
    for scan, launch in launches.items():
        if (budget := budgets.get(launch.kernel, {})).get("waits"):
            print(
                f"{scan:24}{launch.warps:7}{launch.groups:8}{budget['chain']:7}{launch.issue(budget):7}"
                f"{launch.exchange:10.0f}{launch.step(budget) / CLOCK / 1000:6.2f}"
            )


def main() -> None:
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.step_budget", description=summary)
    parser.add_argument("names", metavar="NAME", nargs="*", help="parts of the names of kernels to print")
    parser.add_argument("--all", action="store_true", help="print every kernel")
    parser.add_argument("--check", action="store_true", help="hold every kernel to the table")
    parser.add_argument("--write", action="store_true", help="write the table that the library is held to")
    arguments = parser.parse_args()
    if resource_table() is None:
        sys.exit("cuobjdump: expected it on PATH or in the package triton, got none")
    launches = {scan: launch_of(scan, plan) for scan, plan in scan_plans(*SIZES).items()}
    usual = [*(launch.kernel for launch in launches.values()), *GENERAL]
    needs_all = arguments.names or arguments.all or arguments.check or arguments.write
    budgets = read_library(None if needs_all else usual)
    parts = arguments.names or ([""] if arguments.all else usual)
    print_budgets({name: budget for name, budget in budgets.items() if any(part in name for part in parts)})
    print_estimates(launches, budgets)
    for name in usual:
        if name not in budgets:
            print(f"{name}: expected in the library, got none")
    if arguments.write:
        write_table(Table(compiler(), budgets))
    if arguments.check and (lines := excess(budgets, read_table().kernels)):
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
