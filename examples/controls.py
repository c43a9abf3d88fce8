"""Blood sugar of patients under insulin, and what it would have been without: controls and counterfactuals.

python examples/controls.py
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

from dmm_fast import DMM
from dmm_fast.data import from_arrays
from dmm_fast.infer import SequenceELBO, counterfactual, evaluate_elbo
from dmm_fast.optim import PyroClippedAdam

NUM_STEPS, START = 48, 24


def doses(num_patients: int, seed: int) -> np.ndarray:
    """``[patients, steps, 1]``: a dose now and then, at random."""
    rng = np.random.default_rng(seed)
    given = rng.random((num_patients, NUM_STEPS, 1)) < 0.15
    return given * rng.uniform(0.5, 1.5, given.shape)


def sugar(dose: np.ndarray, weight: np.ndarray, seed: int) -> np.ndarray:
    """``[patients, steps, 1]``: it drifts up, and falls after a dose, the less the heavier the patient is."""
    rng = np.random.default_rng(seed)
    active, level = np.zeros(len(dose)), rng.normal(8, 1, len(dose))
    levels = []
    for t in range(NUM_STEPS):
        active = 0.7 * active + dose[:, t, 0] * 70 / weight
        level = level + 0.15 * (9 - level) + rng.normal(0, 0.15, len(dose)) - 0.8 * active
        levels.append(level + rng.normal(0, 0.2, len(dose)))
    return np.stack(levels, axis=1)[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description="What would have been under other controls.")
    parser.add_argument("--out", default="controls.png", help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        print("Only a few steps, to see that it runs: the figures mean nothing.")
    pyro.set_rng_seed(0)

    weight = np.random.default_rng(0).uniform(50, 110, 330)
    dose = doses(330, seed=1)
    measured = sugar(dose, weight, seed=2)
    scaled = (weight - 80) / 20
    train = from_arrays(measured[:300], controls=dose[:300], static=scaled[:300])
    new = from_arrays(measured[300:], controls=dose[300:], static=scaled[300:])

    dmm = DMM(
        1, z_dim=6, emission_dim=16, transition_dim=32, rnn_dim=64,
        emission="gaussian", min_scale=1e-3, control_dim=1, static_dim=1,
    )  # fmt: skip
    dmm.standardize(train.sequences, train.lengths)
    num_steps = 5 if args.quick else 1500
    adam = PyroClippedAdam({"lr": 3e-3, "clip_norm": 5.0, "lrd": 0.2 ** (1 / num_steps)})
    svi = SVI(dmm.model, dmm.guide, adam, SequenceELBO(TraceMeanField_ELBO()))
    for step in range(num_steps):
        batch = train.batch(torch.randint(len(train), (30,)))
        loss = svi.step(*batch._replace(annealing_factor=min(1.0, 0.1 + 2 * step / num_steps)))
        if step % 250 == 0:
            print(f"step {step:5d}   {loss / int(batch.mini_batch_seq_lengths.sum()):.3f} nats a step")
    print(f"new patients: {evaluate_elbo(dmm, new).total_over_total:.3f} nats a step")

    batch = new.batch(torch.arange(len(new)))
    none = torch.zeros(len(new), NUM_STEPS - START, 1)
    draws = counterfactual(dmm, batch, none, START, num_samples=300, seed=0).x[..., 0].numpy()
    low, median, high = np.quantile(draws, (0.05, 0.5, 0.95), axis=0)
    # These patients are simulated, so it is known what would have been.
    undosed = dose.copy()
    undosed[:, START:] = 0
    truth = sugar(undosed, weight, seed=2)[300:, START:, 0]
    share = ((low <= truth) & (truth <= high)).mean()
    print(f"{share:.0%} of what would have been lies in the bands of 90%")

    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    times = np.arange(NUM_STEPS)
    who = int(dose[300:, START:].sum((1, 2)).argmax())
    ax.plot(times, measured[300 + who, :, 0], "k.-", label="measured")
    ax.vlines(times, 0, 2 * dose[300 + who, :, 0], color="tab:red", label="dose")
    ax.fill_between(times[START:], low[who], high[who], alpha=0.3, label="without doses, 90%")
    ax.plot(times[START:], median[who], label="median")
    ax.plot(times[START:], truth[who], "k:", label="what would have been")
    ax.axvline(START, color="gray", linewidth=0.8)
    ax.set(xlabel="step", ylabel="blood sugar")
    figure.legend(loc="outside upper center", ncols=5)
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()
