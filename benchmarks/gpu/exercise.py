"""``python -m benchmarks.gpu.exercise``: every op of every backend, forward and backward, once.

For a sanitizer to watch, at sizes that leave a part of a block over in every dimension.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.draws import Sizes
from benchmarks.gpu.calls import SCANS, Call, backends_of, by, every_op
from benchmarks.gpu.record import whole_traceback

SMALL = Sizes(B=3, T=5, D=7, Z=17, H=37, R=33, G=29, E=19)

Job = tuple[str, str, Sizes]


def jobs(device: str, tutorial: bool) -> Iterator[Job]:
    """Each op of each backend with its sizes; the number of steps is no constant of a scan's kernel."""
    for op in every_op():
        at = (replace(Sizes(), T=3) if op in SCANS else Sizes()) if tutorial else SMALL
        yield from ((op, name, at) for name in backends_of(op, device) if name != "reference")


def exercise(device: str, job: Job) -> str | None:
    """Call the op, with its gradients where it has any. Returns None, or the traceback."""
    op, name, sizes = job
    try:
        call = Call(op, replace(sizes, lengths="ragged"), device)
        (call.forward if call.steps_in_place else call.both)(by(name, op))()
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        return f"{op}, {name}: {whole_traceback(error)}"
    print(f"exercised {op}, {name}", flush=True)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs. Returns 0, or 1 when one of them raised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.exercise", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args(argv)
    failed = [error for job in jobs(args.device, False) if (error := exercise(args.device, job))]
    print("\n".join(f"FAILED {error}" for error in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
