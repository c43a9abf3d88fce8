"""The command ``dmm-fast``: train, evaluate, generate, info, download."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dmm_fast import BackendError, __version__
from dmm_fast._console import FIGURES, complain, discard
from dmm_fast.cuda.devices import KNOWN

EXTRAS = ("matplotlib", "mido", "safetensors", "scipy", "tensorboard", "tqdm")
"""Packages that ``pip install 'dmm-fast[cli]'`` adds."""

EMISSIONS = ("bernoulli", "gaussian", "poisson", "negative_binomial", "categorical", "nade")
"""Choices of ``--emission``, here because what makes them takes time to import."""

_BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
_INTERRUPTED = 130  # and for one that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: training diverged. 2: something about the input is wrong, said in one line on
    standard error. 130: interrupted. 141: nobody reads the output any more.

    Args:
        arguments: by default those of the process.
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
        train_defaults: settings that take the place of the defaults of ``train``.
    """
    parser = _Parser(prog="dmm-fast", description="Deep Markov Models: train, evaluate, generate.")
    parser.add_argument("--version", action="version", version=f"dmm-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a model", **_STYLE)
    _add_example_flags(train)
    _add_train_flags(train)
    train.set_defaults(**(train_defaults or {}))
    figures = "\n".join(line.format(particles="--num-particles of them") for line in FIGURES)
    evaluate = commands.add_parser(
        "evaluate", help="measure a trained model", formatter_class=_Figures, description=figures
    )
    _add_evaluate(evaluate)
    _add_generate(commands.add_parser("generate", help="draw and play what it makes", **_STYLE))
    info = commands.add_parser("info", help="what is installed and what would run", **_STYLE)
    _add_info(info)
    download = commands.add_parser("download", help="fetch a data set", **_STYLE)
    download.add_argument("name", help="jsb_chorales, piano_midi, muse_data or nottingham (Pyro's copies)")
    download.add_argument("directory", type=Path, nargs="?", default=Path("."), help="where to")
    return parser


class _Help(argparse.HelpFormatter):
    """Shows a default where it says something: no flag's, and none that is missing or empty."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        takes_value = action.nargs != 0
        says_something = action.default not in (None, "", argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if takes_value and says_something else text


class _Figures(_Help, argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of the description as they are."""


_STYLE: dict[str, Any] = {"formatter_class": _Help}


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _run(arguments: Sequence[str]) -> int:
    args = build_parser().parse_args(arguments)
    # Here and not above: `dmm-fast --help` needs neither the extras nor the time to import them.
    from dmm_fast import _commands

    if getattr(args, "threads", None) is not None:
        _commands.set_threads(args.threads)
    if args.command == "train" and args.resume:
        # The run's own settings are the defaults; what is given in spite of them is compared.
        args = build_parser(_commands.settings_to_resume(args)).parse_args(arguments)
    return _commands.COMMANDS[args.command](args)


def _add_example_flags(train: argparse.ArgumentParser) -> None:
    """The flags of Pyro's ``examples/dmm.py``: the same names, short names and defaults."""
    add = train.add_argument_group("as in Pyro's examples/dmm.py").add_argument
    add("-n", "--num-epochs", type=int, default=5000, help="epochs of the whole run")
    add("-lr", "--learning-rate", type=float, default=0.0003, help="of ClippedAdam")
    add("-b1", "--beta1", type=float, default=0.96, help="of ClippedAdam")
    add("-b2", "--beta2", type=float, default=0.999, help="of ClippedAdam")
    add("-cn", "--clip-norm", type=float, default=10.0, help="largest gradient element")
    add("-lrd", "--lr-decay", type=float, default=0.99996, help="of the learning rate, a step")
    add("-wd", "--weight-decay", type=float, default=2.0, help="L2 penalty")
    add("-mbs", "--mini-batch-size", type=int, default=20, help="sequences a step")
    add("-ae", "--annealing-epochs", type=int, default=1000, help="over which KL climbs to 1")
    add("-maf", "--minimum-annealing-factor", type=float, default=0.2, help="from where it climbs")
    add("-rdr", "--rnn-dropout-rate", type=float, default=0.1, help="between layers of the RNN")
    add("-iafs", "--num-iafs", type=int, default=0, help="normalizing flows in the guide")
    add("-id", "--iaf-dim", type=int, default=100, help="hidden units of a flow")
    add("-cf", "--checkpoint-freq", type=int, default=0, help="save every so many epochs; 0: "
        "every epoch with --out, else at the end only")  # fmt: skip
    add("-lopt", "--load-opt", type=str, default="", help="optimizer state, safetensors")
    add("-lmod", "--load-model", type=str, default="", help="model, safetensors; a file of "
        "torch.save must be converted, the error says how")  # fmt: skip
    add("-sopt", "--save-opt", type=str, default="", help="write the optimizer state here")
    add("-smod", "--save-model", type=str, default="", help="write the model here")
    add("--cuda", action="store_true", help="train on the GPU")
    add("--jit", action="store_true", help="refused; there is no need of it here")
    add("--tmc", action="store_true", help="tensor Monte Carlo instead of an ELBO")
    add("--tmcelbo", action="store_true", help="an ELBO with enumerated samples")
    add("--tmc-num-samples", type=int, default=10, help="samples a site for these two")
    add("-l", "--log", type=str, default="dmm.log", help="log file, within --out if that is given; "
        "an empty name for none")  # fmt: skip


