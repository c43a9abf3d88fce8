"""``python -m benchmarks.guides``: train the six guides, and one or two flows, and compare their bounds.

Each guide is trained for the same number of epochs, with the same seed and schedule, in one thread. The bound
on the validation set is estimated every :data:`EVERY` epochs, and the parameters of the lowest bound are
evaluated on the validation and test sets. Finished runs are kept in a folder and not repeated.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from benchmarks import cases, machine
from benchmarks.baseline import tutorial_mini_batch
from benchmarks.correctness import GRADIENT_FLOOR, LOSS_BOUND, CheckResult, to_double, worst_gradient_error
from benchmarks.precision import IEEE
from benchmarks.quality.to_target import chosen_data
from benchmarks.run import RESULTS, write
from benchmarks.timing import load_average, load_warning
from dmm_fast import ops
from dmm_fast._arguments import INFERENCE
from dmm_fast.data import Batch, Dataset
from dmm_fast.distributions import _drawn_posterior
from dmm_fast.infer import SequenceELBO, evaluate_elbo, evaluate_importance_nll
from dmm_fast.model import DMM
from dmm_fast.training import TrainConfig, Trainer, load_dmm, read_metrics
from dmm_fast.training._runlog import METRICS

SUITE = "cpu-guides"
EVERY = 20
PARTICLES = 100
GUIDES = (*((guide, 0) for guide in INFERENCE), ("st-r", 1), ("st-r", 2))


@dataclass(frozen=True)
class Run:
    """A guide, its number of flows and its recurrent network.

    The networks have tanh nonlinearities: at the learning rate of :meth:`config`, some guides with ReLU
    diverge in the first epochs and recover slowly.
    """

    inference: str
    flows: int
    rnn: str = "tanh"

    @property
    def name(self) -> str:
        """The name in the results."""
        flows = f", {self.flows} flows" if self.flows else ""
        return self.inference + flows + (f", {self.rnn}" if self.rnn != "tanh" else "")

    def config(self, epochs: int, out: Path | None = None) -> TrainConfig:
        """The settings shared by all runs; the weight of the KL terms rises over the first half."""
        return TrainConfig(
            inference=self.inference,
            num_iafs=self.flows,
            rnn=self.rnn,
            num_epochs=epochs,
            annealing_epochs=max(1, epochs // 2),
            minimum_annealing_factor=0.1,
            learning_rate=8e-4,
            lr_schedule="cosine",
            warmup_steps=100,
            eval_frequency=min(EVERY, epochs),
            checkpoint_freq=0,
            out=out,
            resume=out is not None and out.exists(),
            tensorboard=False,
            progress=False,
        )


def trained(run: Run, data_path: Path | None, epochs: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate, unless ``folder`` has the run already; returns the results row."""
    kept = folder / f"{run.inference}-{run.flows}.json"
    if kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return row
    torch.set_num_threads(1)
    data, out = chosen_data(data_path), folder / f"{run.inference}-{run.flows}"
    begun = time.monotonic()
    Trainer(run.config(epochs, out), data).run()
    seconds = time.monotonic() - begun
    best = load_dmm(out / "best.safetensors")
    torch.manual_seed(0)
    row = {
        "suite": SUITE,
        "case": f"{data.name}, {epochs} epochs",
        "impl": run.name,
        "inference": run.inference,
        "flows": run.flows,
        "epochs": epochs,
        "seconds": seconds,
        "particles": PARTICLES,
        "parameters": sum(p.numel() for p in best.parameters()),
        "curve": [point for point in read_metrics(out / METRICS) if "valid" in point],
        **{name: _evaluated(best, getattr(data, name)) for name in ("valid", "test")},
    }
    kept.write_text(json.dumps(row), encoding="utf-8")
    print(f"  {run.name}: test bound {row['test']['bound'][0]:.3f} after {seconds:.0f} s", flush=True)
    return row


