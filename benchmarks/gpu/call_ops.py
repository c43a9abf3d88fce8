"""``python -m benchmarks.gpu.call_ops``: call every op of every backend once, forward and backward.

This is the program that compute-sanitizer runs. Every size leaves a partial block at the end.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.draws import Sizes
from benchmarks.gpu.calls import Call, backends_of, by, every_op
from benchmarks.gpu.pool import Job, attempt
from dmm_fast.ops.schema import OPS

SMALL = Sizes(B=3, T=5, D=7, Z=17, H=37, R=33, G=29, E=19)


def op_jobs(device: str, sizes: Sizes) -> Iterator[Job]:
    """Jobs that call each op of each backend, ops of many arguments, which have the most kernels, first.

    A job is named ``op, backend``.
    """
    for op in sorted(every_op(), key=_arguments, reverse=True):
        for name in backends_of(op, device):
            if name != "reference":
                yield Job(f"{op}, {name}", partial(call_op, device, op, name, sizes))


def _arguments(op: str) -> int:
    return len(OPS[op].forward.flat_arguments) if op in OPS else 0


def call_op(device: str, op: str, name: str, sizes: Sizes) -> None:
    """Call an op by a backend on a ragged batch, with its backward pass if there is one."""
    call = Call(op, replace(sizes, lengths="ragged"), device)
    (call.both if call.wanted else call.forward)(by(name, op))()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs. Returns 0, or 1 if one of them raised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.call_ops", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args(argv)
    ended = [attempt(args.device, job) for job in op_jobs(args.device, SMALL)]
    failed = [each.error for each in ended if each.error]
    print("\n".join(f"FAILED {error}" for error in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
