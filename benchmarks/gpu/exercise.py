"""``python -m benchmarks.gpu.exercise``: every op of every backend, forward and backward, once.

For a sanitizer to watch, at sizes that leave a part of a block over in every dimension; and, with
``--tutorial``, to compile for the tutorial's sizes, on many processors with ``--processes``.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch

from benchmarks.errors import Sizes
from benchmarks.gpu.calls import SCANS, Call, backends_of, by, every_op
from benchmarks.gpu.record import whole_traceback

SMALL = Sizes(B=3, T=5, D=7, Z=17, H=37, R=33, E=19)

Job = tuple[str, str, Sizes]


def jobs(device: str, tutorial: bool) -> Iterator[Job]:
    """Each op of each backend with its sizes; the number of steps is no constant of a scan's kernel."""
    for op in every_op():
        at = (replace(Sizes(), T=3) if op in SCANS else Sizes()) if tutorial else SMALL
        yield from ((op, name, at) for name in backends_of(op, device) if name != "reference")


def exercise(device: str, job: Job) -> str | None:
    """One call, with its gradients where it has any. None, or its traceback."""
    op, name, sizes = job
    try:
        call = Call(op, sizes, device, case="ragged")
        (call.forward if call.steps_in_place else call.both)(by(name, op))()
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        return whole_traceback(error)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs. Returns 0, or 1 when one of them raised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.exercise", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tutorial", action="store_true", help="at the tutorial's sizes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--without", nargs="*", default=(), metavar="OP:BACKEND", help="kernels to leave alone"
    )
    args = parser.parse_args(argv)
    todo = [job for job in jobs(args.device, args.tutorial) if f"{job[0]}:{job[1]}" not in args.without]
    run, failed = partial(exercise, args.device), False
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        for job, error in zip(todo, (map if args.processes == 1 else pool.map)(run, todo), strict=True):
            failed |= error is not None
            told = f"FAILED {job}: {error}" if error else f"exercised {job[0]}, {job[1]}"
            print(told, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
