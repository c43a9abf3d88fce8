"""``python -m benchmarks.gpu --out DIR --preset first``: check and measure on a machine with one NVIDIA GPU.

``--preset first`` checks correctness and profiles a step, ``--preset second`` repeats the measurements after
fixes; each takes about 300 seconds. ``--smoke`` checks each CUDA kernel, in about 20 seconds. ``--only`` runs
single stages. If a stage fails, hangs or runs out of time, its findings so far are kept, and the next stage
begins. DIR/results.json is rewritten after each unit.
"""

import argparse
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.runner import BUDGET, PRESETS, STAGES, Options, run_stages
from benchmarks.gpu.triton_cache import ARCHIVE
from benchmarks.report.smoke import summary

# Factor on the time budget of each stage in a dry run; the total budget still applies.
DRY_RUN_PATIENCE = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages. Returns 0, or 1 if one of them failed, or 130 after an interrupt."""
    begun, parser = time.monotonic(), _parser()
    args = parser.parse_args(argv)
    fault = _fault(args)
    if fault:
        parser.error(fault)
    wanted = {"machine", *(args.only or ["smoke"])}
    # Stages run in the order of the table, as later stages depend on earlier ones.
    stages = PRESETS.get(args.preset) or {name: STAGES[name][1] for name in STAGES if name in wanted}
    if args.quick:
        # A dry run tests whether every stage works; its machine may be much slower.
        stages = {name: DRY_RUN_PATIENCE * seconds for name, seconds in stages.items()}
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
    if args.device == "cuda":
        _build_floor()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # also ends the workers
    try:
        results = run_stages(args.budget - (time.monotonic() - begun), options)
    except KeyboardInterrupt:
        print(f"interrupted; the findings so far are in {args.out}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(summary(results))
    return 0 if all(stage["ok"] for stage in results["stages"]) else 1


def _build_floor() -> None:
    """Build the kernel of the exchange floors if necessary; if that fails, print why they are skipped."""
    from benchmarks import exchange_floor

    if why := exchange_floor.ensure():
        print(f"The floors of the scans' exchanges are skipped: {why}.", flush=True)


def _fault(args: argparse.Namespace) -> str | None:
    """The first error in the arguments, or None; checked before anything is written."""
    out, data, cache = (Path(path) if path else None for path in (args.out, args.data, args.triton_cache))
    if out is None or (out.exists() and not out.is_dir()) or (out / "rows.jsonl").exists():
        return f"--out: expected a folder without earlier results, got {args.out!r}"
    if data is not None and not (data.is_file() or (data / "JSB_Chorales.mat").is_file()):
        return f"--data: expected a file, or a folder holding JSB_Chorales.mat, got {args.data}"
    if cache is not None and not (cache.is_file() and tarfile.is_tarfile(cache)):
        return f"--triton-cache: expected the {ARCHIVE} of an earlier run, got {args.triton_cache}"
    if not 0 < args.budget < 1e6:
        return f"--budget: expected a number of seconds, got {args.budget}"
    if find_spec("pyro") is None:
        return "pyro: expected it to be installed, or the run.sh of a kit, which contains it"
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        return f"--device: expected a GPU that torch sees, got torch {torch.__version__} without one"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", required=True, help="folder for results and logs; must hold no earlier run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--preset", choices=list(PRESETS), help="a complete run")
    what.add_argument(
        "--only", nargs="+", choices=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)}"
    )
    what.add_argument("--smoke", action="store_true", help="only compare each CUDA kernel with float64")
    parser.add_argument("--budget", type=float, default=BUDGET, help="time limit in seconds (default: 300)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a dry run")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a dry run")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--commit", help="the commit of this tree, if it is not a git checkout")
    parser.add_argument("--triton-cache", help=f"{ARCHIVE} of an earlier run, to reuse its compiled kernels")
    parser.add_argument("--plugin", help="a module whose install() is called first in each worker, for tests")
    return parser


if __name__ == "__main__":
    sys.exit(main())
