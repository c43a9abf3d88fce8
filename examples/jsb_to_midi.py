"""Bach's chorales from download to MIDI: load, train, evaluate, and continue chorales of the test set.

The JSB chorales are fetched into ``--cache``, or read from ``--data``; without a network the built-in
synthetic chorales take their place, and a line says so. The model is a DMM whose emission is a NADE, so that
the notes of a chord depend on each other, and whose transition and emission read the chord before. It is
trained for a short while, its bound and NLL of the test set are printed in nats a time step, and the first
bars of three test chorales are continued: a picture of the piano rolls, and MIDI files for any player.

    python examples/jsb_to_midi.py [--data JSB_Chorales.mat] [--cache data] [--out jsb_to_midi] [--quick]

It takes about a minute on one CPU thread. After it the NLL of JSB is near 5.9 nats; models of this kind that
are trained for much longer reach 5.1 (Krishnan, Shalit and Sontag 2017, table 4).
"""

import argparse
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

from dmm_fast import DMM
from dmm_fast.data import Batch, Dataset, chorales, download, load
from dmm_fast.infer import SequenceELBO, evaluate_elbo, evaluate_importance_nll, forecast
from dmm_fast.music import Panel, compare, save_png, to_midi, write_midi
from dmm_fast.optim import PyroClippedAdam

PREFIX_STEPS, STEPS_AHEAD, NUM_PIECES = 24, 40, 3


def music(data: str | None, cache: str) -> Dataset:
    """The file that was asked for, else JSB by download, else the built-in chorales."""
    if data is not None:
        return load(data)
    try:
        return load(download("jsb_chorales", cache, progress=False))
    except OSError as error:
        print(f"JSB could not be downloaded ({error}); going on with the built-in synthetic chorales")
        return chorales()


def main() -> None:
    parser = argparse.ArgumentParser(description="From the JSB chorales to MIDI.")
    parser.add_argument("--data", help="a file of chorales: .mat, .pickle, .npz or a folder of MIDI files")
    parser.add_argument("--cache", default="data", help="folder to download JSB to")
    parser.add_argument("--out", default="jsb_to_midi", help="names of the files, before .png and _1.mid")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    pyro.set_rng_seed(0)

    data = music(args.data, args.cache)
    train, test = data.train, data.test
    print(f"{data.name}: {len(train)} chorales to train on, {len(test)} to test")

    dmm = DMM(
        input_dim=train.sequences.shape[-1], rnn="tanh", rnn_dim=200, emission="nade", augment="both",
    )  # fmt: skip
    num_steps = 5 if args.quick else 1200
    adam = PyroClippedAdam({"lr": 6e-3, "clip_norm": 10.0, "lrd": 0.05 ** (1 / num_steps)})
    svi = SVI(dmm.model, dmm.guide, adam, SequenceELBO(TraceMeanField_ELBO()))
    for step in range(num_steps):
        batch = train.batch(torch.randint(len(train), (20,)))
        loss = svi.step(*batch, annealing_factor=min(1.0, 0.1 + 1.5 * step / num_steps))
        if step % 200 == 0:
            print(f"step {step:5d}   {loss / int(batch.mini_batch_seq_lengths.sum()):.3f} nats a time step")
    bound = evaluate_elbo(dmm, test).total_over_total
    nll = evaluate_importance_nll(dmm, test, num_particles=2 if args.quick else 30).total_over_total
    print(f"test: negative ELBO {bound:.3f}, NLL {nll:.3f} nats a time step")

    long_enough = torch.nonzero(test.lengths > PREFIX_STEPS).flatten()[:NUM_PIECES]
    batch = test.batch(long_enough)
    prefix, mask = batch.mini_batch[:, :PREFIX_STEPS], batch.mini_batch_mask[:, :PREFIX_STEPS]
    given = Batch(prefix, None, mask, torch.full_like(batch.mini_batch_seq_lengths, PREFIX_STEPS))
    pieces = torch.cat([prefix, forecast(dmm, given, STEPS_AHEAD, temperature=0.7, seed=0)], dim=1)
    titles = [f"Test chorale {index + 1}, continued" for index in long_enough.tolist()]
    panels = [Panel(*each) for each in zip(titles, pieces, strict=True)]
    written = [Path(f"{args.out}.png")]
    save_png(written[0], compare(panels, boundary=PREFIX_STEPS))
    for number, piece in enumerate(pieces, start=1):
        written.append(Path(f"{args.out}_{number}.mid"))
        write_midi(written[-1], to_midi(piece, tempo=100, program=19))
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
