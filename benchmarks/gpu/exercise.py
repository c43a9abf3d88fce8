"""``python -m benchmarks.gpu.exercise``: every op of every backend, forward and backward, once.

For a sanitizer to watch, at sizes that leave a part of a block over in every dimension; and, with ``--all``,
to compile what will be timed. ``--part K N`` takes every N-th job from the K-th on.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.errors import Sizes
from benchmarks.gpu.calls import Call, backends_of, by, every_op
from benchmarks.gpu.record import last_lines
from benchmarks.gpu.sizes import ALONG, BATCHES, SCANS
from dmm_fast import native

SMALL = Sizes(B=3, T=5, D=7, Z=17, H=37, R=33, E=19)

Job = tuple[str, Sizes]


def jobs(everything: bool) -> list[Job]:
    """Each op at the sizes to run it at."""
    small = [(op, SMALL) for op in every_op()]
    if not everything:
        return small
    rowwise = [(op, replace(Sizes(), B=B)) for B in BATCHES for op in every_op() if op not in SCANS]
    scans = [(op, replace(Sizes(), H=H, T=3)) for H in (Sizes().H, *ALONG["H"]) for op in SCANS]
    return [*small, *rowwise, *scans]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs. Returns 0, or 1 when one of them raised."""
    args = _parser().parse_args(argv)
    part, parts = args.part
    failed = False
    for op, sizes in jobs(args.all)[part::parts]:
        for name in backends_of(op, args.device):
            if name != "reference":
                failed |= not exercise(op, name, args.device, sizes)
    if args.device == "cuda" and native.cuda_architectures() and part == 0:
        torch.ops.dmm_fast.exchange_floor(torch.randn(3, 8 * 5, device="cuda"), 7, 8, 64)
        torch.cuda.synchronize()
        print("exercised exchange_floor, cuda", flush=True)
    return 1 if failed else 0


def exercise(op: str, name: str, device: str, sizes: Sizes) -> bool:
    """One call, with its gradients where it has any; whether it went well."""
    try:
        call = Call(op, sizes, device, case="ragged")
        (call.forward if call.steps_in_place else call.both)(by(name, op))()
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        print(f"FAILED {op}, {name}, {sizes}: {last_lines(error)}", flush=True)
        return False
    print(f"exercised {op}, {name}", flush=True)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.exercise", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--all", action="store_true", help="the sizes that are timed, too")
    parser.add_argument("--part", nargs=2, type=int, default=(0, 1), metavar=("K", "N"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
