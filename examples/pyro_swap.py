"""A training loop written for Pyro's ``examples/dmm.py``, with only the import of ``DMM`` changed.

Everything but ``from dmm_fast import DMM`` and the data is as a script around Pyro's own model has it: packed
reversed mini-batches, ``SVI`` and ``ClippedAdam`` of Pyro, KL annealing, the bound of held-out sequences.
With your copy of Pyro's example the same loop is run with the model of that file too, from the same seed, and
the losses of both are compared step by step:

    python examples/pyro_swap.py [--example dmm.py] [--out pyro_swap.png] [--quick]

It takes about 20 seconds on one CPU thread, and several times as long with ``--example``. The losses fall
from some 60 to some 10 nats a time step, and those of both models agree to about 1e-5 until rounding in the
last bits has grown over the steps. The picture shows them.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam

from dmm_fast import DMM
from dmm_fast.data import Dataset, chorales, get_mini_batch


def train(model: Callable[..., Any], data: Dataset, num_epochs: int) -> tuple[list[float], float]:
    """Train as Pyro's example does: the loss of each SVI step, in nats a time step, and the seconds taken."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    dmm = model(rnn_dropout_rate=0.1)
    adam_params = {
        "lr": 0.0003, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0,
    }  # fmt: skip
    svi = SVI(dmm.model, dmm.guide, ClippedAdam(adam_params), loss=Trace_ELBO())

    sequences, lengths = data.train.sequences, data.train.lengths
    mini_batch_size, annealing_epochs, minimum_annealing_factor = 20, 1000, 0.2
    num_mini_batches = -(-len(lengths) // mini_batch_size)
    losses, start = [], time.perf_counter()
    for epoch in range(num_epochs):
        shuffled = torch.randperm(len(lengths))
        for which, indices in enumerate(shuffled.split(mini_batch_size)):
            progress = (which + epoch * num_mini_batches + 1) / (annealing_epochs * num_mini_batches)
            annealing_factor = minimum_annealing_factor + (1 - minimum_annealing_factor) * progress
            batch = get_mini_batch(indices, sequences, lengths)
            dmm.rnn.train()
            loss = svi.step(*batch, annealing_factor)
            losses.append(loss / float(batch.mini_batch_seq_lengths.sum()))
        print(f"[training epoch {epoch:04d}]  {np.mean(losses[-num_mini_batches:]):.4f}")
    seconds = time.perf_counter() - start
    dmm.rnn.eval()
    held_out = get_mini_batch(torch.arange(len(data.valid)), data.valid.sequences, data.valid.lengths)
    bound = svi.evaluate_loss(*held_out) / float(held_out.mini_batch_seq_lengths.sum())
    print(f"[val epoch {num_epochs - 1:04d}]  {bound:.4f}")
    return losses, seconds


def model_of(path: str) -> Callable[..., Any]:
    """The class ``DMM`` of a copy of Pyro's example, whose own imports need what Pyro's examples need."""
    spec = importlib.util.spec_from_file_location("pyro_example", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--example: expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DMM


def main() -> None:
    parser = argparse.ArgumentParser(description="Pyro's loop with another DMM.")
    parser.add_argument("--example", help="your copy of Pyro's examples/dmm.py, to compare with")
    parser.add_argument("--out", default="pyro_swap.png", help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()

    data = chorales(num_train=40, num_valid=10, num_test=10) if args.quick else chorales()
    models: dict[str, Callable[..., Any]] = {"dmm_fast": DMM}
    if args.example is not None:
        models = {"Pyro's example": model_of(args.example), **models}
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    runs = []
    for (name, model), style in zip(models.items(), ("k-", "C1--")[-len(models) :], strict=True):
        print(f"{name}:")
        losses, seconds = train(model, data, 1 if args.quick else 15)
        print(f"{1e3 * seconds / len(losses):.0f} ms a step")
        ax.plot(losses, style, label=name)
        runs.append(np.array(losses))
    if len(runs) == 2:
        differences = np.abs(runs[0] - runs[1]) / runs[0]
        print(f"at the first step the losses differ by {differences[0]:.1e} of themselves")
        print(f"largest relative difference: {differences.max():.1e}")
    ax.set(xlabel="SVI step", ylabel="loss, nats a time step")
    ax.legend()
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()
