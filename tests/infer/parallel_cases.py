"""Cases that a single process and several must compute alike; run by torchrun they write their results.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.infer.parallel_cases results.pt``
"""

import sys
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from dmm_fast import DMM, GraphedSVI, PyroClippedAdam
from dmm_fast.data import SequenceSet
from dmm_fast.infer import DataParallel, ImportanceELBO, evaluate_elbo, evaluate_importance_nll
from dmm_fast.reference import valid_steps

SIZES = {"z_dim": 4, "emission_dim": 5, "transition_dim": 5, "rnn_dim": 6, "rnn": "tanh"}
ADAM = {"lr": 3e-3, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.999, "weight_decay": 0.1}
D, U = 3, 2

Results = dict[str, Any]


def sequences(dtype: torch.dtype, N: int = 23, T: int = 9) -> SequenceSet:
    """Ragged sequences that have controls."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, T + 1, (N,), generator=generator)
    lengths[0] = T
    x = torch.bernoulli(torch.full((N, T, D), 0.3, dtype=dtype), generator=generator)
    controls = torch.randn((N, T, U), generator=generator, dtype=dtype)
    valid = valid_steps(lengths, T)[:, :, None]
    return SequenceSet(x * valid, lengths, controls=controls * valid)


def model(dtype: torch.dtype, **options: Any) -> DMM:
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    return DMM(D, **SIZES, **options).to(dtype)


def results_of(dmm: DMM, losses: list[float]) -> Results:
    return {"losses": losses, **{name: p.detach().clone() for name, p in dmm.state_dict().items()}}


def fifty_steps(ranks: DataParallel, dtype: torch.dtype, elbo: ELBO) -> Results:
    """Steps on mini-batches of an odd number of rows, and of a single one, which leaves a process without."""
    num_iafs = 0 if isinstance(elbo, TraceMeanField_ELBO) else 1
    data, dmm = sequences(dtype), model(dtype, control_dim=U, num_iafs=num_iafs)

    def gather(indices: Tensor, T: int, factor: float) -> tuple[Any, ...]:
        return tuple(data.batch(indices, T)._replace(annealing_factor=factor))

    start = dmm.h_0.detach().clone()
    svi = GraphedSVI(dmm.model, dmm.guide, PyroClippedAdam(ADAM), ranks.elbo(elbo), gather=gather)
    losses = []
    for step in range(50):
        indices = torch.randperm(len(data))[: 1 if step == 5 else 7]
        indices = indices[data.lengths[indices].argsort(descending=True)]
        losses.append(svi.step(indices, int(data.lengths[indices].max()), min(1.0, 0.1 + 0.1 * step)).item())
    assert (dmm.h_0 - start).abs().max() > 0.02  # else equal parameters would say nothing
    return results_of(dmm, losses)


def pyro_svi(ranks: DataParallel) -> Results:
    """``pyro.infer.SVI`` with a packed mini-batch, within a plate that subsamples a data set."""
    data, dmm = sequences(torch.float64), model(torch.float64)

    def in_plate(program: Callable[..., Any]) -> Callable[..., Any]:
        def run(indices: Tensor, *batch: Any) -> Any:
            with pyro.plate("data", len(data), subsample=indices):
                return program(*batch)

        return run

    svi = SVI(in_plate(dmm.model), in_plate(dmm.guide), PyroClippedAdam(ADAM), ranks.elbo(Trace_ELBO()))
    losses = []
    for _ in range(4):
        indices = torch.randperm(len(data))[:6]
        lengths, order = data.lengths[indices].sort(descending=True)
        x, _, mask, *_ = data.batch(indices[order])
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        batch = (indices[order], x, packed, mask, lengths)
        losses += [svi.step(*batch), svi.evaluate_loss(*batch)]
    return results_of(dmm, losses)


def accumulated(ranks: DataParallel) -> Results:
    """Gradients of two losses, one after the other, are added up."""
    data, dmm = sequences(torch.float64), model(torch.float64, control_dim=U)
    elbo: Any = ranks.elbo(Trace_ELBO(num_particles=2))
    for first in (0, 8):
        elbo.loss_and_grads(dmm.model, dmm.guide, *data.batch(torch.arange(first, first + 8)))
    return {name: parameter.grad for name, parameter in dmm.named_parameters()}


def dropout(ranks: DataParallel) -> Results:
    """Dropout between the layers of the package's own recurrent network, and of past data."""
    data = sequences(torch.float64)
    past = {"augment": "both", "past_dropout_rate": 0.3}
    dmm = model(torch.float64, control_dim=U, num_layers=2, rnn_dropout_rate=0.4, **past)
    svi = SVI(dmm.model, dmm.guide, PyroClippedAdam(ADAM), ranks.elbo(Trace_ELBO()))
    return results_of(dmm, [svi.step(*data.batch(torch.randperm(len(data))[:5])) for _ in range(4)])


