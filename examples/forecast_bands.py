"""Forecast bands and how often they hold: a pendulum pushed at random, seen through noise.

The angle of the pendulum is a nonlinear hidden state; measured are its two coordinates. Trained on 300
swings, the model continues 100 new ones, and a table shows for each nominal level and each part of the
horizon which share of the measurements fell into the band. A calibrated forecast shows its nominal level;
bands that are too narrow show less. The picture has the bands of one swing.

    python examples/forecast_bands.py [--out forecast_bands.png] [--quick]

It takes about half a minute on one CPU thread and prints a table whose entries should be within a few
points of the level at the left.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

from dmm_fast import DMM
from dmm_fast.data import from_arrays
from dmm_fast.infer import SequenceELBO, evaluate_elbo, evaluate_importance_nll, forecast
from dmm_fast.optim import PyroClippedAdam

NUM_STEPS, STEPS_AHEAD = 60, 24
LEVELS = (0.5, 0.8, 0.9, 0.95)


def swings(number: int, seed: int) -> np.ndarray:
    """Coordinates ``[number, steps, 2]`` of pendulums that are released at random and pushed at random."""
    rng = np.random.default_rng(seed)
    angle, speed = rng.uniform(-1.5, 1.5, number), rng.normal(0, 0.5, number)
    seen = []
    for _ in range(NUM_STEPS):
        for _ in range(5):
            speed = speed - 0.1 * (np.sin(angle) + 0.05 * speed) + 0.05 * rng.normal(size=number)
            angle = angle + 0.1 * speed
        seen.append(np.stack([np.sin(angle), -np.cos(angle)], axis=-1))
    return np.stack(seen, axis=1) + rng.normal(0, 0.05, (number, NUM_STEPS, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecast bands and their coverage.")
    parser.add_argument("--out", default="forecast_bands.png", help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        print("Only a few steps, to see that it runs: the figures mean nothing.")
    pyro.set_rng_seed(0)

    train = from_arrays(swings(300, seed=1))
    new = swings(100, seed=2)
    history, later = from_arrays(new[:, :-STEPS_AHEAD]), new[:, -STEPS_AHEAD:]

    dmm = DMM(
        2, z_dim=6, emission_dim=32, transition_dim=32, rnn_dim=64,
        emission="gaussian", min_scale=1e-3, rnn="tanh",
    )  # fmt: skip
    dmm.standardize(train.sequences, train.lengths)
    num_steps = 5 if args.quick else 1500
    adam = PyroClippedAdam({"lr": 1e-2, "clip_norm": 5.0, "lrd": 0.1 ** (1 / num_steps)})
    svi = SVI(dmm.model, dmm.guide, adam, SequenceELBO(TraceMeanField_ELBO()))
    for step in range(num_steps):
        batch = train.batch(torch.randint(len(train), (25,)))
        loss = svi.step(*batch, annealing_factor=min(1.0, 0.1 + 2 * step / num_steps))
        if step % 250 == 0:
            print(f"step {step:5d}   {loss / int(batch.mini_batch_seq_lengths.sum()):.3f} nats a time step")
    bound = evaluate_elbo(dmm, history).total_over_total
    nll = evaluate_importance_nll(dmm, history, num_particles=50).total_over_total
    print(f"new swings: negative ELBO {bound:.3f}, NLL {nll:.3f} nats a time step")

    batch = history.batch(torch.arange(len(history)))
    draws = forecast(dmm, batch, STEPS_AHEAD, num_samples=400, seed=0).numpy()

    def band(level: float) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2), axis=0)
        return low, high

    parts = np.array_split(np.arange(STEPS_AHEAD), 3)
    print("share of the measurements in the band, by steps ahead:")
    print("level " + "".join(f"{f'{part[0] + 1} to {part[-1] + 1}':>10}" for part in parts))
    for level in LEVELS:
        low, high = band(level)
        inside = (low <= later) & (later <= high)
        print(f"{level:5.0%} " + "".join(f"{inside[:, part].mean():10.0%}" for part in parts))

    figure, axes = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    past, ahead = np.arange(-NUM_STEPS + STEPS_AHEAD, STEPS_AHEAD), np.arange(STEPS_AHEAD)
    for d, (ax, name) in enumerate(zip(axes, ("horizontal", "vertical"), strict=True)):
        for level in (0.9, 0.5):
            low, high = band(level)
            ax.fill_between(ahead, low[0, :, d], high[0, :, d], alpha=0.3, color="C0", label=f"{level:.0%}")
        ax.plot(ahead, np.median(draws[:, 0, :, d], axis=0), label="median")
        ax.plot(past, new[0, :, d], "k.", markersize=3, label="measured")
        ax.set_ylabel(name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    axes[1].set_xlabel("time steps from now")
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()
