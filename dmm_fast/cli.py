"""The command ``dmm-fast``: train, evaluate, generate, info, download."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dmm_fast import BackendError, __version__
from dmm_fast._console import FIGURES, complain, discard
from dmm_fast.cuda.devices import KNOWN
from dmm_fast.training._presets import PRESETS

EXTRAS = ("matplotlib", "mido", "safetensors", "scipy", "tensorboard", "tqdm")
"""Packages that ``pip install 'dmm-fast[cli]'`` adds."""

EMISSIONS = ("bernoulli", "gaussian", "poisson", "negative_binomial", "categorical", "nade")
"""Choices of ``--emission``, repeated here because the module that defines them is slow to import."""

_BROKEN_PIPE = 141  # the exit code that a shell reports for a program ended by SIGPIPE
_INTERRUPTED = 130  # the exit code that a shell reports for a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: success. 1: training diverged, or another process of the run has ended. 2: invalid input, reported
    in one line on standard error. 130: interrupted. 141: the reader closed the output pipe.

    Args:
        arguments: the command line; by default that of the process.
    """
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        discard(sys.stdout)
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return complain("interrupted", _INTERRUPTED)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in str(error) and "dmm-fast[data]" in str(error):
            return complain(str(error))
        if module not in EXTRAS:
            raise
        return complain(f"{module} is not installed: pip install 'dmm-fast[cli]'")
    except (ValueError, OSError, BackendError) as error:
        return complain(" ".join(str(error).split()))


