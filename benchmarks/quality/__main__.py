"""``python -m benchmarks.quality``: train presets on data sets, evaluate, and write a file for each run.

A run is a preset on a data set with a seed. Training ends by itself, after all epochs or when the validation
bound has not improved for long enough, or when the time of ``--seconds`` is over. The same command, repeated,
resumes unfinished runs and skips finished ones. A finished run is evaluated with the parameters of its lowest
validation bound: bound of the test and validation sets, importance-sampled NLL of the test set. For an
unfinished one only the bound is computed, unless ``--evaluate-only`` is given.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import whole_number
from benchmarks.quality.jobs import STOPPED, Task, carry_out, in_processes, run_of
from benchmarks.quality.settings import parsed
from benchmarks.run import RESULTS
from dmm_fast.check import fail
from dmm_fast.data._frames import TABLES
from dmm_fast.data._load import READERS
from dmm_fast.training._interrupt import StopSignals
from dmm_fast.training._presets import PRESETS


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate all runs. Returns 0, 1 if one failed, or 130 after a signal."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        args.overrides = overrides(args)
        tasks = [Task(*task) for task in _tasks(args)]
        runs = [run_of(args, task) for task in tasks]
        for run in runs:
            run.check_settings()
    except (OSError, TypeError, ValueError, ImportError) as error:
        parser.error(str(error))
    if args.cuda and not torch.cuda.is_available():
        parser.error("--cuda: expected a CUDA device, got none")
    if args.list:
        for run in runs:
            print(run.standing())
        return 0
    torch.set_num_threads(args.threads)
    with StopSignals() as stop:
        if args.jobs > 1:
            return in_processes(args, tasks, stop)
        codes: list[int] = []
        # A signal during training is received there, and told by the code.
        while len(codes) < len(runs) and stop.received is None and STOPPED not in codes:
            codes.append(carry_out(args, runs[len(codes)], stop))
    return STOPPED if stop.received is not None else max(codes)


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The settings given in place of the preset's.

    Raises:
        ValueError: a setting has another form, or the length of training is given twice.
    """
    given = dict(map(parsed, args.set))
    if args.epochs is None:
        return given
    for name in ("num_epochs", "num_steps"):
        if name in given:
            fail("--epochs", f"to be absent beside --set {name}={given[name]}", str(args.epochs))
    return {"num_epochs": args.epochs, **given}


def sources(path: Path) -> list[Path]:
    """The data files in a folder; the path itself if it is a file, or a folder without data files."""
    found = (
        sorted(file for file in path.iterdir() if file.suffix in (*READERS, *TABLES)) if path.is_dir() else []
    )
    return found or [path]


def _tasks(args: argparse.Namespace) -> Iterator[tuple[Path, str, int]]:
    for source in (source for path in args.data for source in sources(path)):
        for preset in args.presets:
            for seed in args.seeds:
                yield source, preset, seed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    add, positive = parser.add_argument, whole_number(1)
    add(
        "--data",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        help="data files, folders of them, or a folder of MIDI files",
    )
    add("--presets", nargs="+", choices=tuple(PRESETS), default=["krishnan", "aug", "aug-nade"])
    add("--seeds", type=whole_number(0), nargs="+", default=[0], help="seeds of training")
    add("--out", type=Path, default=RESULTS / "quality", help="folder for the results files")
    add("--work", type=Path, default=Path("build/quality"), help="folder for the runs, one folder each")
    add(
        "--seconds",
        type=_positive,
        default=math.inf,
        help="wall time of each run's training in this call, and of its evaluation",
    )
    add("--epochs", type=positive, help="number of epochs in place of the preset's")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="settings of training in place of the preset's, as in TrainConfig",
    )
    add("--particles", type=positive, default=500, help="draws of the importance-sampled NLL")
    add("--threads", type=positive, default=1, help="CPU threads of each run")
    add("--jobs", type=positive, default=1, help="concurrent runs, each in a process of its own")
    add("--cuda", action="store_true", help="train and evaluate on the GPU")
    add(
        "--evaluate-only", action="store_true", help="train nothing; evaluate the best parameters of each run"
    )
    add("--list", action="store_true", help="print the state of each run and end")
    return parser


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")


if __name__ == "__main__":
    sys.exit(main())
