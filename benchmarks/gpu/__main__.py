"""``python -m benchmarks.gpu --out DIR --preset first``: check and measure on a machine with one NVIDIA GPU.

``--preset first`` says what is right and where the time goes, ``--preset second`` measures again after
mending; each takes at most 300 seconds. ``--smoke`` checks each CUDA kernel, in 20. ``--only`` runs single
stages. A stage that fails, hangs or is cut off keeps what it has found, and the next begins. DIR/results.json
is written again after each unit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.runner import BUDGET, PRESETS, STAGES, TRITON_CACHE, Options, run_stages
from benchmarks.report.smoke import last_words


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages. Returns 0, or 1 when one of them failed."""
    parser = _parser()
    args = parser.parse_args(argv)
    for name in ("data", "triton_cache"):
        path = getattr(args, name)
        if path is not None and not Path(path).exists():
            parser.error(f"--{name.replace('_', '-')}: expected a file that is there, got {path}")
    wanted = {"machine", *(args.only or ["smoke"])}
    # The order of the stages is always that of the table: later ones build on earlier ones.
    stages = PRESETS.get(args.preset) or {name: STAGES[name][1] for name in STAGES if name in wanted}
    options = Options(
        out=Path(args.out),
        stages=stages,
        suite=f"gpu-{args.preset}" if args.preset else "gpu",
        device=args.device,
        quick=args.quick,
        commit=args.commit,
        data=args.data and str(Path(args.data).resolve()),
        plugin=args.plugin,
        triton_cache=args.triton_cache,
    )
    results = run_stages(args.budget, options)
    print(last_words(results))
    return 0 if all(stage["ok"] for stage in results["stages"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", required=True, help="folder for results.json and logs, without old ones")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--preset", choices=list(PRESETS), help="a whole run")
    what.add_argument("--only", nargs="+", choices=list(STAGES), help="these stages alone")
    what.add_argument("--smoke", action="store_true", help="each CUDA kernel against float64, and no more")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all stages together")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry run")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a dry run")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--commit", help="the commit of this tree, where git cannot tell")
    parser.add_argument("--triton-cache", help=f"{TRITON_CACHE} of an earlier run, to compile nothing twice")
    parser.add_argument("--plugin", help="a module whose install() runs first in every process, for tests")
    return parser


if __name__ == "__main__":
    sys.exit(main())
