"""``python -m benchmarks.replay_overhead``: the host time of ``GraphedSVI`` before it launches a replay.

No GPU is needed: the replay of a stand-in graph only records the time. The inputs are on the CPU; the time of
copying them is reported separately, as on a GPU the host only launches the copies.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks.cases import QUICK_SIZES, TUTORIAL_BATCH, full_batch
from dmm_fast import DMM
from dmm_fast.infer import GraphedSVI
from dmm_fast.infer._kept import Kept
from dmm_fast.optim import PyroClippedAdam


class Overhead(NamedTuple):
    """Microseconds between the call of a step and its launch, and the part of them spent on copies."""

    total: float
    copies: float


class ClockGraphs:
    """A capturer whose replays only record the time of their launch."""

    def __init__(self) -> None:
        self.launched = 0.0

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Run ``step`` eagerly."""
        return step()

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Run ``step`` once; its replays only record the time."""
        losses = step()

        def replay() -> Tensor:
            self.launched = time.perf_counter()
            return losses

        return replay


def measure(steps: int, *, sizes: dict[str, Any], T: int, calls: int, rounds: int) -> list[Overhead]:
    """The median over ``calls`` calls in each round, for graphs of ``steps`` steps."""
    graphs, dmm = ClockGraphs(), DMM(**sizes)
    optim = PyroClippedAdam({"lr": 1e-3, "capturable": True})
    svi = GraphedSVI(dmm.model, dmm.guide, optim, Trace_ELBO(), capturer=graphs)
    full = full_batch(TUTORIAL_BATCH, T)
    # Graphs do not support packed sequences.
    reversed_in_time: Any = full.mini_batch.flip(1)
    batch = (*full._replace(mini_batch_reversed=reversed_in_time), 0.5)
    batches = [batch] * steps
    copying = 0.0
    fill = Kept.fill

    def timed_fill(self: Kept, *given: Any) -> None:
        nonlocal copying
        start = time.perf_counter()
        fill(self, *given)
        copying = time.perf_counter() - start

    def take() -> Overhead:
        start = time.perf_counter()
        if steps == 1:
            svi.step(*batch)
        else:
            svi.steps(batches)
        return Overhead(1e6 * (graphs.launched - start), 1e6 * copying)

    with patch.object(Kept, "fill", timed_fill):
        for _ in range(2):  # the warm-up and the capture
            take()
        medians = []
        for _ in range(rounds):
            taken = [take() for _ in range(calls)]
            medians.append(Overhead(*(statistics.median(values) for values in zip(*taken, strict=True))))
    return medians


def spread(values: Sequence[float]) -> str:
    """The median and the range of microseconds, as text."""
    return f"{statistics.median(values):.1f} us ({min(values):.1f} to {max(values):.1f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the medians and the ranges over the rounds. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_overhead", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4], help="steps in one graph")
    parser.add_argument("--time-steps", type=int, default=8, help="time steps of the mini-batches")
    parser.add_argument("--calls", type=int, default=1000, help="calls per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a small model, to try the command")
    args = parser.parse_args(argv)
    sizes = dict(QUICK_SIZES) if args.quick else {}
    for steps in args.steps:
        overheads = measure(steps, sizes=sizes, T=args.time_steps, calls=args.calls, rounds=args.rounds)
        checks = [each.total - each.copies for each in overheads]
        print(
            f"{steps} in a graph: {spread([each.total for each in overheads])} before the launch, "
            f"{spread(checks)} without copies"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
