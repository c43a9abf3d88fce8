"""The subcommands of ``dmm-fast``, called with their parsed arguments.

``info`` and ``download`` need no extras, so modules that need one are imported inside the functions that
use them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import dmm_fast
from dmm_fast import _extension
from dmm_fast import data as datasets
from dmm_fast._arguments import INFERENCE, NETWORKS
from dmm_fast._console import FIGURES, AroundTheBar, LogFile, complain
from dmm_fast._io import check_writable
from dmm_fast.check import fail
from dmm_fast.cuda import devices, paths, plan
from dmm_fast.cuda import measured as measured_plans
from dmm_fast.data import Dataset
from dmm_fast.data._frames import TABLES
from dmm_fast.infer import DataParallel, evaluate_elbo, evaluate_importance_nll
from dmm_fast.model import DMM
from dmm_fast.nn import Emitter, NadeEmitter
from dmm_fast.training import TrainConfig, TrainingInterrupted
from dmm_fast.training._config import FILE_FIELDS, TABLE_FIELDS
from dmm_fast.training._data import WIDTHS, check_data, load_data, widths
from dmm_fast.training._presets import PresetName, check_given, not_replaced, preset_settings
from dmm_fast.training._runlog import METRICS, logger

_JIT = (
    "--jit: expected to be absent: tracing unrolls the time steps of the first batch and silently "
    "truncates longer sequences; dmm-fast is fast without it"
)


def run_train(args: argparse.Namespace, ranks: DataParallel) -> int:
    """``dmm-fast train``, in one process or in several."""
    from dmm_fast.training import NonFiniteLossError, Trainer

    with ExitStack() as entered:
        with ranks.together():
            if args.jit:
                raise ValueError(_JIT)
            config = train_config(args)
            if args.log and ranks.is_main:
                _check_log(_log_path(args), config.out)
            entered.enter_context(_logging(args) if ranks.is_main else _silence())
        trainer = Trainer(config, ranks=ranks)
        try:
            trainer.run()
        except TrainingInterrupted as interruption:
            return complain(str(interruption), 130) if ranks.is_main else 130
        except NonFiniteLossError as error:
            return complain(str(error), 1) if ranks.is_main else 1
    return 0


def train_config(args: argparse.Namespace) -> TrainConfig:
    """The settings given by the options of ``dmm-fast train``."""
    given = vars(args)
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    settings: dict[str, Any] = {name: given[name] for name in names}
    for name in FILE_FIELDS:
        settings[name] = Path(given[name]) if given[name] else None
    settings["elbo"] = _objective(args)
    settings["preset"] = None if args.preset is None else PresetName(args.preset)
    if args.checkpoint_freq == 0 and args.out is not None:
        settings["checkpoint_freq"] = 1
    return TrainConfig(**settings)


def _objective(args: argparse.Namespace) -> str:
    """The setting ``elbo``, from the options of ``dmm-fast train``."""
    if not (args.tmc or args.tmcelbo):
        return str(args.elbo)
    wanted = "tmc" if args.tmc else "tmcelbo"
    if (args.tmc and args.tmcelbo) or args.elbo not in ("trace", wanted):
        other = "--tmcelbo" if args.tmc and args.tmcelbo else f"--elbo {args.elbo}"
        fail(f"--{wanted}", "one objective", f"{other} beside it")
    return wanted


def other_defaults(args: argparse.Namespace, given: Collection[str]) -> dict[str, Any]:
    """The settings of the run that ``--resume`` resumes, or else of ``--preset``, if there is either.

    Args:
        args: the options of ``dmm-fast train``.
        given: the names of those that were given. The settings that they replace are left out.

    Raises:
        ValueError: two of the options given exclude each other, or there is no run to resume.
    """
    options = {name: getattr(args, name) for name in given}
    if args.tmc or args.tmcelbo:
        options["elbo"] = _objective(args)
    check_given(options)
    if not args.resume:
        return {} if args.preset is None else preset_settings(args.preset, options)
    from dmm_fast.training._folder import LAST, load_last, settings_of

    if args.out is None:
        fail("--resume", "the folder of a run in --out", "none")
    path = args.out / LAST
    kept = settings_of(path, load_last(args.out)).saved()
    if args.preset is not None and kept["preset"] is None:
        fail("--preset", f"to be absent, as {path} is of a run without a preset", args.preset)
    if args.preset not in (None, kept["preset"]):
        fail("--preset", f"{kept['preset']}, as in {path}", args.preset)
    return not_replaced(kept, options)


def run_evaluate(args: argparse.Namespace, ranks: DataParallel) -> int:
    """``dmm-fast evaluate``, in one process or in several, which share the work."""
    with ranks.together():
        if args.cuda and ranks.size > 1:
            ranks.check_gpus()
        path, dmm, data = _trained(args)
    report: dict[str, Any] = {
        "checkpoint": str(path),
        "data": data.name,
        "num_particles": args.num_particles,
        "unit": "nats per time step",
        "splits": {},
    }
    for split in [args.split] if args.split else ["train", "valid", "test"]:
        sequences = getattr(data, split)
        torch.manual_seed(args.seed)
        elbo = evaluate_elbo(dmm, sequences, ranks=ranks)
        nll = evaluate_importance_nll(dmm, sequences, args.num_particles, ranks=ranks)
        report["splits"][split] = {
            "negative_elbo": elbo._asdict(),
            "importance_nll": nll._asdict(),
        }
    if not ranks.is_main:
        return 0
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{path} on {data.name}, {report['unit']}, lower is better")
    print(f"{'':8}" + "".join(f"{figure:>16}" for figure in ("(a) bound", "(b) NLL", "(c) bound", "(c) NLL")))
    for split, measured in report["splits"].items():
        bound, nll = measured["negative_elbo"], measured["importance_nll"]
        averages = ("total_over_total", "mean_of_averages")
        numbers = [figure[average] for average in averages for figure in (bound, nll)]
        print(f"{split:8}" + "".join(f"{number:16.4f}" for number in numbers))
    for line in FIGURES:
        print(line.format(particles=f"{args.num_particles} particles"))
    return 0


def run_generate(args: argparse.Namespace) -> int:
    """``dmm-fast generate``."""
    from dmm_fast.music._gallery import TRAINING_CURVE, draw_gallery

    path, dmm, data = _trained(args)
    if not isinstance(dmm.emitter, Emitter | NadeEmitter):
        expected = "a model of piano rolls, with Bernoulli or NADE emissions"
        fail("checkpoint", expected, f"{path} with other emissions")
    if dmm.control_dim or dmm.static_dim:
        fail("checkpoint", "a model without controls and covariates", f"{path}, which has some")
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    metrics = path.parent / METRICS
    written = draw_gallery(
        dmm,
        data.test,
        args.out,
        num=args.num,
        num_steps=args.num_steps,
        prefix_steps=args.prefix_steps,
        tempo=args.tempo,
        program=args.program,
        temperature=args.temperature,
        metrics=metrics,
    )
    for file in written:
        print(file)
    if args.out / TRAINING_CURVE not in written:
        complain(f"no training curve: {metrics} has no epoch yet")
    return 0


def run_info(args: argparse.Namespace) -> int:
    """``dmm-fast info``."""
    if args.plan is not None:
        facts = _plans(args.plan, args.measured, args.gpu)
    elif args.measured is not None or args.gpu is not None:
        fail("--measured" if args.gpu is None else "--gpu", "--plan B T H Z beside it", "none")
    else:
        facts = dmm_fast.info() | {"inference": ", ".join(INFERENCE), "rnn": ", ".join(NETWORKS)}
        facts |= {"scans": _scans()}
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            width = max([28, *(len(key) + 2 for key in value)])
            for key, item in value.items():
                print(f"  {key:{width}}{_readable(item)}")
        else:
            print(f"{name:30}{_readable(value)}")
    return 0


_SIZES = (20, 600, 100)  # B, H and Z of Pyro's tutorial


def _scans() -> dict[str, str]:
    """The kernels that compute the scans of Pyro's tutorial on the current GPU."""
    if not torch.cuda.is_available():
        return {"on a GPU": "no GPU is available; --plan B T H Z --gpu NAME plans for another one"}
    device = devices.cuda_device(torch.cuda.current_device())
    last_resort = {"last resort": paths.LAST_RESORT}
    if not _extension.cuda_architectures():
        why = _extension.missing or "the library was built without CUDA kernels"
        return dict.fromkeys(paths.SCANS, f"triton: because {why}") | last_resort
    return {scan: paths.path(scan, *_SIZES, device) for scan in paths.SCANS} | last_resort


