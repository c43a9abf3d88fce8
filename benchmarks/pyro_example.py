"""Run the user's copy of Pyro's ``examples/dmm.py`` twice: unmodified, and with its DMM replaced.

``python -m benchmarks.pyro_example --example dmm.py --data JSB_Chorales.mat --num-epochs 1``

Only the class ``DMM`` and the source of the data are replaced. Both runs start from the same seed, and the
losses of their SVI steps are compared one by one.
"""

import argparse
import importlib
import importlib.util
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pyro
from torch import Tensor

from benchmarks.baseline import BaselineDMM
from benchmarks.timing import Samples, paired_ratio
from dmm_fast.data import load
from dmm_fast.model import DMM
from dmm_fast.ops import BACKENDS, use_backend

LOADER = "pyro.contrib.examples.polyphonic_data_loader"
REPLACEMENTS: dict[str, Callable[..., Any]] = {"dmm_fast": DMM, "baseline": BaselineDMM}

PyroData = dict[str, dict[str, Tensor]]


@dataclass
class Run:
    """A run of the example: the loss and the milliseconds of every SVI step."""

    losses: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    seconds: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the two runs. Returns 0, or 1 if a loss differs by more than the tolerance."""
    args = _parser().parse_args(argv)
    loader = import_loader()
    example = import_example(Path(args.example))
    data = as_pyro_has_it(Path(args.data))
    with tempfile.TemporaryDirectory() as folder:
        options = example_options(args, Path(folder) / "dmm.log")
        print("the unmodified example:", flush=True)
        original = run(example, loader, data, options, args.seed, example.DMM)
        print(f"the same with {args.replacement}'s DMM:", flush=True)
        with use_backend(args.backend):
            replaced = run(example, loader, data, options, args.seed, REPLACEMENTS[args.replacement])
    errors = relative_differences(original.losses, replaced.losses)
    return report(original, replaced, errors, args.steps, args.tolerance)


def import_loader() -> ModuleType:
    """Import Pyro's loader of polyphonic music without its two side effects.

    The loader imports torchvision for a class that the example does not use, and makes a folder beside itself
    in site-packages. A stand-in replaces the former, a temporary folder the latter.
    """
    if LOADER in sys.modules:
        return sys.modules[LOADER]
    with torchvision_or_stand_in():
        util = importlib.import_module("pyro.contrib.examples.util")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(util, "get_data_directory", return_value=folder),
    ):
        return importlib.import_module(LOADER)


@contextmanager
def torchvision_or_stand_in() -> Iterator[None]:
    """Provide a stand-in for torchvision, sufficient for ``pyro.contrib.examples.util``, if it is missing."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms")
    package, datasets, transforms = (ModuleType(name) for name in names)
    vars(datasets)["MNIST"] = type("MNIST", (), {})
    vars(package).update(datasets=datasets, transforms=transforms)
    sys.modules.update(zip(names, (package, datasets, transforms), strict=True))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def import_example(path: Path) -> ModuleType:
    """Import the example from any path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not define ``DMM``, ``SVI`` and ``main``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"example: expected Pyro's examples/dmm.py, got {path}")
    spec = importlib.util.spec_from_file_location("pyro_example_dmm", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"example: expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [name for name in ("DMM", "SVI", "main") if not hasattr(module, name)]
    if missing:
        raise ValueError(f"example: expected DMM, SVI and main, got a file without {missing[0]}")
    return module


def as_pyro_has_it(path: Path) -> PyroData:
    """The three splits of the file in the structure returned by Pyro's ``load_data``."""
    data = load(path)
    splits = {"train": data.train, "valid": data.valid, "test": data.test}
    return {
        name: {"sequences": split.sequences, "sequence_lengths": split.lengths}
        for name, split in splits.items()
    }