def evaluations(ranks: DataParallel) -> Results:
    dmm, data = model(torch.float64, control_dim=U), sequences(torch.float64)
    elbo = evaluate_elbo(dmm, data, num_particles=2, mini_batch_size=11, ranks=ranks)
    nll = evaluate_importance_nll(dmm, data, 7, chunk_size=4, mini_batch_size=11, ranks=ranks)
    return {"elbo": list(elbo), "nll": list(nll)}


CASES: dict[str, Callable[[DataParallel], Results]] = {
    "float64": lambda ranks: fifty_steps(ranks, torch.float64, Trace_ELBO()),
    "float32": lambda ranks: fifty_steps(ranks, torch.float32, TraceMeanField_ELBO()),
    "importance": lambda ranks: fifty_steps(ranks, torch.float64, ImportanceELBO(3, "dreg")),
    "pyro_svi": pyro_svi,
    "accumulated": accumulated,
    "dropout": dropout,
    "evaluations": evaluations,
}


def outside(*batch: Any) -> None:
    """A model, and a guide, of which a site is in no plate."""
    pyro.param("p", torch.ones(()))
    pyro.sample("alone", pyro.distributions.Normal(0.0, 1.0))


def order_after_drift(ranks: DataParallel, data: SequenceSet) -> str:
    """The next mini-batch after steps in which the processes draw different amounts of noise."""
    options: dict[str, Any] = {**SIZES, "rnn": "lstm", "num_layers": 2, "rnn_dropout_rate": 0.4}
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    dmm = DMM(D, **options, control_dim=U)
    svi = SVI(dmm.model, dmm.guide, PyroClippedAdam(ADAM), ranks.elbo(Trace_ELBO()))
    for _ in range(2):
        svi.step(*data.batch(torch.arange(5)))
    svi.evaluate_loss(*data.batch(torch.arange(5)))
    return str(torch.randperm(20).tolist())


def refusals(ranks: DataParallel) -> dict[str, str]:
    """Messages of what differs between processes, and of an error of one of them alone."""
    data, messages = sequences(torch.float32), {}
    batch = data.batch(torch.arange(4))
    for name in ("parameters", "arguments"):
        dmm = model(torch.float32, control_dim=U)
        if name == "parameters" and not ranks.is_main:
            dmm = DMM(D, **SIZES, control_dim=U)
        given = data.batch(torch.arange(4) + ranks.rank) if name == "arguments" else batch
        svi = SVI(dmm.model, dmm.guide, PyroClippedAdam(ADAM), ranks.elbo(Trace_ELBO()))
        try:
            svi.step(*given)
        except ValueError as error:
            messages[name] = str(error)
    ranks.broadcast(dmm)  # now they are the same, as the next steps would otherwise tell
    messages["order"] = order_after_drift(ranks, data)
    try:
        SVI(outside, outside, PyroClippedAdam(ADAM), ranks.elbo(Trace_ELBO())).step(*batch)
    except ValueError as error:
        messages["outside"] = str(error)
    for failing in ((0,), (1,), (0, 1)):
        try:
            with ranks.together():
                if ranks.rank in failing:
                    raise ValueError(f"rank {ranks.rank}")
        except Exception as error:
            messages[f"together {failing}"] = f"{type(error).__name__}: {error}"
    mine = torch.tensor([ranks.rank])
    messages["of_main"] = f"{ranks.of_main(mine).item()} {mine.item() - ranks.rank}"
    messages["most"] = str(ranks.most(3 + ranks.rank))
    return messages


def main(path: str) -> None:
    torch.set_num_threads(1)
    with DataParallel() as ranks:
        results: dict[str, Any] = {name: case(ranks) for name, case in CASES.items()}
        results["refusals"] = refusals(ranks)
        torch.save(results, f"{path}.{ranks.rank}")


if __name__ == "__main__":
    main(sys.argv[1])
