"""A training run on several GPUs, or on several CPU processes: data parallelism by torchrun.

Each mini-batch is divided among the processes, whose gradients are summed. Only the three lines marked below
differ from a script for one process, and the losses are the same but for rounding, whatever the number of
processes. Started by ``python`` the script trains in one process:

    python examples/multi_gpu.py [--out multi_gpu.png] [--quick]
    torchrun --nproc-per-node 2 examples/multi_gpu.py

Each process takes a GPU of its own; where there are fewer GPUs than processes, all use the CPU. One process
on one CPU thread takes about half a minute and falls from some 60 to some 12 nats a time step. Expect a gain
in speed from large mini-batches: here they have 80 sequences.
"""

import argparse
import time

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import TraceMeanField_ELBO

from dmm_fast import DMM, GraphedSVI, PyroClippedAdam
from dmm_fast.data import chorales
from dmm_fast.infer import DataParallel, evaluate_elbo

MINI_BATCH_SIZE = 80


def main() -> None:
    parser = argparse.ArgumentParser(description="Data-parallel training.")
    parser.add_argument("--out", default="multi_gpu.png", help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    pyro.set_rng_seed(0)  # the same in all processes, so that they draw the same mini-batches

    with DataParallel() as ranks:  # 1: one of the processes that torchrun has started, or the only one
        on_gpu = torch.cuda.device_count() >= ranks.local_size
        data = chorales(num_train=160, num_valid=40, num_test=40).to("cuda" if on_gpu else "cpu")
        dmm = DMM(rnn_dim=200, rnn="tanh", use_cuda=on_gpu)
        ranks.broadcast(dmm)  # 2: all start from the parameters of the first
        num_steps = 3 if args.quick else 200
        adam = PyroClippedAdam(
            {"lr": 3e-3, "clip_norm": 10.0, "lrd": 0.1 ** (1 / num_steps), "capturable": on_gpu}
        )
        # 3: each computes its rows of a mini-batch, and the gradients are summed
        svi = GraphedSVI(dmm.model, dmm.guide, adam, ranks.elbo(TraceMeanField_ELBO()))

        losses, start = [], time.perf_counter()
        for step in range(num_steps):
            indices = torch.randperm(len(data.train))[:MINI_BATCH_SIZE].to(data.train.sequences.device)
            # Sorted by length, every process gets about as much work.
            indices = indices[data.train.lengths[indices].argsort(descending=True)]
            batch = data.train.batch(indices)
            loss = svi.step(*batch, min(1.0, 0.1 + 2 * step / num_steps))
            losses.append(float(loss) / float(batch.mini_batch_seq_lengths.sum()))
            if ranks.is_main and step % 50 == 0:
                print(f"step {step:4d}   {losses[-1]:.4f} nats a time step")
        seconds = time.perf_counter() - start
        bound = evaluate_elbo(dmm, data.valid, ranks=ranks).total_over_total

        if ranks.is_main:  # files and lines come from one process alone
            print(f"{ranks.size} process(es): {1e3 * seconds / num_steps:.0f} ms a step")
            print(f"validation: negative ELBO {bound:.4f} nats a time step")
            figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
            ax.plot(losses)
            ax.set(xlabel="step", ylabel="loss, nats a time step")
            figure.savefig(args.out, dpi=120)
            print(args.out)


if __name__ == "__main__":
    main()
