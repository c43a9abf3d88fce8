"""Forecasts of two sensors' values with gaps in them: a data frame in, bands out.

python examples/gaps.py
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

from dmm_fast import DMM
from dmm_fast.data import from_frame
from dmm_fast.infer import SequenceELBO, evaluate_elbo, forecast
from dmm_fast.optim import PyroClippedAdam

VALUES = ["temperature", "humidity"]
COLUMNS = {"id": "station", "time": "time", "columns": VALUES, "freq": "h"}
NOW = pd.Timestamp("2026-03-04")
STEPS_AHEAD = 24


def measurements(num_stations: int, seed: int) -> pd.DataFrame:
    """Four days of hourly values at each station; a fifth of the rows and of the humidities are missing."""
    rng = np.random.default_rng(seed)
    times = pd.date_range("2026-03-01", periods=96, freq="h")
    frames = []
    for station in range(num_stations):
        day = np.sin(2 * np.pi * (np.arange(96) - rng.normal(9, 0.5)) / 24)
        weather = np.cumsum(rng.normal(0, 0.3, 96))
        temperature = rng.normal(12, 2) + rng.uniform(4, 7) * day + weather + rng.normal(0, 0.3, 96)
        humidity = 70 - 2 * (temperature - 12) + rng.normal(0, 2, 96)
        humidity[rng.random(96) < 0.2] = np.nan
        frame = pd.DataFrame({"temperature": temperature, "humidity": humidity})
        frame.insert(0, "time", times)
        frame.insert(0, "station", station)
        frames.append(frame[rng.random(96) < 0.8])
    return pd.concat(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecasts of series with gaps.")
    parser.add_argument("--out", default="gaps.png", help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        print("Only a few steps, to see that it runs: the figures mean nothing.")
    pyro.set_rng_seed(0)

    train = from_frame(measurements(100, seed=1), **COLUMNS)
    new = measurements(100, seed=2)
    history = from_frame(new[new["time"] < NOW], **COLUMNS)

    dmm = DMM(
        len(VALUES), z_dim=8, emission_dim=32, transition_dim=32, rnn_dim=64,
        emission="gaussian", min_scale=1e-3, mask_input=True, rnn="tanh",
    )  # fmt: skip
    dmm.standardize(train.sequences, train.lengths)
    num_steps = 5 if args.quick else 2500
    adam = PyroClippedAdam({"lr": 1e-2, "clip_norm": 5.0, "lrd": 0.2 ** (1 / num_steps)})
    svi = SVI(dmm.model, dmm.guide, adam, SequenceELBO(TraceMeanField_ELBO()))
    for step in range(num_steps):
        batch = train.batch(torch.randint(len(train), (25,)))
        loss = svi.step(*batch, annealing_factor=min(1.0, 0.1 + 2 * step / num_steps))
        if step % 500 == 0:
            print(f"step {step:5d}   {loss / int(batch.mini_batch_seq_lengths.sum()):.3f} nats an hour")
    print(f"new stations: {evaluate_elbo(dmm, history).total_over_total:.3f} nats an hour")

    batch = history.batch(torch.arange(len(history)))
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    bands = forecast(dmm, batch, STEPS_AHEAD, num_samples=300, quantiles=levels, seed=0)
    later = new[new["time"] >= NOW].assign(hour=lambda f: (f["time"] - NOW) // pd.Timedelta("1h"))
    low, high = bands.numpy()[[0, 4]][:, later["station"], later["hour"]]
    truth = later[VALUES].to_numpy()
    share = ((low <= truth) & (truth <= high))[~np.isnan(truth)].mean()
    print(f"{share:.0%} of what came lies in the bands of 90%")

    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    ahead = np.arange(STEPS_AHEAD)
    shown = new[new["station"] == 0]
    hours = (shown["time"] - NOW) / pd.Timedelta("1h")
    for d, (ax, name) in enumerate(zip(axes, VALUES, strict=True)):
        ax.fill_between(ahead, bands[0, 0, :, d], bands[4, 0, :, d], alpha=0.2, label="90%")
        ax.fill_between(ahead, bands[1, 0, :, d], bands[3, 0, :, d], alpha=0.4, label="50%")
        ax.plot(ahead, bands[2, 0, :, d], label="median")
        ax.plot(hours, shown[name], "k.", markersize=3, label="measured")
        ax.set_ylabel(name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    axes[1].set_xlabel("hours from now")
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()
