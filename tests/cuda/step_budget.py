"""Instruction counts and estimated times of a step of the scans, from their machine code.

    python -m tests.cuda.step_budget [--arch ARCH] [--all] [--check] [--write] [NAME...]
    python -m tests.cuda.step_budget --large

No GPU is needed. For architectures without machine code in the library, such as sm_86 and sm_89, the kernels
that exchange through device memory are compiled by nvcc. A row is a turn of a kernel
(:mod:`tests.cuda.turns`) on the longest path of a warp: a time step of all rows, or of one group if groups
alternate in a loop.

Inner loops are counted once ("repeated" has their instructions). The kernels for any size, which loop where
others unroll, therefore execute more than their row says, and their chain has loads of weights from device
memory that a plan may not have. Their rows serve to compare builds, not as estimates.

``step_budget.json`` is the committed table for compute capability 9.0, which the library must not exceed.
``--large`` analyses batches of hundreds of rows: :mod:`tests.cuda.large_batches`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dmm_fast import _extension
from tests.cuda import cubins, large_batches
from tests.cuda.chain import chain
from tests.cuda.machine_code import ARCH, compiler, kernels
from tests.cuda.resource_table import cuobjdump
from tests.cuda.resource_table import table as resource_table
from tests.cuda.step_estimates import Budget, gpus_of, launches, print_estimates
from tests.cuda.turns import Turn, find_turn, is_wait, is_word_poll

TABLE = Path(__file__).with_suffix(".json")
GENERAL = ("rnn_scan_fwd_kernel<InFloat32<8> >", "combiner_scan_fwd_kernel<2, 4>")

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
# Relative tolerance of the counts, as small changes move instructions around.
TOLERANCE = {"instructions": 0.02, "chain": 0.05} | dict.fromkeys(
    ("lds", "bar", "stas", "shfl", "branches", "registers", "stack"), 0.0
)


class Table(NamedTuple):
    """The budgets of a library's kernels by name, and the nvcc that compiled it."""

    nvcc: str
    kernels: dict[str, Budget]


def read_library(names: Sequence[str] | None = None, arch: str = ARCH) -> dict[str, Budget]:
    """The budgets of the kernels of the loaded library.

    Args:
        names: the kernels whose turns are read, a quarter of a second for each; None: all.
        arch: the architecture to read.
    """
    return _read(names, arch, None)


def read_compiled(arch: str) -> dict[str, Budget]:
    """The budgets of the kernels that exchange through device memory, compiled for an architecture."""
    found: dict[str, Budget] = {}
    with cubins.compiled(arch) as binaries:
        for binary in binaries:
            found |= _read(None, arch, binary)
    return found


def _read(names: Sequence[str] | None, arch: str, binary: Path | None) -> dict[str, Budget]:
    found = {
        kernel.name: {"registers": kernel.registers, "stack": kernel.stack}
        for kernel in resource_table(binary) or []
        if kernel.arch
        == (arch if binary is None else "")  # a file for one GPU does not record its architecture
    }
    for name, code in kernels(names, arch, binary):
        # The tutorial's rnn_scan uses ReLU, the combiner tanh and softplus.
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
        "waits": _waits(turn),
        "chain": chain(turn.path),
        "cold": turn.cold,
    }


def _waits(turn: Turn) -> int:
    """Count the waits of a turn; all polls for words of device memory count as one."""
    instructions = [passed.instruction for passed in turn.path]
    at_barriers = sum(is_wait(each) and not is_word_poll(each) for each in instructions)
    return at_barriers + any(map(is_word_poll, instructions))


def excess(found: dict[str, Budget], allowed: dict[str, Budget]) -> list[str]:
    """Differences from the table: missing and new kernels, and counts that have grown."""
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


def print_budgets(budgets: dict[str, Budget]) -> None:
    """A row for each kernel that exchanges."""
    with_turn = {name: budget for name, budget in budgets.items() if "chain" in budget}
    if not with_turn:
        return
    columns = list(next(iter(with_turn.values())))
    print(f"{'a turn of':42}" + "".join(f"{column:>{len(column) + 2}}" for column in columns))
    for name, budget in with_turn.items():
        print(f"{name:42}" + "".join(f"{budget[column]:{len(column) + 2}}" for column in columns))


def main() -> None:
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.step_budget", description=summary)
    parser.add_argument("names", metavar="NAME", nargs="*", help="parts of the names of kernels to print")
    parser.add_argument("--arch", default=ARCH, help=f"of the machine code, as sm_86; by default {ARCH}")
    parser.add_argument("--all", action="store_true", help="print every kernel")
    parser.add_argument("--check", action="store_true", help=f"hold every kernel for {ARCH} to the table")
    parser.add_argument("--write", action="store_true", help="write the table that the library is held to")
    parser.add_argument("--large", action="store_true", help="instead: what binds scans of large batches")
    arguments = parser.parse_args()
    if arguments.large:
        large_batches.print_table()
        return
    if cuobjdump("--version") is None:
        sys.exit("cuobjdump: expected it on PATH or in the package triton, got none")
    arch = arguments.arch
    if arch != ARCH and (arguments.check or arguments.write):
        parser.error(f"--check, --write: expected --arch {ARCH}, of which the table is, got {arch}")
    usual = [launch.kernel for gpu in gpus_of(arch) for launch, _ in launches(*gpu).values()]
    needs_all = arguments.names or arguments.all or arguments.check or arguments.write
    if arch in _extension.cuda_architectures().split():
        usual += GENERAL
        budgets = read_library(None if needs_all else usual, arch)
    else:
        budgets = read_compiled(arch)
    parts = arguments.names or ([""] if arguments.all else usual)
    print_budgets({name: budget for name, budget in budgets.items() if any(part in name for part in parts)})
    print_estimates(arch, budgets)
    if arguments.write:
        write_table(Table(compiler(), budgets))
    if arguments.check and (lines := excess(budgets, read_table().kernels)):
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
