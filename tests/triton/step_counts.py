"""Counts and estimated times of the rowwise kernels of an SVI step at the tutorial's size, without a GPU.

    python -m tests.triton.step_counts [--check] [--write] [OP...]

A row is a launch of an op or of its backward pass, compiled for compute capability 9.0: registers and spills
per thread; programs, resident programs per multiprocessor (occupancy) and waves; instructions of a warp on
its path through the kernel with all loop iterations (:mod:`tests.triton.warp_path`), also by kind; and the
time estimated by :mod:`tests.triton.multiprocessor`. Below are sums over the kernels whose time in a step was
measured.

``step_counts.json`` is the committed table, which the kernels must not exceed.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.triton.launches import OPS, Launch, all_launches
from tests.triton.multiprocessor import CLOCK, START, Load, microseconds
from tests.triton.warp_path import warp_path

TABLE = Path(__file__).with_suffix(".json")

# Microseconds of all launches of a step in a CUDA graph, on an H100 80GB HBM3 (B=20, T=129), of the kernels
# that were timed in benchmarks/results/gpu-second-20261126T152900-782bed00.json.
MEASURED = {
    "first_layers_kernel": 50.9,
    "transition_log_prob_fwd_kernel": 29.0,
    "transition_log_prob_bwd_kernel": 43.8,
    "backward_kernel": 43.7,
    "emission_log_prob_bwd_kernel": 28.8,
    "drawn_log_prob_bwd_kernel": 4.1,
    "split_chain_kernel": 2.5,
}

KINDS = {
    "bar": ("BAR.SYNC",),
    "ffma": ("FFMA",),
    "mma": ("HMMA", "HGMMA"),
    "lds": ("LDS", "LDSM"),
    "ldgsts": ("LDGSTS",),
    "ldg": ("LDG.",),
}
# Relative tolerances of the counts; "words" are copies of four bytes per thread.
TOLERANCE = {"registers": 0.0, "spills": 0.0, "shared": 0.0, "bar": 0.0, "words": 0.0, "instructions": 0.02}

Counts = dict[str, int]


class Table(NamedTuple):
    """Counts by launch ("op 0 kernel", by its number within the op), and the Triton that compiled them."""

    triton: str
    launches: dict[str, Counts]


def load_of(launch: Launch) -> Load:
    """The parameters of a launch for the simulation of a multiprocessor."""
    return Load(launch.programs, launch.warps, launch.registers, launch.shared)


def counts_of(launch: Launch) -> Counts:
    """Registers, spills and shared memory of a kernel, and the instructions of a warp."""
    path = [i for i in warp_path(launch.code, launch.passes) if i.predicate != "@!PT"]  # NOPs
    kinds = {
        name: sum(i.opcode.startswith(begin) for i in path for begin in begins)
        for name, begins in KINDS.items()
    }
    words = sum(i.kind == "LDGSTS" and "128" not in i.opcode and "64" not in i.opcode for i in path)
    return {
        "registers": launch.registers,
        "spills": launch.spills,
        "shared": launch.shared,
        "instructions": len(path),
        **kinds,
        "words": words,
    }


def named(launches: Sequence[Launch]) -> dict[str, Launch]:
    """The launches by op, number and kernel."""
    seen: Counter[str] = Counter()
    found = {}
    for launch in launches:
        found[f"{launch.op} {seen[launch.op]} {launch.kernel}"] = launch
        seen[launch.op] += 1
    return found


def excess(found: dict[str, Counts], allowed: dict[str, Counts]) -> list[str]:
    """Differences from the table: missing and new launches, and counts that have grown."""
    ops = {name.split()[0] for name in found}
    expected = {name for name in allowed if name.split()[0] in ops}
    lines = [f"{name}: expected in the table, got none" for name in found.keys() - expected]
    lines += [f"{name}: expected to be launched, got none" for name in expected - found.keys()]
    for name in found.keys() & expected:
        for column, tolerance in TOLERANCE.items():
            most, count = allowed[name][column], found[name][column]
            if count > most * (1 + tolerance):
                lines.append(f"{name}: {column}: expected at most {most}, got {count}")
    return sorted(lines)


def read_table(path: Path = TABLE) -> Table:
    """The committed table."""
    document = json.loads(path.read_text())
    return Table(document["triton"], document["launches"])


def write_table(table: Table, path: Path = TABLE) -> None:
    """Write the table, a line for each launch."""
    lines = (f"    {json.dumps(name)}: {json.dumps(counts)}" for name, counts in table.launches.items())
    head = f'{{\n  "triton": {json.dumps(table.triton)},\n  "launches": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n  }\n}\n")


def print_table(launches: dict[str, Launch]) -> None:
    """A row for each launch, then the sum of each kernel that was measured."""
    columns = ["registers", "spills", "instructions", *KINDS, "words"]
    print(
        f"{'launch':55}{'blocks':>10}{'warps':>6}{'programs':>9}{'occupancy':>10}{'waves':>6}"
        + "".join(f"{column:>{len(column) + 2}}" for column in columns)
        + f"{'cycles':>8}{'us':>7}"
    )
    total: Counter[str] = Counter()
    for name, launch in launches.items():
        load, counts = load_of(launch), counts_of(launch)
        us = microseconds(load, warp_path(launch.code, launch.passes))
        total[launch.kernel] += us
        print(
            f"{name:55}{launch.blocks:>10}{launch.warps:6}{load.programs:9}{load.resident:10}{load.waves:6}"
            + "".join(f"{counts[column]:{len(column) + 2}}" for column in columns)
            + f"{(us * 1000 - START) * CLOCK:8.0f}{us:7.1f}"
        )
    print(f"\n{'sum of':35}{'estimated us':>14}{'measured':>10}{'ratio':>7}")
    for kernel, measured in MEASURED.items():
        if kernel in total:
            print(f"{kernel:35}{total[kernel]:14.1f}{measured:10.1f}{total[kernel] / measured:7.2f}")


def main() -> None:
    summary = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.triton.step_counts", description=summary)
    parser.add_argument("ops", metavar="OP", nargs="*", help=f"of {', '.join(OPS)}; by default all of them")
    parser.add_argument(
        "--check", action="store_true", help="hold the launches to the table, and print no other"
    )
    parser.add_argument("--write", action="store_true", help="write the table, of all ops")
    given = parser.parse_args()
    if unknown := set(given.ops) - set(OPS):
        parser.error(f"OP: expected {', '.join(OPS)}, got {', '.join(sorted(unknown))}")
    if given.write and given.ops:
        parser.error(f"--write: expected no OP, got {', '.join(given.ops)}")
    launches = named(all_launches(given.ops or OPS))
    from triton import __version__ as version

    counts = {name: counts_of(launch) for name, launch in launches.items()}
    if given.write:
        write_table(Table(version, counts))
    if given.check:
        table = read_table()
        if table.triton != version:
            sys.exit(f"triton: expected {table.triton}, of which the table is, got {version}")
        sys.exit("\n".join(excess(counts, table.launches)) or 0)
    print_table(launches)


if __name__ == "__main__":
    main()
