"""Forecasts of daily counts in shops, which know the calendar: negative-binomial emissions and controls.

python examples/counts.py
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

from dmm_fast import DMM
from dmm_fast.data import from_arrays
from dmm_fast.infer import SequenceELBO, evaluate_importance_nll, forecast
from dmm_fast.optim import PyroClippedAdam

GOODS = ["bread", "umbrellas"]
DAYS, DAYS_AHEAD = 70, 14
WEEKEND = np.arange(DAYS) % 7 >= 5


def sales(num_shops: int, seed: int) -> np.ndarray:
    """``[shops, days, goods]``: busy weekends, weather that stays for days, and days that vary."""
    rng = np.random.default_rng(seed)
    busy = np.where(WEEKEND, 1.8, 1.0)
    rain = rng.normal(size=(num_shops, DAYS))
    for t in range(1, DAYS):
        rain[:, t] = 0.8 * rain[:, t - 1] + 0.6 * rain[:, t]
    size = rng.uniform(0.5, 2.0, (num_shops, 1))
    means = np.stack([30 * size * busy, 3 * size * np.exp(rain)], axis=-1)
    return rng.poisson(means * rng.gamma(10, 1 / 10, means.shape))


def calendar(num_shops: int) -> torch.Tensor:
    """``[shops, days, 1]``: whether a day is one of a weekend."""
    return torch.tensor(WEEKEND).float()[:, None].expand(num_shops, -1, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecasts of counts.")
    parser.add_argument("--out", default="counts.png", help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        print("Only a few steps, to see that it runs: the figures mean nothing.")
    pyro.set_rng_seed(0)

    train = from_arrays(sales(200, seed=1), controls=calendar(200))
    new, days = sales(40, seed=2), calendar(40)
    history = from_arrays(new[:, :-DAYS_AHEAD], controls=days[:, :-DAYS_AHEAD])
    later, days_ahead = new[:, -DAYS_AHEAD:], days[:, -DAYS_AHEAD:]

    dmm = DMM(
        len(GOODS), z_dim=12, emission_dim=32, transition_dim=48, rnn_dim=64,
        emission="negative_binomial", control_dim=1,
    )  # fmt: skip
    num_steps = 5 if args.quick else 1500
    adam = PyroClippedAdam({"lr": 3e-3, "clip_norm": 5.0, "lrd": 0.2 ** (1 / num_steps)})
    svi = SVI(dmm.model, dmm.guide, adam, SequenceELBO(TraceMeanField_ELBO()))
    for step in range(num_steps):
        batch = train.batch(torch.randint(len(train), (25,)))
        loss = svi.step(*batch._replace(annealing_factor=min(1.0, 0.1 + 2 * step / num_steps)))
        if step % 250 == 0:
            print(f"step {step:5d}   {loss / int(batch.mini_batch_seq_lengths.sum()):.3f} nats a day")
    nll = evaluate_importance_nll(dmm, history, num_particles=50).total_over_total
    print(f"new shops: {nll:.3f} nats a day")

    batch = history.batch(torch.arange(len(history)))
    levels = (0.05, 0.5, 0.95)
    drawn = {"num_samples": 500, "quantiles": levels, "seed": 0}
    bands = forecast(dmm, batch, DAYS_AHEAD, controls=days_ahead, **drawn).numpy()
    inside = (bands[0] <= later) & (later <= bands[2])
    for name, share in zip(GOODS, inside.mean((0, 1)), strict=True):
        print(f"{name}: {share:.0%} of what was sold lies in the bands of 90%")

    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    ahead, past = np.arange(DAYS_AHEAD), np.arange(-28, DAYS_AHEAD)
    for d, (ax, name) in enumerate(zip(axes, GOODS, strict=True)):
        ax.fill_between(ahead, bands[0, 0, :, d], bands[2, 0, :, d], alpha=0.3, step="mid", label="90%")
        ax.step(ahead, bands[1, 0, :, d], where="mid", label="median")
        ax.plot(past, new[0, -len(past) :, d], "k.", label="sold")
        ax.set_ylabel(name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    axes[1].set_xlabel("days from now")
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()
