"""Cases to time: model sizes and mini-batches."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.baseline import tutorial_mini_batch
from benchmarks.precision import IEEE
from dmm_fast.data import Batch, SequenceSet, chorales, load

TUTORIAL_BATCH = 20
TUTORIAL_STEPS = 129
QUICK_SIZES = {"z_dim": 8, "emission_dim": 8, "transition_dim": 12, "rnn_dim": 16}
RANDOM_FRAMES = "random frames, 5% of notes sounding"
DATA_VARIABLE = "DMM_FAST_DATA"
JSB_FILE = "JSB_Chorales.mat"
JSB_SEQUENCES = 229
DATA_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data" / JSB_FILE


@dataclass(frozen=True)
class Case:
    """Mini-batches for one timed run, which takes an SVI step on each of them.

    Attributes:
        name: of the case in the results.
        batches: the mini-batches.
        data: a description of their source.
        rounds: timed rounds.
        warmup: rounds before the timed ones.
        checked: indices of the batches on which every implementation is compared with float64 before timing.
        annealing_factor: weight of the KL terms.
        sizes: constructor arguments of the model.
        threads: number of threads; None is that of the run.
        precision: of float32 products, see :mod:`benchmarks.precision`.
        implementations: names of those to time; None: all.
        not_run: reasons by the names of the implementations that are skipped.
        check_cases: smaller cases that are checked in place of this one, if checking it is too expensive.
        along: the position of the case on the axes of a scaling plot.
    """

    name: str
    batches: tuple[Batch, ...]
    data: str
    rounds: int
    warmup: int = 2
    checked: tuple[int, ...] = (0,)
    annealing_factor: float = 0.7
    sizes: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    precision: str = IEEE
    implementations: tuple[str, ...] | None = None
    not_run: Mapping[str, str] = field(default_factory=dict)
    check_cases: tuple["Case", ...] = ()
    along: Mapping[str, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.batches[0].mini_batch.device

    def to(self, device: torch.device) -> "Case":
        """The same case with its batches on ``device``; lengths stay on the CPU, as with Pyro's loader."""
        check_cases = tuple(case.to(device) for case in self.check_cases)
        return replace(
            self, batches=tuple(_moved(batch, device) for batch in self.batches), check_cases=check_cases
        )

    def describe(self) -> dict[str, object]:
        """The fields of a results row that describe the case."""
        time_steps = sum(int(b.mini_batch_seq_lengths.sum()) for b in self.batches)
        padded = sum(b.mini_batch.shape[0] * b.mini_batch.shape[1] for b in self.batches)
        return {
            "data": self.data,
            "svi_steps": len(self.batches),
            "time_steps": time_steps,
            "valid_fraction": time_steps / padded,
            "sizes": dict(self.sizes),
            "annealing_factor": self.annealing_factor,
            "threads": self.threads or torch.get_num_threads(),
            "precision": self.precision,
            "along": dict(self.along),
            "checked_on": [case.name for case in self.check_cases] or [self.name],
        }


def _moved(batch: Batch, device: torch.device) -> Batch:
    packed: Any = batch.mini_batch_reversed  # whose type stub accepts dtypes only
    return batch._replace(
        mini_batch=batch.mini_batch.to(device),
        mini_batch_reversed=None if packed is None else packed.to(device),
        mini_batch_mask=batch.mini_batch_mask.to(device),
    )


def data_file(asked: str | Path | None) -> Path | None:
    """The file of chorales to read, or None for the built-in ones.

    ``asked`` names a file, or a folder that holds JSB_Chorales.mat; if it is None, the environment variable
    ``DMM_FAST_DATA`` does; if that is not set, a folder beside the checkout is searched.

    Raises:
        FileNotFoundError: there is no file where the argument or the variable says.
    """
    asked = os.environ.get(DATA_VARIABLE) if asked is None else asked
    if asked is None:
        return DATA_BESIDE_THE_CHECKOUT if DATA_BESIDE_THE_CHECKOUT.is_file() else None
    path = Path(asked) / JSB_FILE if Path(asked).is_dir() else Path(asked)
    if not path.is_file():
        raise FileNotFoundError(f"data: expected a file, got {path}")
    return path


def full_batch(B: int, T: int, D: int = 88, *, density: float = 0.05, seed: int = 0) -> Batch:
    """A mini-batch of random binary frames [B, T, D], float32, every row of full length."""
    generator = torch.Generator().manual_seed(seed)
    sequences = (torch.rand(B, T, D, generator=generator) < density).float()
    return tutorial_mini_batch(torch.arange(B), sequences, torch.full((B,), T))


def svi_step(B: int, T: int, *, rounds: int, quick: bool) -> Case:
    """A case of one SVI step on a batch of full length."""
    if quick:
        B, T = 4, 6
    case = Case(
        name=f"SVI step, B={B}, T={T}, all full",
        batches=(full_batch(B, T),),
        data=RANDOM_FRAMES,
        rounds=rounds,
    )
    return quick_case(case) if quick else case


def jsb_epoch(path: Path | None, *, rounds: int, quick: bool) -> Case:
    """A case of one epoch over a training split in the tutorial's mini-batches of 20, shuffled once.

    Mini-batches are prepared beforehand, so only the SVI steps are timed.
    """
    if path is not None:
        data, source, name = load(path).train, path.name, path.stem
    else:
        # As many sequences as in JSB. The case is named after the built-in chorales, as they are other data.
        data = chorales(num_train=5 if quick else JSB_SEQUENCES, num_valid=1, num_test=1).train
        source = name = "built-in chorales"
    data, B = (beginnings(data), 3) if quick else (data, TUTORIAL_BATCH)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    batches = tuple(tutorial_mini_batch(i, data.sequences, data.lengths) for i in order.split(B))
    case = Case(
        name=f"{name} epoch, B={B}, {len(batches)} ragged steps",
        batches=batches,
        data=source,
        rounds=rounds,
        warmup=1,
        checked=(0, len(batches) - 1),  # the last batch is the short one
    )
    return quick_case(case) if quick else case


def beginnings(data: SequenceSet) -> SequenceSet:
    """The first frames of the first five sequences, for quick runs."""
    lengths = torch.tensor([5, 7, 3, 6, 4])
    valid = torch.arange(7) < lengths.unsqueeze(1)
    return SequenceSet(data.sequences[:5, :7] * valid.unsqueeze(-1), lengths)


def quick_case(case: Case) -> Case:
    """A tiny version of the case, to try a command; its times are never reported."""
    return replace(
        case,
        name=f"{case.name} (quick)",
        rounds=2,
        warmup=1,
        sizes=QUICK_SIZES,
        check_cases=tuple(replace(smaller, sizes=QUICK_SIZES) for smaller in case.check_cases),
    )
