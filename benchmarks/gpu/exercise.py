"""``python -m benchmarks.gpu.exercise``: every op, forward and backward, for a sanitizer to watch.

Sizes leave a part of a block over in every dimension; rows are ragged.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.errors import Sizes
from benchmarks.gpu.calls import Call, backends_of, by, every_op
from dmm_fast import native

SIZES = Sizes(B=3, T=5, D=7, Z=17, H=37, R=33, E=19)


def main(argv: Sequence[str] | None = None) -> int:
    """Call every op with each backend but the reference. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.exercise", description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(argv).device
    for op in every_op():
        for name in backends_of(op, device):
            if name != "reference":
                exercise(op, name, device)
    if device == "cuda" and native.cuda_architectures():
        rings = torch.randn(3, 8 * 5, device=device)
        torch.ops.dmm_fast.exchange_floor(rings, 7, 8, 64)
        torch.cuda.synchronize()
        print("exercised exchange_floor, cuda", flush=True)
    return 0


def exercise(op: str, name: str, device: str) -> None:
    """One call, and its gradients where it has any."""
    call = Call(op, SIZES, device, case="ragged")
    (call.forward if call.steps_in_place else call.both)(by(name, op))()
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"exercised {op}, {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