def build_parser(train_defaults: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    Args:
        train_defaults: settings that replace the defaults of ``train``.
    """
    parser = _Parser(prog="dmm-fast", description="Deep Markov Models: train, evaluate, generate.")
    parser.add_argument("--version", action="version", version=f"dmm-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train", help="train a model", formatter_class=_Figures, epilog=_presets_listed()
    )
    _add_example_flags(train)
    _add_train_flags(train)
    train.set_defaults(**(train_defaults or {}))
    figures = "\n".join(line.format(particles="--num-particles draws") for line in FIGURES)
    evaluate = commands.add_parser(
        "evaluate",
        help="compute the ELBO and the likelihood of data under a trained model",
        formatter_class=_Figures,
        description=figures,
    )
    _add_evaluate(evaluate)
    _add_generate(commands.add_parser("generate", help="write piano rolls and MIDI of samples", **_STYLE))
    info = commands.add_parser("info", help="show versions, devices and backends", **_STYLE)
    _add_info(info)
    download = commands.add_parser("download", help="download a data set", **_STYLE)
    download.add_argument("name", help="jsb_chorales, piano_midi, muse_data or nottingham (Pyro's copies)")
    download.add_argument("directory", type=Path, nargs="?", default=Path("."), help="destination folder")
    return parser


class _Help(argparse.HelpFormatter):
    """Shows the default of an option, unless the option is a flag or its default is None or empty."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        takes_value = action.nargs != 0
        says_something = action.default not in (None, "", argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if takes_value and says_something else text


class _Figures(_Help, argparse.RawDescriptionHelpFormatter):
    """Does not wrap the lines of the description and of the epilog."""


_STYLE: dict[str, Any] = {"formatter_class": _Help}


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _run(arguments: Sequence[str]) -> int:
    args = build_parser().parse_args(arguments)
    # Imported here so that `dmm-fast --help` needs neither the extras nor the time to import them.
    from dmm_fast import _commands

    if getattr(args, "threads", None) is not None:
        _commands.set_threads(args.threads)
    if args.command in _commands.COMMANDS:
        return _commands.COMMANDS[args.command](args)
    from dmm_fast.infer import DataParallel, RankLostError

    try:
        with DataParallel() as ranks:
            if args.command == "train":
                # The settings of the run to resume, or of the preset, become the defaults. The options given
                # are compared with those of the run later.
                with ranks.together():
                    defaults = _commands.other_defaults(args, _given(arguments))
                args = build_parser(defaults).parse_args(arguments)
            return _commands.PARALLEL[args.command](args, ranks)
    except RankLostError as error:
        return 1 if error.is_reported else complain(f"rank {os.environ.get('RANK', '0')}: {error}", 1)


def _given(arguments: Sequence[str]) -> set[str]:
    """The names of the settings of ``train`` that ``arguments`` give."""
    absent = object()
    names = vars(build_parser().parse_args(arguments))
    parsed = vars(build_parser(dict.fromkeys(names, absent)).parse_args(arguments))
    return {name for name, value in parsed.items() if value is not absent}


def _presets_listed() -> str:
    """The options that each preset stands for, one preset a paragraph."""
    paragraphs, width = ["presets:"], max(map(len, PRESETS)) + 4
    for name, settings in PRESETS.items():
        options = [
            f"--{setting.replace('_', '-')}" + ("" if value is True else f" {value}")
            for setting, value in settings.items()
        ]
        paragraphs += textwrap.wrap(
            " ".join(options) or "the defaults",
            width=79,
            initial_indent=f"  {name}".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
    return "\n".join(paragraphs)


def _add_example_flags(train: argparse.ArgumentParser) -> None:
    """Add the options of Pyro's ``examples/dmm.py``, with the same names, short names and defaults."""
    add = train.add_argument_group("as in Pyro's examples/dmm.py").add_argument
    add("-n", "--num-epochs", type=int, default=5000, help="number of epochs of the whole run")
    add("-lr", "--learning-rate", type=float, default=0.0003, help="learning rate of ClippedAdam")
    add("-b1", "--beta1", type=float, default=0.96, help="decay of ClippedAdam's first moments")
    add("-b2", "--beta2", type=float, default=0.999, help="decay of ClippedAdam's second moments")
    add("-cn", "--clip-norm", type=float, default=10.0, help="bound to which gradient elements are clipped")
    add("-lrd", "--lr-decay", type=float, default=0.99996, help="factor on the learning rate at each step")
    add("-wd", "--weight-decay", type=float, default=2.0, help="weight of the L2 penalty")
    add("-mbs", "--mini-batch-size", type=int, default=20, help="number of sequences per step")
    add("-ae", "--annealing-epochs", type=int, default=1000, help="epochs until the KL weight reaches 1")
    add("-maf", "--minimum-annealing-factor", type=float, default=0.2, help="KL weight at the start")
    add("-rdr", "--rnn-dropout-rate", type=float, default=0.1, help="dropout between layers of the RNN")
    add("-iafs", "--num-iafs", type=int, default=0, help="number of normalizing flows in the guide")
    add("-id", "--iaf-dim", type=int, default=100, help="number of hidden units of a flow")
    add("-cf", "--checkpoint-freq", type=int, default=0, help="number of epochs between checkpoints; 0: 1 "
        "with --out, else a checkpoint at the end only")  # fmt: skip
    add("-lopt", "--load-opt", type=str, default="", help="safetensors file of the initial optimizer state")
    add("-lmod", "--load-model", type=str, default="", help="load the model from this safetensors file; the "
        "error for a file of torch.save explains how to convert it")  # fmt: skip
    add("-sopt", "--save-opt", type=str, default="", help="write the last optimizer state to this file")
    add("-smod", "--save-model", type=str, default="", help="write the last model to this file; the "
        "best one is in --out")  # fmt: skip
    add("--cuda", action="store_true", help="train on the GPU")
    add("--jit", action="store_true", help="rejected: not supported and not needed here")
    add("--tmc", action="store_true", help="use tensor Monte Carlo instead of an ELBO")
    add("--tmcelbo", action="store_true", help="use an ELBO with enumerated samples")
    add("--tmc-num-samples", type=int, default=10, help="samples per site for --tmc and --tmcelbo")
    add("-l", "--log", type=str, default="dmm.log", help="log file, in the folder --out if given; an empty "
        "name: no log file")  # fmt: skip


def _add_train_flags(train: argparse.ArgumentParser) -> None:
    add = train.add_argument_group("the run").add_argument
    add("--data", default="chorales", help="a .csv, .parquet, .npz, .npy, .mat or .pickle file, a folder of "
        "MIDI files, or the built-in chorales")  # fmt: skip
    add("--preset", choices=tuple(PRESETS), help="settings to start from, listed below; options that are "
        "given replace those of the preset")  # fmt: skip
    add("--num-sequences", type=int, help="number of training sequences of the built-in chorales")
    add("--seed", type=_seed, default=0, help="seed of the random generators")
    add("--num-steps", type=int, help="the length of the run as a number of steps, in place of --num-epochs, "
        "rounded up to whole epochs")  # fmt: skip
    add("--segment-steps", type=int, help="train on segments of at most this many time steps, each a "
        "sequence of its own")  # fmt: skip
    add("--out", type=Path, help="folder for checkpoints, metrics and TensorBoard")
    add("--resume", action="store_true", help="resume from the last checkpoint in --out")
    add("--eval-frequency", type=int, default=50, help="number of epochs between evaluations on validation "
        "and test data; the last epoch is always evaluated; 0: never evaluate")  # fmt: skip
    add("--evaluation-particles", type=int, default=1, help="draws of the latents of each sequence in these "
        "evaluations")  # fmt: skip
    add("--patience", type=int, default=0, help="stop after this many evaluations without a better bound on "
        "the validation data; 0: never")  # fmt: skip
    add("--no-tensorboard", dest="tensorboard", action="store_false", help="write no TensorBoard scalars")
    add("--no-progress", dest="progress", action="store_false", help="show no progress bar")
    add("--threads", type=int, help="number of CPU threads; a resumed run gives the same bits only with the "
        "same number")  # fmt: skip
    add = train.add_argument_group("your own data").add_argument
    add("--id-column", metavar="NAME", help="for a table: the column that identifies a row's sequence")
    add("--time-column", metavar="NAME", help="for a table: the column of time steps, integers or dates")
    add("--freq", help="for a table with dates: the length of a time step, such as D, h or 15min")
    add("--columns", metavar="NAMES", help="for a table: the columns of values, separated by commas; by "
        "default all others")  # fmt: skip
    add("--control-columns", metavar="NAMES", help="for a table: the columns of controls of each step")
    add("--static-columns", metavar="NAMES", help="for a table: the columns of covariates of each sequence")
    add("--split-seed", type=_seed, default=0, help="seed of the division into training, validation and "
        "test, for data that come undivided")  # fmt: skip
    add = train.add_argument_group("the objective and the optimizer").add_argument
    add("--elbo", choices=("trace", "mean_field", "importance"), default="trace", help="sampled or analytic "
        "KL, or the tighter bound of weighted draws")  # fmt: skip
    add("--num-particles", type=int, default=1, help="draws of each sequence in a step")
    add("--gradient", choices=("total", "path", "dreg"), default="total", help="estimator of the gradient: "
        "path with trace or importance, dreg with importance")  # fmt: skip
    add("--lr-schedule", choices=("constant", "cosine"), default="constant", help="schedule of the learning "
        "rate, in addition to --lr-decay")  # fmt: skip
    add("--warmup-steps", type=int, default=0, help="steps over which the learning rate rises linearly")
    add("--annealing-steps", type=int, help="steps until the KL weight reaches 1, in place of "
        "--annealing-epochs")  # fmt: skip
    add("--guide-weight-decay", type=float, help="weight of the L2 penalty on the guide's parameters; by "
        "default that of --weight-decay")  # fmt: skip
    add("--average-decay", type=float, default=0.0, help="decay of a moving average of the parameters, such "
        "as 0.999; the average is evaluated and saved as the model; 0: no average")  # fmt: skip
    add("--recover", action="store_true", help="when a loss is not finite, return to the last good state "
        "and halve the learning rate")  # fmt: skip
    add = train.add_argument_group("the guide").add_argument
    guides = ("st-r", "st-l", "st-lr", "mf-r", "mf-l", "mf-lr")
    add("--inference", choices=guides, default="st-r", help="structured (st) or mean-field (mf) guide that "
        "reads later (r), earlier (l) or all (lr) observations")  # fmt: skip
    add("--rnn", choices=("relu", "tanh", "lstm", "gru"), default="relu", help="its recurrent network")
    add("--mask-input", action="store_true", help="give the guide the mask of observed values as an input")
    add = train.add_argument_group("the model").add_argument
    add("--emission", choices=EMISSIONS, default="bernoulli", help="bernoulli or nade for zeros and ones, "
        "gaussian for real values, poisson or negative_binomial for counts, categorical for one-hot "
        "steps")  # fmt: skip
    add("--nade-dim", type=int, default=100, help="number of hidden units of a NADE emission")
    add("--augment", choices=("transition", "emission", "both"), help="networks that also read the data of "
        "the previous step")  # fmt: skip
    add("--past-dropout-rate", type=float, default=0.0, help="dropout of the data of the previous step that "
        "these networks read")  # fmt: skip
    add("--min-scale", type=float, default=0.0, help="value added to the scales of the latents in the guide "
        "and of a Gaussian emission")  # fmt: skip
    add("--standardize", action=argparse.BooleanOptionalAction, help="use the mean and scale of the training "
        "data as the model's units; the default for a Gaussian emission")  # fmt: skip
    add = train.add_argument_group("sizes").add_argument
    add("--z-dim", type=int, default=100, help="number of latents")
    add("--emission-dim", type=int, default=100, help="number of hidden units of the emitter")
    add("--transition-dim", type=int, default=200, help="number of hidden units of the transition")
    add("--rnn-dim", type=int, default=600, help="number of hidden units of the inference network")
    add("--num-layers", type=int, default=1, help="number of layers of the inference network")


def _add_trained(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint file, or the folder of a run, whose best checkpoint is "
        "used, or else its last")  # fmt: skip
    add("--data", help="a data file or chorales; by default the data that the model was trained on")
    add("--seed", type=_seed, default=0, help="seed of the random generators")
    add("--cuda", action="store_true", help="compute on the GPU")
    add("--threads", type=int, help="number of CPU threads")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_trained(parser)
    splits = ("train", "valid", "test")
    parser.add_argument("--split", choices=splits, help="evaluate only this split; by default all three")
    parser.add_argument("--num-particles", type=int, default=100, help="draws for importance sampling")
    _add_json(parser)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_trained(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for PNG and MIDI files")
    add("-n", "--num", type=int, default=2, help="number of pieces of each kind")
    add("--num-steps", type=int, default=64, help="number of time steps to sample")
    add("--prefix-steps", type=int, default=32, help="number of steps of a test sequence to continue from")
    add("--tempo", type=float, default=100.0, help="time steps per minute in the MIDI files")
    add("--program", type=int, default=0, help="General MIDI instrument, 0 to 127")
    add("--temperature", type=float, default=1.0, help="of samples and forecasts; below 1 they keep closer "
        "to what the model finds most probable")  # fmt: skip


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--plan",
        type=_count,
        nargs=4,
        metavar=("B", "T", "H", "Z"),
        help="show instead how the scans of B sequences of T steps, with H units and Z latents, are "
        "distributed over the GPU (over an H100 if no GPU is available)",
    )
    parser.add_argument(
        "--gpu",
        type=str.lower,
        choices=tuple(KNOWN),
        metavar="NAME",
        help=f"with --plan: plan for this GPU instead; one of {', '.join(KNOWN)}",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="with --plan: choose the fastest measured plan from this file if it has measurements for these "
        "sizes and this GPU; benchmarks.gpu writes such files",
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**32 - 1, got {text!r}")
    return int(text)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


if __name__ == "__main__":
    sys.exit(main())
