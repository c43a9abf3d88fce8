"""What is timed: sizes and mini-batches."""

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
    """One line of the results: the mini-batches one timed run goes through, one SVI step each.

    ``checked`` are the indices of the batches on which every contestant must agree with the
    baseline before anything is timed. Where that would be too dear, ``gate`` has cases that are checked
    in place of this one. ``sizes`` are constructor arguments of the model. ``threads``: None is the
    run's own number. ``precision`` is what products of float32 are computed in. ``contestants`` names
    those that take part, None all; ``not_run`` says of some of them why they do not. ``along`` places the
    case on the axes of a scaling plot.
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
    contestants: tuple[str, ...] | None = None
    not_run: Mapping[str, str] = field(default_factory=dict)
    gate: tuple["Case", ...] = ()
    along: Mapping[str, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.batches[0].mini_batch.device

    def to(self, device: torch.device) -> "Case":
        """The same case with its batches on ``device``; Pyro's loader too leaves lengths on the CPU."""
        gate = tuple(case.to(device) for case in self.gate)
        return replace(self, batches=tuple(_moved(batch, device) for batch in self.batches), gate=gate)

    def describe(self) -> dict[str, object]:
        """What a reader needs in order to run the same case."""
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
            "checked_on": [case.name for case in self.gate] or [self.name],
        }


def _moved(batch: Batch, device: torch.device) -> Batch:
    packed: Any = batch.mini_batch_reversed  # whose stub knows of dtypes alone
    return batch._replace(
        mini_batch=batch.mini_batch.to(device),
        mini_batch_reversed=None if packed is None else packed.to(device),
        mini_batch_mask=batch.mini_batch_mask.to(device),
    )


def data_file(asked: str | Path | None) -> Path | None:
    """The chorales to read: ``asked`` (a file, or a folder holding JSB_Chorales.mat), else what
    ``DMM_FAST_DATA`` names likewise, else ``../shared/data`` beside the checkout, else None.

    Raises:
        FileNotFoundError: what was asked for, by argument or by variable, is not there.
    """
    asked = os.environ.get(DATA_VARIABLE) if asked is None else asked
    if asked is None:
        return DATA_BESIDE_THE_CHECKOUT if DATA_BESIDE_THE_CHECKOUT.is_file() else None
    path = Path(asked) / JSB_FILE if Path(asked).is_dir() else Path(asked)
    if not path.is_file():
        raise FileNotFoundError(f"data: expected a file, got {path}")
    return path


def full_batch(B: int, T: int, D: int = 88, *, density: float = 0.05, seed: int = 0) -> Batch:
    """Random 0/1 frames [B, T, D], float32, every row of full length."""
    generator = torch.Generator().manual_seed(seed)
    sequences = (torch.rand(B, T, D, generator=generator) < density).float()
    return tutorial_mini_batch(torch.arange(B), sequences, torch.full((B,), T))


def svi_step(B: int, T: int, *, rounds: int, quick: bool) -> Case:
    """One SVI step on a full batch."""
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
    """One epoch over a training split in the tutorial's mini-batches of 20, shuffled once.

    Mini-batches are prepared beforehand: the time is that of the SVI steps alone.
    """
    if path is not None:
        data, source, name = load(path).train, path.name, path.stem
    else:
        # As many as in JSB, but nobody shall take them for JSB: the case is named after them.
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
    """The same case in tiny: for trying the machinery, never for the README."""
    return replace(
        case,
        name=f"{case.name} (quick)",
        rounds=2,
        warmup=1,
        sizes=QUICK_SIZES,
        gate=tuple(replace(smaller, sizes=QUICK_SIZES) for smaller in case.gate),
    )