def _evaluated(dmm: DMM, split: Any) -> dict[str, list[float]]:
    """Bound and importance-sampled NLL in nats per time step: over all steps, and the mean of averages."""
    bound = evaluate_elbo(dmm, split, num_particles=5)
    return {
        "bound": list(bound),
        "nll": list(evaluate_importance_nll(dmm, split, num_particles=PARTICLES, chunk_size=25)),
    }


def checked(
    run: Run, data: Dataset, device: torch.device | None = None, sizes: Mapping[str, Any] | None = None
) -> list[CheckResult]:
    """Compare loss and gradients in float32 on the first sequences with float64, for the same noise.

    Args:
        run: the guide.
        data: the data set.
        device: by default the CPU.
        sizes: arguments of the model that override those of the run.
    """
    first = torch.arange(min(4, len(data.train)))
    where = f"{data.name}, the first {len(first)} sequences"
    batch = tutorial_mini_batch(first, data.train.sequences, data.train.lengths)
    batch = cases.Case(where, (batch,), data.name, rounds=1).to(device or torch.device("cpu")).batches[0]
    torch.manual_seed(0)
    dmm = DMM(**{**run.config(1).sizes(data.train.sequences.shape[-1]), **(sizes or {})})
    eps = torch.randn(*batch.mini_batch.shape[:2], dmm.z_0.shape[0]).to(batch.mini_batch.device)
    dmm.to(batch.mini_batch.device)
    got = _loss_and_grads(dmm, batch, eps)
    with ops.use_backend("reference"):
        eager = _loss_and_grads(dmm, batch, eps)
        truth = _loss_and_grads(dmm.double(), to_double(batch), eps)
    bound = max(3.0 * worst_gradient_error(eager[1], truth[1]), GRADIENT_FLOOR[IEEE])
    errors = {
        "SVI loss": (abs(got[0] - truth[0]) / abs(truth[0]), LOSS_BOUND[IEEE]),
        "SVI gradients": (worst_gradient_error(got[1], truth[1]), bound),
    }
    return [
        CheckResult(what, run.name, where, error, limit, error <= limit)
        for what, (error, limit) in errors.items()
    ]


def _loss_and_grads(dmm: DMM, batch: Batch, eps: Tensor) -> tuple[float, dict[str, Tensor]]:
    dmm.zero_grad(set_to_none=True)

    def noise(shape: torch.Size, like: Tensor) -> Tensor:
        return eps.to(like.dtype).expand(shape)

    with patch.object(_drawn_posterior, "standard_noise", noise):
        loss = SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, dmm.guide, *batch)
    return float(loss), {name: p.grad.clone() for name, p in dmm.named_parameters() if p.grad is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, train, write. Returns 0, or 1 if a guide does not agree with the reference."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    path = cases.data_file(None if args.data is None else Path(args.data))
    data = chosen_data(path)
    meta = machine.meta(torch.device("cpu"), quick=args.epochs < 100)
    meta["load_warning"] = load_warning(meta["load"], args.jobs, meta["cpus"])
    runs = [Run(*guide) for guide in GUIDES if not args.only or guide[0] in args.only]
    check_results = [result for run in runs for result in checked(run, data)]
    if not all(result.ok for result in check_results):
        print(
            "not trained: a guide does not agree with the reference",
            *check_results,
            sep="\n",
            file=sys.stderr,
        )
        return 1
    args.folder.mkdir(parents=True, exist_ok=True)
    one = partial(trained, data_path=path, epochs=args.epochs, folder=args.folder)
    if args.jobs == 1:
        rows = [one(run) for run in runs]
    else:
        # Spawned, because a process that has used threads must not be forked.
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(one, runs))
    results = {
        "suite": SUITE,
        "meta": meta,
        "correctness": [v.as_dict() for v in check_results],
        "cases": rows,
    }
    meta["load_at_end"] = load_average()
    print(f"\nwritten: {write(results, Path(args.out))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guides", description=__doc__)
    parser.add_argument("--out", default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--folder", type=Path, default=Path("build/guides"), help="folder for the runs")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--epochs", type=int, default=400, help="epochs of each run")
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs, each in one thread")
    parser.add_argument("--only", nargs="*", choices=INFERENCE, help="train these guides only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
