"""``python -m benchmarks.floor``: a lower bound of the time of one SVI step on this CPU.

It counts the multiply-adds of every linear map, the weights read by the scans, and the sequential steps, and
measures the rate of one large GEMM on this machine.
"""

import argparse
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS
from benchmarks.machine import cpu_count, processor
from dmm_fast.model import DMM

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Linear:
    """A linear map: ``fan_in x fan_out`` multiply-adds per row and as many weights.

    ``scanned``: it is part of the recurrence over time steps. ``needs_dx``: the backward pass computes the
    gradient of its input, which is not needed for the data.
    """

    op: str
    fan_in: int
    fan_out: int
    scanned: bool = False
    needs_dx: bool = True

    @property
    def weights(self) -> int:
        """The number of weights, which is also the number of multiply-adds per row."""
        return self.fan_in * self.fan_out

    def flops(self, rows: int) -> tuple[int, int]:
        """Operations of ``rows`` rows, forward and backward; a multiply-add counts as two."""
        forward = 2 * rows * self.weights
        return forward, forward * (2 if self.needs_dx else 1)


def linears(D: int, Z: int, E: int, G: int, H: int) -> list[Linear]:
    """The DMM's linear maps for ``input_dim, z_dim, emission_dim, transition_dim, rnn_dim``."""
    return [
        Linear("input projection", D, H, needs_dx=False),
        Linear("rnn_scan", H, H, scanned=True),
        Linear("combiner_scan", Z, H, scanned=True),
        Linear("combiner_scan", H, 2 * Z, scanned=True),  # loc and scale
        Linear("transition", Z, 2 * G),  # gate and proposed mean
        Linear("transition", G, Z),
        Linear("transition", G, Z),
        Linear("transition", Z, 2 * Z),  # the linear path and, of another input, the scale
        Linear("emission", Z, E),
        Linear("emission", E, E),
        Linear("emission", E, D),
    ]


def tutorial_sizes() -> tuple[int, int, int, int, int]:
    """The default sizes of the model, which are the tutorial's."""
    names = ("input_dim", "z_dim", "emission_dim", "transition_dim", "rnn_dim")
    parameters = inspect.signature(DMM).parameters
    D, Z, E, G, H = (int(parameters[name].default) for name in names)
    return D, Z, E, G, H


def table(maps: Sequence[Linear], B: int, T: int) -> str:
    """A table of GFLOP forward and backward by op, and of the weights read by the scans."""
    lines = [f"{'op':18s} {'forward':>9s} {'backward':>9s}  GFLOP   scans' weights, read, MB"]
    total = [0.0, 0.0]
    for op in dict.fromkeys(m.op for m in maps):
        mine = [m for m in maps if m.op == op]
        forward, backward = (sum(f) / 1e9 for f in zip(*(m.flops(B * T) for m in mine), strict=True))
        total = [total[0] + forward, total[1] + backward]
        # Forward and backward scan read their weights in every time step.
        scanned = 2 * T * FLOAT_BYTES * sum(m.weights for m in mine if m.scanned) / 1e6
        lines.append(f"{op:18s} {forward:9.3f} {backward:9.3f}  {f'{scanned:22.0f}' if scanned else ''}")
    lines.append(f"{'all':18s} {total[0]:9.3f} {total[1]:9.3f}  together {sum(total):.2f}")
    lines.append(f"exchanges: 2 scans, forward and backward, {T} steps each: {4 * T}")
    return "\n".join(line.rstrip() for line in lines)


def gemm_rate(threads: int, size: int = 1536, repeats: int = 7) -> float:
    """GFLOP/s of a large float32 GEMM with ``threads`` threads, the best of ``repeats``."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * size**3 / best / 1e9


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the floor in milliseconds. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--batch", type=int, default=TUTORIAL_BATCH)
    parser.add_argument("--steps", type=int, default=TUTORIAL_STEPS)
    args = parser.parse_args(argv)
    maps = linears(*tutorial_sizes())
    print(f"B={args.batch}, T={args.steps}, all full, float32\n{table(maps, args.batch, args.steps)}")
    flops = sum(sum(m.flops(args.batch * args.steps)) for m in maps)
    for threads in sorted({1, cpu_count()}):
        rate = gemm_rate(threads)
        print(f"{processor()}, threads: {threads}: {rate:.0f} GFLOP/s, floor {flops / rate / 1e6:.0f} ms")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
