"""An emission of your own: rain, which is zero on dry days and positive on wet ones.

Any module with ``log_prob(x, z)`` and ``sample(z)`` is an emission; the rest of the model keeps its fused
operations. The amount of rain of a day is neither a count nor a plain real number: here it is 0 with a
probability that the latents give, else log-normal. The data are 200 stations under weather that stays for
days. The script prints the NLL of new stations beside that of independent days, which is higher, then how
often it rained on days for which rain was forecast as unlikely, possible and likely: these shares should
rise with the forecast probabilities beside them. The picture has one station's forecast.

    python examples/own_emitter.py [--out own_emitter.png] [--quick]

It takes about half a minute on one CPU thread.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Bernoulli, LogNormal
from torch.nn.functional import softplus

from dmm_fast import DMM
from dmm_fast.data import from_arrays
from dmm_fast.infer import SequenceELBO, evaluate_importance_nll, forecast
from dmm_fast.optim import PyroClippedAdam

NUM_DAYS, DAYS_AHEAD = 80, 5


class RainEmitter(nn.Module):
    """p(x_t | z_t): no rain, or a log-normal amount of it."""

    def __init__(self, input_dim: int, z_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(z_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, 3 * input_dim)

    def distributions(self, z: Tensor) -> tuple[Bernoulli, LogNormal]:
        """Distributions of whether it rains and of how much, each of batch shape ``[..., B, T, D]``."""
        logits, loc, scale = self.output(torch.tanh(self.hidden(z))).chunk(3, dim=-1)
        return Bernoulli(logits=logits), LogNormal(loc, softplus(scale) + 1e-3)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Log-densities in nats, one for each feature, so that single values may be missing."""
        rains, amount = self.distributions(z)
        wet = x > 0
        # Zero is outside the support of the amount, so dry days are given another value there.
        return rains.log_prob(wet.to(x.dtype)) + wet * amount.log_prob(torch.where(wet, x, 1.0))

    def sample(self, z: Tensor) -> Tensor:
        """Draws for all steps at once."""
        rains, amount = self.distributions(z)
        return rains.sample() * amount.sample()


def rain(num_stations: int, seed: int) -> np.ndarray:
    """Millimetres of rain ``[stations, days, 1]`` under weather that changes slowly."""
    rng = np.random.default_rng(seed)
    weather = rng.normal(size=(num_stations, NUM_DAYS))
    for t in range(1, NUM_DAYS):
        weather[:, t] = 0.9 * weather[:, t - 1] + np.sqrt(1 - 0.9**2) * weather[:, t]
    wet = rng.random(weather.shape) < 1 / (1 + np.exp(1 - 3 * weather))
    return (wet * np.exp(1 + 0.7 * weather + 0.5 * rng.normal(size=weather.shape)))[..., None]


def independent_days(train: np.ndarray, new: np.ndarray) -> float:
    """NLL in nats a day of a model of the same form whose days are independent and alike."""
    share, logs = (train > 0).mean(), np.log(train[train > 0])
    rains, amount = Bernoulli(torch.tensor(share)), LogNormal(logs.mean(), logs.std())
    x = torch.from_numpy(new)
    wet = (x > 0).double()
    return -float((rains.log_prob(wet) + wet * amount.log_prob(torch.where(x > 0, x, 1.0))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="An emission of your own.")
    parser.add_argument("--out", default="own_emitter.png", help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    if args.quick:
        print("Only a few steps, to see that it runs: the figures mean nothing.")
    pyro.set_rng_seed(0)

    known, new = rain(200, seed=1), rain(200, seed=2)
    train, history = from_arrays(known), from_arrays(new[:, :-DAYS_AHEAD])

    dmm = DMM(1, z_dim=4, transition_dim=16, rnn_dim=32, rnn="tanh", emission=RainEmitter(1, 4, 16))
    num_steps = 5 if args.quick else 1000
    adam = PyroClippedAdam({"lr": 1e-2, "clip_norm": 5.0, "lrd": 0.1 ** (1 / num_steps)})
    svi = SVI(dmm.model, dmm.guide, adam, SequenceELBO(TraceMeanField_ELBO()))
    for step in range(num_steps):
        batch = train.batch(torch.randint(len(train), (25,)))
        loss = svi.step(*batch, annealing_factor=min(1.0, 0.1 + 2 * step / num_steps))
        if step % 250 == 0:
            print(f"step {step:5d}   {loss / int(batch.mini_batch_seq_lengths.sum()):.3f} nats a day")
    nll = evaluate_importance_nll(dmm, history, num_particles=50).total_over_total
    plain = independent_days(known, new[:, :-DAYS_AHEAD])
    print(f"new stations: {nll:.3f} nats a day; independent days: {plain:.3f}")

    batch = history.batch(torch.arange(len(history)))
    draws = forecast(dmm, batch, DAYS_AHEAD, num_samples=500, seed=0)[..., 0].numpy()
    later = new[:, -DAYS_AHEAD:, 0]
    chance = (draws > 0).mean(0)
    print("forecast probability of rain, and how often it rained:")
    for low, high in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)):
        those = (low < chance) & (chance <= high)
        if those.any():
            print(f"{chance[those].mean():8.0%} {(later[those] > 0).mean():8.0%} of {those.sum()} days")

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    past, ahead = np.arange(-20, DAYS_AHEAD), np.arange(DAYS_AHEAD)
    above.bar(past, new[0, -len(past) :, 0], color="0.3", label="measured")
    above.vlines(ahead, 0, np.quantile(draws[:, 0], 0.9, axis=0), color="C0", linewidth=2, label="up to 90%")
    above.set_ylabel("rain in mm")
    above.legend()
    below.bar(ahead, chance[0])
    below.set(ylabel="probability of rain", xlabel="days from now", ylim=(0, 1))
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()
