"""``python -m benchmarks.replay_overhead``: what ``GraphedSVI`` does on the host before it launches a replay.

No GPU is needed: a graph here replays nothing and reads the clock instead. The inputs are on the CPU; copying
them is told apart, as on a GPU the host only launches the copies.
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
    """Microseconds between the call of a step and its launch, and how many of them are copies of inputs."""

    total: float
    copies: float


class ClockGraphs:
    """A capturer whose replays take down when they would be launched, and do nothing."""

    def __init__(self) -> None:
        self.launched = 0.0

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Run ``step`` as it comes."""
        return step()

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Take ``step`` once; its replays only read the clock."""
        losses = step()

        def replay() -> Tensor:
            self.launched = time.perf_counter()
            return losses

        return replay


def measure(steps: int, *, sizes: dict[str, Any], T: int, calls: int, rounds: int) -> list[Overhead]:
    """The median of ``calls`` calls in each of some rounds, for ``steps`` steps in one graph."""
    graphs, dmm = ClockGraphs(), DMM(**sizes)
    optim = PyroClippedAdam({"lr": 1e-3, "capturable": True})
    svi = GraphedSVI(dmm.model, dmm.guide, optim, Trace_ELBO(), capturer=graphs)
    full = full_batch(TUTORIAL_BATCH, T)
    # A graph takes no packed sequences.
    reversed_in_time: Any = full.mini_batch.flip(1)
    batch = (*full._replace(mini_batch_reversed=reversed_in_time), 0.5)
    batches = [batch] * steps
    copying = 0.0
    fill = Kept.fill

    def clocked_fill(self: Kept, *given: Any) -> None:
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

    with patch.object(Kept, "fill", clocked_fill):
        for _ in range(2):  # the warm-up and the capture
            take()
        told = []
        for _ in range(rounds):
            taken = [take() for _ in range(calls)]
            told.append(Overhead(*(statistics.median(values) for values in zip(*taken, strict=True))))
    return told


def spread(values: Sequence[float]) -> str:
    """The median and the range of some microseconds."""
    return f"{statistics.median(values):.1f} us ({min(values):.1f} to {max(values):.1f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the medians and the ranges over the rounds. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_overhead", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4], help="steps in one graph")
    parser.add_argument("--time-steps", type=int, default=8, help="of the mini-batches")
    parser.add_argument("--calls", type=int, default=1000, help="in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a small model: for trying the command")
    args = parser.parse_args(argv)
    sizes = dict(QUICK_SIZES) if args.quick else {}
    for steps in args.steps:
        told = measure(steps, sizes=sizes, T=args.time_steps, calls=args.calls, rounds=args.rounds)
        checks = [each.total - each.copies for each in told]
        print(
            f"{steps} in a graph: {spread([each.total for each in told])} before the launch, "
            f"{spread(checks)} without copies"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
