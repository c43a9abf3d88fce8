"""Throughput of SVI steps in one process and in several: ``python -m benchmarks.processes``.

Each round times the same steps, at the tutorial's sizes and with the same mini-batches, in one process with
one thread, in one process with N threads, and in N processes with one thread each, started by ``torchrun``.
Rounds are interleaved; the results are the median times and the median ratios within a round.
``tests/infer/test_data_parallel.py`` tests that several processes compute the same as one; here only the
losses of the last step are compared.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from pyro.infer import Trace_ELBO

from dmm_fast import DMM, GraphedSVI, PyroClippedAdam
from dmm_fast.infer import DataParallel

D, T = 88, 129


class Timing(NamedTuple):
    """The median seconds of a step, and the loss of the last step."""

    seconds: float
    loss: float


def timed_steps(rows: int, steps: int, threads: int) -> Timing:
    """Time steps on a mini-batch of ``rows`` sequences, in this process and its peers."""
    torch.set_num_threads(threads)
    with DataParallel() as ranks:
        torch.manual_seed(0)
        x = torch.bernoulli(torch.full((rows, T, D), 0.05))
        batch = (x, None, torch.ones(rows, T), torch.full((rows,), T))
        dmm = DMM(D)
        optimizer = PyroClippedAdam({"lr": 3e-4})
        svi = GraphedSVI(dmm.model, dmm.guide, optimizer, ranks.elbo(Trace_ELBO()))
        svi.step(*batch, 0.5)
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            loss = float(svi.step(*batch, 0.5))
            seconds.append(time.perf_counter() - start)
        return Timing(statistics.median(seconds), loss)


def in_processes(rows: int, steps: int, threads: int, processes: int) -> Timing:
    """Time steps in new processes; rank 0 reports."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "timing"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        worker = ["-m", "benchmarks.processes", "--worker", str(report), "--rows", str(rows)]
        command = [sys.executable, *launch, *worker, "--steps", str(steps), "--threads", str(threads)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        seconds, loss = report.read_text().split()
    return Timing(float(seconds), float(loss))


def compare(rows: int, steps: int, rounds: int, processes: int) -> None:
    """Print the median step of each configuration, and its ratios to the first, round by round."""
    ways = {
        "1 process of 1 thread": (1, 1),
        f"1 process of {processes} threads": (processes, 1),
        f"{processes} processes of 1 thread": (1, processes),
    }
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    print(f"load {os.getloadavg()[0]:.2f}, B={rows}, T={T}, {rounds} rounds of {steps} steps", flush=True)
    for _ in range(rounds):
        for name, (threads, number) in ways.items():
            timings[name].append(in_processes(rows, steps, threads, number))
    first = next(iter(timings.values()))
    for name, each in timings.items():
        ratios = [one.seconds / other.seconds for one, other in zip(first, each, strict=True)]
        off = max(abs(other.loss / one.loss - 1) for one, other in zip(first, each, strict=True))
        print(
            f"{name}: {1e3 * statistics.median(t.seconds for t in each):.1f} ms, "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times the first, "
            f"losses within {off:.0e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=40, help="sequences in a mini-batch")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds")
    parser.add_argument("--processes", type=int, default=2, help="processes, and threads, compared with one")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is None:
        compare(args.rows, args.steps, args.rounds, args.processes)
        return
    timing = timed_steps(args.rows, args.steps, args.threads)
    if os.environ.get("RANK", "0") == "0":
        args.worker.write_text(f"{timing.seconds} {timing.loss}")


if __name__ == "__main__":
    main()