def example_options(args: argparse.Namespace, log: Path) -> argparse.Namespace:
    """The options of the example: its defaults, except for those of this command."""
    return argparse.Namespace(
        num_epochs=args.num_epochs,
        learning_rate=0.0003,
        beta1=0.96,
        beta2=0.999,
        clip_norm=10.0,
        lr_decay=0.99996,
        weight_decay=2.0,
        mini_batch_size=args.mini_batch_size,
        annealing_epochs=1000,
        minimum_annealing_factor=0.2,
        rnn_dropout_rate=0.1,
        num_iafs=args.num_iafs,
        iaf_dim=100,
        checkpoint_freq=0,
        load_opt="",
        load_model="",
        save_opt="",
        save_model="",
        cuda=False,
        jit=False,
        tmc=False,
        tmcelbo=False,
        tmc_num_samples=10,
        log=str(log),
    )


def run(
    example: ModuleType,
    loader: ModuleType,
    data: PyroData,
    options: argparse.Namespace,
    seed: int,
    dmm: Callable[..., Any],
) -> Run:
    """Run the ``main`` of the example with a fresh seed and parameter store, and ``dmm`` as its ``DMM``."""
    record = Run()
    with (
        pyro.get_param_store().scope(),
        own_logging(),
        mock.patch.object(loader, "load_data", return_value=data),
        mock.patch.object(example, "DMM", dmm),
        mock.patch.object(example, "SVI", recording(example.SVI, record)),
    ):
        pyro.set_rng_seed(seed)
        start = time.perf_counter()
        example.main(options)
        record.seconds = time.perf_counter() - start
    return record


def recording(svi: type[Any], record: Run) -> type[Any]:
    """A subclass of ``svi`` that records losses and durations."""

    class RecordingSVI(svi):
        """Pyro's SVI with recorded losses and durations."""

        def step(self, *args: Any, **kwargs: Any) -> float:
            start = time.perf_counter()
            loss = float(super().step(*args, **kwargs))
            record.ms.append(1e3 * (time.perf_counter() - start))
            record.losses.append(loss)
            return loss

        def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
            loss = float(super().evaluate_loss(*args, **kwargs))
            record.evaluations.append(loss)
            return loss

    return RecordingSVI


@contextmanager
def own_logging() -> Iterator[None]:
    """Restore the root logger afterwards, as the example adds two handlers in every run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def relative_differences(original: Sequence[float], replaced: Sequence[float]) -> list[float]:
    """``|b - a| / |a|`` for each step; infinite where ``b`` is not a number.

    Raises:
        ValueError: the runs took different numbers of steps, or none.
    """
    if len(original) != len(replaced) or not original:
        raise ValueError(
            "losses: expected two runs of the same number of steps, at least one, "
            f"got {len(original)} and {len(replaced)}"
        )
    errors = (abs(b - a) / abs(a) for a, b in zip(original, replaced, strict=True))
    return [e if math.isfinite(e) else math.inf for e in errors]


def report(original: Run, replaced: Run, errors: list[float], steps: int | None, tolerance: float) -> int:
    """Print the comparison; returns 1 if one of the first ``steps`` differs by more than ``tolerance``."""
    print("step        original        replaced    rel. difference")
    for i, (a, b, e) in enumerate(zip(original.losses, replaced.losses, errors, strict=True), 1):
        print(f"{i:4d}  {a:14.4f}  {b:14.4f}  {e:12.2e}")
    compared = errors[:steps]
    worst = max(compared)
    ratio = paired_ratio(Samples(tuple(original.ms)), Samples(tuple(replaced.ms)))
    print(f"largest of the first {len(compared)}: {worst:.2e} (tolerance {tolerance:.0e})")
    print(
        f"seconds: {original.seconds:.1f} and {replaced.seconds:.1f}; SVI step by step "
        f"{ratio.median:.2f} times faster ({ratio.low:.2f} to {ratio.high:.2f})"
    )
    return 0 if worst <= tolerance else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pyro_example", description=__doc__)
    parser.add_argument("--example", required=True, help="your copy of Pyro's examples/dmm.py")
    parser.add_argument("--data", required=True, help="a file dmm_fast.data.load reads")
    parser.add_argument("--num-epochs", type=int, default=1)
    parser.add_argument("--mini-batch-size", type=int, default=20)
    parser.add_argument("--num-iafs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="compare this many steps (default: all)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative, of each loss")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="the backend of dmm_fast; by default its own choice"
    )
    parser.add_argument("--replacement", choices=sorted(REPLACEMENTS), default="dmm_fast")
    return parser


if __name__ == "__main__":
    sys.exit(main())