def _add_train_flags(train: argparse.ArgumentParser) -> None:
    add = train.add_argument_group("the run").add_argument
    add("--data", default="chorales", help="a .csv, .parquet, .npz, .npy, .mat or .pickle file, a folder of "
        "MIDI files, or the built-in chorales")  # fmt: skip
    add("--num-sequences", type=int, help="of the built-in chorales, how many to train on")
    add("--seed", type=_seed, default=0, help="of the random generators")
    add("--out", type=Path, help="folder for checkpoints, metrics and TensorBoard")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--eval-frequency", type=int, default=50, help="validate and test every so many epochs and "
        "after the last; 0: never")  # fmt: skip
    add("--no-tensorboard", dest="tensorboard", action="store_false", help="no TensorBoard scalars")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    add("--threads", type=int, help="CPU threads; a resumed run needs as many for the same bits")
    add = train.add_argument_group("data of one's own").add_argument
    add("--id-column", metavar="NAME", help="of a table: which sequence a row belongs to")
    add("--time-column", metavar="NAME", help="of a table: its time step, a whole number or a date")
    add("--freq", help="of a table with dates: the length of a time step, as D, h or 15min")
    add("--columns", metavar="NAMES", help="of a table: values, with commas between; by default all others")
    add("--control-columns", metavar="NAMES", help="of a table: controls of each step")
    add("--static-columns", metavar="NAMES", help="of a table: covariates of each sequence")
    add("--split-seed", type=_seed, default=0, help="of the division into training, validation and test, "
        "where the data have none")  # fmt: skip
    add = train.add_argument_group("the objective and the optimizer").add_argument
    add("--elbo", choices=("trace", "mean_field"), default="trace", help="KL sampled or analytic")
    add("--lr-schedule", choices=("constant", "cosine"), default="constant", help="on top of -lrd")
    add("--warmup-steps", type=int, default=0, help="the learning rate climbs over these")
    add("--recover", action="store_true", help="from a loss that is no finite number: go back to the last "
        "good state at half the learning rate")  # fmt: skip
    add = train.add_argument_group("the guide").add_argument
    guides = ("st-r", "st-l", "st-lr", "mf-r", "mf-l", "mf-lr")
    add("--inference", choices=guides, default="st-r", help="structured or mean-field, from what follows "
        "(r), what precedes (l), or both")  # fmt: skip
    add("--rnn", choices=("relu", "tanh", "lstm", "gru"), default="relu", help="its recurrent network")
    add("--mask-input", action="store_true", help="it also reads which values are observed")
    add = train.add_argument_group("the model").add_argument
    add("--emission", choices=EMISSIONS, default="bernoulli", help="bernoulli or nade for zeros and ones, "
        "gaussian for real values, poisson or negative_binomial for counts, categorical for one 1 a "
        "step")  # fmt: skip
    add("--nade-dim", type=int, default=100, help="hidden units of a NADE emission")
    add("--augment", choices=("transition", "emission", "both"), help="where the data of the step before are "
        "an input")  # fmt: skip
    add("--min-scale", type=float, default=0.0, help="added to the scales of the latents in the guide and "
        "of a Gaussian emission")  # fmt: skip
    add("--standardize", action=argparse.BooleanOptionalAction, help="take mean and scale of the training "
        "data for the model's units; by default where the emission is Gaussian")  # fmt: skip
    add = train.add_argument_group("sizes").add_argument
    add("--z-dim", type=int, default=100, help="latents")
    add("--emission-dim", type=int, default=100, help="hidden units of the emitter")
    add("--transition-dim", type=int, default=200, help="hidden units of the transition")
    add("--rnn-dim", type=int, default=600, help="hidden units of the inference network")
    add("--num-layers", type=int, default=1, help="layers of the inference network")


def _add_trained(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint, or the folder of a run: its best, else last")
    add("--data", help="a data file or chorales; by default what the model was trained on")
    add("--seed", type=_seed, default=0, help="of the random generators")
    add("--cuda", action="store_true", help="compute on the GPU")
    add("--threads", type=int, help="CPU threads")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_trained(parser)
    splits = ("train", "valid", "test")
    parser.add_argument("--split", choices=splits, help="only this one; by default all three")
    parser.add_argument("--num-particles", type=int, default=100, help="of importance sampling")
    _add_json(parser)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_trained(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for PNG and MIDI files")
    add("-n", "--num", type=int, default=2, help="pieces of each kind")
    add("--num-steps", type=int, default=64, help="time steps to draw")
    add("--prefix-steps", type=int, default=32, help="steps of a test sequence to continue")
    add("--tempo", type=float, default=100.0, help="time steps a minute in the MIDI files")
    add("--program", type=int, default=0, help="General MIDI instrument, 0 to 127")


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument(
        "--plan",
        type=_count,
        nargs=4,
        metavar=("B", "T", "H", "Z"),
        help="instead: how the scans of B sequences of T steps, with H units and Z latents, are cut up on "
        "the GPU (an H100, where there is none)",
    )
    parser.add_argument(
        "--gpu",
        type=str.lower,
        choices=tuple(KNOWN),
        metavar="NAME",
        help=f"with --plan: on this GPU instead; one of {', '.join(KNOWN)}",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="with --plan: for sizes and a GPU that this file has measurements of, choose its fastest plan; "
        "benchmarks.gpu writes such files",
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
