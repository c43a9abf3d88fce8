"""Plots and MIDI files of a trained model's samples, reconstructions and forecasts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dmm_fast._figures import save_png
from dmm_fast.check import fail
from dmm_fast.data import Batch, SequenceSet
from dmm_fast.infer import forecast, generate, reconstruct
from dmm_fast.model import DMM
from dmm_fast.music._midi import to_midi, write_midi
from dmm_fast.music._plots import Panel, compare
from dmm_fast.nn import NadeEmitter
from dmm_fast.training import read_metrics, training_curve

TRAINING_CURVE = "training.png"
_NUM_DRAWS = 100


def draw_gallery(
    dmm: DMM,
    sequences: SequenceSet,
    out: Path,
    *,
    num: int,
    num_steps: int,
    prefix_steps: int,
    tempo: float,
    program: int,
    temperature: float,
    metrics: Path,
) -> list[Path]:
    """Write prior samples, reconstructions and forecasts as PNG and MIDI, and the training curve.

    Args:
        dmm: a trained model of piano rolls, with a Bernoulli or a NADE emission.
        sequences: sequences to reconstruct and to continue; the first ones longer than the prefix are used.
        out: an existing folder.
        num: number of pieces of each kind.
        num_steps: number of time steps of a sample and of a continuation.
        prefix_steps: number of time steps of a sequence to continue from.
        tempo: time steps per minute in the MIDI files.
        program: General MIDI instrument, 0 to 127.
        temperature: that of samples and continuations, as in :func:`dmm_fast.infer.forecast`.
        metrics: a ``metrics.jsonl``; if it is missing or empty, no training curve is written.

    Returns:
        The files written.

    Raises:
        ValueError: a count is not positive, or too few sequences are longer than the prefix.
    """
    for name, value in (("num", num), ("prefix_steps", prefix_steps)):
        if value < 1:
            fail(name, "at least 1", str(value))
    long_enough = int((sequences.lengths > prefix_steps).sum())
    if long_enough < num:
        expected = f"at least {num} sequences longer than it"
        fail("prefix_steps", expected, f"{long_enough} longer than {prefix_steps}")
    epochs = read_metrics(metrics) if metrics.exists() else []
    chosen = torch.nonzero(sequences.lengths > prefix_steps).flatten()[:num]
    written: list[Path] = []

    def write(name: str, panels: list[Panel], roll: Tensor, boundary: int | None = None) -> None:
        save_png(out / f"{name}.png", compare(panels, boundary=boundary))
        write_midi(out / f"{name}.mid", to_midi(roll, tempo=tempo, program=program))
        written.extend([out / f"{name}.png", out / f"{name}.mid"])

    for number, roll in enumerate(generate(dmm, num, num_steps, temperature=temperature), start=1):
        write(f"sample_{number}", [Panel(f"Sample {number} from the prior", roll)], roll)
    _reconstructions(dmm, sequences, chosen, write)
    _forecasts(dmm, sequences, chosen, prefix_steps, num_steps, write, temperature)
    if epochs:
        save_png(out / TRAINING_CURVE, training_curve(epochs))
        written.append(out / TRAINING_CURVE)
    return written


def _reconstructions(dmm: DMM, sequences: SequenceSet, chosen: Tensor, write: Callable[..., None]) -> None:
    batch = sequences.batch(chosen)
    if isinstance(dmm.emitter, NadeEmitter):  # its probabilities have no closed form
        probabilities = reconstruct(dmm, batch, _NUM_DRAWS, mean=False).mean(0)
    else:
        probabilities = reconstruct(dmm, batch)
    for row, index in enumerate(chosen.tolist()):
        steps = int(batch.mini_batch_seq_lengths[row])
        truth, probability = batch.mini_batch[row, :steps], probabilities[row, :steps]
        panels = [
            Panel(f"Test sequence {index + 1}", truth),
            Panel("Reconstruction: probability of each note", probability),
        ]
        write(f"reconstruction_{row + 1}", panels, probability > 0.5)


def _forecasts(
    dmm: DMM,
    sequences: SequenceSet,
    chosen: Tensor,
    prefix_steps: int,
    num_steps: int,
    write: Callable[..., None],
    temperature: float = 1.0,
) -> None:
    whole = sequences.batch(chosen)
    prefix = whole.mini_batch[:, :prefix_steps]
    lengths = torch.full_like(whole.mini_batch_seq_lengths, prefix_steps)
    given = Batch(prefix, None, whole.mini_batch_mask[:, :prefix_steps], lengths)
    continued = torch.cat([prefix, forecast(dmm, given, num_steps, temperature=temperature)], dim=1)
    for row, index in enumerate(chosen.tolist()):
        panels = [
            Panel(f"Test sequence {index + 1}", whole.mini_batch[row, : continued.shape[1]]),
            Panel(f"Its first {prefix_steps} steps, continued by the model", continued[row]),
        ]
        write(f"forecast_{row + 1}", panels, continued[row], prefix_steps)