def _plans(sizes: Sequence[int], measured: Path | None, gpu: str | None) -> dict[str, Any]:
    """The plans of the scans of a batch on a GPU: ``gpu``, or else the current one, or else an H100."""
    if _extension.missing is not None:
        fail("--plan", "the compiled library, which lists the kernels", _extension.missing)
    B, T, H, Z = sizes
    plan.use_measured(measured)
    measured_on = None if measured is None else measured_plans.read(measured).device
    if gpu is None and torch.cuda.is_available():
        device = devices.cuda_device(torch.cuda.current_device())
    else:
        device = devices.KNOWN[gpu or "h100"]
    plans: dict[str, plan.Plan | None] = {}
    for scan in paths.SCANS:
        try:
            plans[scan] = paths.plan_of(scan, B, H, Z, device)
        except ValueError:
            if measured is not None:
                raise
            plans[scan] = None
    there = {scan: each for scan, each in plans.items() if each is not None}
    return {
        "device": device.name if gpu or torch.cuda.is_available() else f"{device.name} (no GPU available)",
        "limits": device._asdict(),
        "plans": {scan: each and str(each) for scan, each in plans.items()},
        "paths": {scan: paths.path(scan, B, H, Z, device) for scan in plans},
        "chosen_by": {scan: _reason(each, device.name, measured_on) for scan, each in there.items()},
        "exchanges_one_after_another": 4 * T,
        "estimated_cycles_per_step": {scan: round(each.step_cycles) for scan, each in there.items()},
        "estimated_us_per_step": {
            scan: round(device.us(each.step_cycles), 2) for scan, each in there.items()
        },
    }


