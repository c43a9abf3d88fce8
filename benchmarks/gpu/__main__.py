"""``python -m benchmarks.gpu --out DIR``: build, test, check and measure on a machine with one NVIDIA GPU.

Each stage is a process of its own with a share of the time. What it has found by the time it fails, hangs or
is cut off stays, and the next stage begins. DIR/results.json is written again after each.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.runner import MACHINE, STAGES, Options, run_stages

BUDGET = 510.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages. Returns 0, or 1 when one of them failed."""
    parser = _parser()
    args = parser.parse_args(argv)
    for name in ("data", "after"):
        path = getattr(args, name)
        if path is not None and not Path(path).exists():
            parser.error(f"--{name}: expected a file that is there, got {path}")
    if args.after and args.only and MACHINE not in args.only:
        args.only.append(MACHINE)
    options = Options(
        out=Path(args.out),
        device=args.device,
        quick=args.quick,
        keep_build=args.keep_build,
        commit=args.commit,
        after=None if args.after is None else Path(args.after),
        data=None if args.data is None else Path(args.data),
    )
    results = run_stages(args.only or list(STAGES), args.budget, options)
    print(f"\nwritten: {options.results}")
    return 0 if all(stage["ok"] for stage in results["stages"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--out", required=True, help="folder for results.json and the logs; without an old one"
    )
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="these stages alone")
    parser.add_argument(
        "--after", help="results.json of a run of other stages, same commit and device: these are added"
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all stages together")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try the machinery")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the machinery")
    parser.add_argument(
        "--keep-build", action="store_true", help="take the library that is there if it loads"
    )
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--commit", help="what this tree is of, where git cannot tell")
    return parser


if __name__ == "__main__":
    sys.exit(main())