def _reason(chosen: plan.Plan, device: str, measured_on: str | None) -> str:
    if chosen.us_per_step is not None:
        return f"measurement on {device}, {chosen.us_per_step:.3g} us per step"
    if measured_on is None:
        return "estimate"
    why = "for other sizes" if measured_on == device else f"for {measured_on}, not for {device}"
    return f"estimate: the measured plans are {why}"


def run_download(args: argparse.Namespace) -> int:
    """``dmm-fast download``."""
    print(datasets.download(args.name, args.directory, progress=sys.stderr.isatty()))
    return 0


PARALLEL: dict[str, Callable[[argparse.Namespace, DataParallel], int]] = {
    "train": run_train,
    "evaluate": run_evaluate,
}
"""Commands that the processes started by ``torchrun`` carry out together."""

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "generate": run_generate,
    "info": run_info,
    "download": run_download,
}


def set_threads(number: int) -> None:
    """Set the number of CPU threads.

    Raises:
        ValueError: ``number`` is less than 1.
    """
    if number < 1:
        fail("--threads", "at least 1", str(number))
    torch.set_num_threads(number)


def _trained(args: argparse.Namespace) -> tuple[Path, DMM, Dataset]:
    """The path of the requested checkpoint, its model, and the data of ``--data`` or of its training run."""
    from dmm_fast.training import _checkpoint as ckpt
    from dmm_fast.training._folder import BEST, LAST, load_or_advise, settings_of

    if args.cuda and not torch.cuda.is_available():
        fail("--cuda", "a CUDA device", "torch.cuda.is_available() is False")
    path = args.checkpoint
    if path.is_dir():
        path = path / BEST if (path / BEST).exists() else path / LAST
    saved = load_or_advise(path)
    config = settings_of(path, saved)
    dmm = ckpt.load_dmm(path, cuda=args.cuda)
    if args.data is not None:
        config = _with_data(config, args.data)
    try:
        data = load_data(config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; if the file was moved, give its new path with --data") from error
    check_data(data, config.emission)
    wanted = (dmm.input_dim, dmm.control_dim, dmm.static_dim)
    for what, width, got in zip(WIDTHS, wanted, widths(data.test), strict=True):
        if width != got:
            fail("--data", f"{width} {what}, as {path} has", str(got))
    return path, dmm, data.to("cuda" if args.cuda else "cpu")


def _with_data(config: TrainConfig, data: str) -> TrainConfig:
    """The settings with other data; the run's column names are kept if the new data are a table too."""
    is_table = Path(data).suffix.lower() in TABLES
    columns: dict[str, Any] = {} if is_table else dict.fromkeys(TABLE_FIELDS)
    return dataclasses.replace(config, data=data, num_sequences=None, **columns)


@contextmanager
def _silence() -> Iterator[None]:
    """Discard the log lines of training, which are those of rank 0 once more."""
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _logging(args: argparse.Namespace) -> Iterator[None]:
    """Send the log lines of training to standard output and to the log file, if there is one."""
    handlers: list[logging.Handler] = [AroundTheBar()]
    if args.log:
        handlers.append(LogFile(_log_path(args), append=args.resume))
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def _log_path(args: argparse.Namespace) -> Path:
    # pathlib keeps an absolute --log as it is, even under --out.
    return Path(args.log) if args.out is None else args.out / args.log


def _check_log(path: Path, out: Path | None) -> None:
    """Check that ``path`` can be appended to, without changing it."""
    if path.exists():
        # An existing path may be a device in a folder that is not writable, so it is opened itself.
        path.open("a").close()
    else:
        check_writable("--log", path, will_exist=out)


def _readable(value: Any) -> str:
    """A value as text for the terminal: yes, no, none, or ``cpu cpp, cuda triton``."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
