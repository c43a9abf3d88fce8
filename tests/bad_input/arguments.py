"""Valid arguments, by the names of function and argument, or by the name of the argument alone."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO

from dmm_fast import DMM, data, distributions, infer, music, nn, optim, training
from dmm_fast.data import Dataset, SequenceSet
from tests.helpers_model import FLOWS, SIZES, make_batch, small_dmm

NEVER_READ = b"a file of the right digest is not read"


def batch() -> data.Batch:
    return make_batch()


def some_set(seed: int = 2) -> SequenceSet:
    made = make_batch(seed=seed)
    return SequenceSet(made.mini_batch, made.mini_batch_seq_lengths)


def dataset() -> Dataset:
    return Dataset("d", some_set(), some_set(3), some_set(4))


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "who": [0, 0, 1],
            "t": pd.to_datetime(["2024-02-28", "2024-02-29", "2024-02-28"]),
            "x": [1.0, float("nan"), 3.0],
            "u": [1, 2, 3],
            "age": [30, 30, 40],
        }
    )


def lengths() -> torch.Tensor:
    return batch().mini_batch_seq_lengths


def rows(last: int, *lead: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 4 * 6 * last).reshape(4, 6, last).expand(*lead, 4, 6, last)


def roll(T: int = 6) -> torch.Tensor:
    return (torch.arange(T * 88).reshape(T, 88) % 7 == 0).float()


class Laplacian(torch.nn.Module):
    """A user-defined emission with the same location for all features."""

    def log_prob(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return -(x - self.mean(z)).abs() - 0.6931471805599453

    def mean(self, z: torch.Tensor) -> torch.Tensor:
        return z.sum(-1, keepdim=True).expand(*z.shape[:-1], SIZES["input_dim"])

    def sample(self, z: torch.Tensor) -> torch.Tensor:
        return self.mean(z) + torch.rand_like(z[..., :1]).log() - torch.rand_like(z[..., :1]).log()


def module_emission() -> distributions.ModuleEmission:
    return distributions.ModuleEmission(rows(3), Laplacian(), lengths(), None, SIZES["input_dim"])


def prior() -> distributions.MarkovPrior:
    return small_dmm().prior(lengths(), 6)


def posterior() -> distributions.MarkovPosterior:
    made = small_dmm().posterior(rows(SIZES["rnn_dim"]), lengths())
    made.rsample()
    return made


def mean_field() -> distributions.MeanFieldPosterior:
    dmm = small_dmm(inference="mf-r")
    combiner = dmm.combiner.weights
    made = distributions.MeanFieldPosterior(rows(SIZES["rnn_dim"]), combiner, SIZES["z_dim"], lengths())
    made.rsample()
    return made


def nade_emission() -> distributions.NadeEmission:
    return distributions.NadeEmission(rows(3), nn.NadeEmitter(5, 3, 4, 6).weights, lengths())


def counts() -> torch.Tensor:
    return torch.arange(4 * 6 * 5.0).reshape(4, 6, 5) % 4


def flowed() -> distributions.FlowedNormal:
    return distributions.FlowedNormal(rows(3)[:, 0], rows(3)[:, 1].exp(), with_flows().iafs)


def two_way() -> nn.TwoWayNetwork:
    return nn.TwoWayNetwork(torch.nn.GRU(5, 7, batch_first=True), nn.InferenceNetwork(5, 7))


def small_config(**settings: Any) -> training.TrainConfig:
    sizes = {name: size for name, size in SIZES.items() if name != "input_dim"}
    quiet = {"num_epochs": 1, "progress": False, "tensorboard": False, "eval_frequency": 0}
    return training.TrainConfig(**{**sizes, **quiet, "num_sequences": 2, **settings})


def saved_run() -> training.Checkpoint:
    dmm = small_dmm()
    return training.Checkpoint(
        sizes=dict(SIZES), config=small_config().saved(), data="a set", model=dmm.state_dict(),
        optimizer=stepped_optimizer(dmm).get_state(), rng={"cpu": torch.get_rng_state()}, epoch=1, step=1,
        order=torch.arange(4), epoch_loss=1.5, best=None, metrics_bytes=0,
    )  # fmt: skip


def stepped_optimizer(dmm: DMM) -> optim.PyroClippedAdam:
    made = optim.PyroClippedAdam({"lr": 1e-3})
    pyro.infer.SVI(dmm.model, dmm.guide, made, Trace_ELBO()).step(*batch())
    return made


def parameter() -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.ones(3))
    made.grad = torch.ones(3)
    return made


def stored_parameter() -> torch.Tensor:
    made = pyro.param("a", torch.ones(3))
    made.grad = torch.ones(3)
    return made


def optimizer() -> optim.ClippedAdam:
    made = optim.ClippedAdam([parameter()])
    made.step()
    return made


def svi() -> Any:
    dmm = small_dmm()
    made = {"model": dmm.model, "guide": dmm.guide, "optim": optim.PyroClippedAdam({"lr": 1e-3})}
    return infer.GraphedSVI(**made, loss=Trace_ELBO())


def metrics() -> list[dict[str, float]]:
    return [{"epoch": 0, "train": 2.0}, {"epoch": 1, "train": 1.0, "valid": 3.0}]


class Response(io.BytesIO):
    """Response of an opener."""

    headers: dict[str, str] = {}  # noqa: RUF012


def with_flows() -> DMM:
    return small_dmm(**FLOWS)


def files() -> None:
    """Write the files that the calls read into the current folder."""
    for name in ("set.npz", "chorales.npz"):
        data.save_npz(dataset(), name)
    frame().to_csv("table.csv", index=False)
    Path("music").mkdir()
    music.write_midi("music/a.mid", music.to_midi(roll()))
    training.save_checkpoint("run.safetensors", saved_run())
    training.save_optimizer("optimizer.safetensors", stepped_optimizer(small_dmm()).get_state())
    Path("jsb_chorales.pickle").write_bytes(NEVER_READ)


INSTANCES: dict[str, Callable[[], Any]] = {
    "training.TrainConfig": small_config,
    "data.LinearGaussianSet": lambda: data.linear_gaussian(2, 3),
    "data.Dataset": dataset,
    "data.SequenceSet": some_set,
    "distributions.BernoulliEmission": lambda: small_dmm().emission(rows(3), lengths()),
    "distributions.GaussianEmission": lambda: small_dmm(emission="gaussian").emission(rows(3), lengths()),
    "distributions.ModuleEmission": module_emission,
    "distributions.NadeEmission": nade_emission,
    "distributions.CategoricalEmission": lambda: distributions.CategoricalEmission(
        rows(3), nn.CategoricalEmitter(5, 3, 4).weights, lengths()
    ),
    "distributions.NegativeBinomialEmission": lambda: distributions.NegativeBinomialEmission(
        rows(3), nn.NegativeBinomialEmitter(5, 3, 4).weights, lengths()
    ),
    "distributions.PoissonEmission": lambda: distributions.PoissonEmission(
        rows(3), nn.PoissonEmitter(5, 3, 4).weights, lengths()
    ),
    "distributions.FlowedNormal": flowed,
    "distributions.MarkovPosterior": posterior,
    "distributions.MeanFieldPosterior": mean_field,
    "distributions.MarkovPrior": prior,
    "distributions.SequenceDistribution": prior,
    "model.DMM.standardize": lambda: small_dmm(emission="gaussian"),
    "infer.DataParallel": infer.DataParallel,
    "infer.GraphedSVI": svi,
    "model.DMM": small_dmm,
    "nn.CategoricalEmitter": lambda: nn.CategoricalEmitter(5, 3, 4),
    "nn.Combiner": lambda: nn.Combiner(3, 7),
    "nn.Emitter": lambda: nn.Emitter(5, 3, 4),
    "nn.GatedTransition": lambda: nn.GatedTransition(3, 6),
    "nn.GaussianEmitter": lambda: nn.GaussianEmitter(5, 3, 4),
    "nn.InferenceNetwork": lambda: nn.InferenceNetwork(5, 7),
    "nn.MeanFieldCombiner": lambda: nn.MeanFieldCombiner(3, 7),
    "nn.NadeEmitter": lambda: nn.NadeEmitter(5, 3, 4, 6),
    "nn.NegativeBinomialEmitter": lambda: nn.NegativeBinomialEmitter(5, 3, 4),
    "nn.PoissonEmitter": lambda: nn.PoissonEmitter(5, 3, 4),
    "nn.TwoWayNetwork": two_way,
    "optim.ClippedAdam": optimizer,
    "optim.PyroClippedAdam": lambda: optim.PyroClippedAdam({"lr": 1e-3}),
}
"""Objects whose methods are called."""

ARGUMENTS: dict[str, Callable[[], Any]] = {
    **{name: lambda size=size: size for name, size in SIZES.items()},
    "annealing_factor": lambda: 0.5,
    "ax": lambda: Figure().subplots(),
    "batch": batch,
    "chunk_size": lambda: 2,
    "config": small_config,
    "data": some_set,
    "device": lambda: "cpu",
    "dmm": small_dmm,
    "emission": lambda: "bernoulli",
    "h": lambda: rows(SIZES["rnn_dim"]),
    "indices": lambda: torch.tensor([2, 0]),
    "lengths": lengths,
    "mini_batch": lambda: batch().mini_batch,
    "mini_batch_mask": lambda: batch().mini_batch_mask,
    "mini_batch_seq_lengths": lengths,
    "num_particles": lambda: 3,
    "num_sequences": lambda: 2,
    "num_steps": lambda: 3,
    "path": lambda: Path("run.safetensors"),
    "roll": roll,
    "sample_shape": lambda: (2,),
    "T": lambda: 6,
    "x": lambda: rows(5),
    "z": lambda: rows(3),
    "z_0": lambda: torch.zeros(3),
    "z_q_0": lambda: torch.zeros(3),
    "z_t": lambda: rows(3),
    "z_t_1": lambda: rows(3),
    "training.load_optimizer.path": lambda: "optimizer.safetensors",
    "training.save_checkpoint.checkpoint": saved_run,
    "training.save_checkpoint.path": lambda: Path("new.safetensors"),
    "training.save_model.path": lambda: Path("new.safetensors"),
    "training.save_optimizer.path": lambda: Path("new.safetensors"),
    "training.save_optimizer.state": lambda: {"a": {"state": {0: {"step": 1}}, "param_groups": []}},
    "training.TrainConfig.annealing_factor.epoch": lambda: 2,
    "training.TrainConfig.annealing_factor.num_mini_batches": lambda: 3,
    "training.TrainConfig.annealing_factor.which_mini_batch": lambda: 1,
    "training.TrainConfig.annealed_steps.num_mini_batches": lambda: 3,
    "training.TrainConfig.data": lambda: "chorales",
    "training.TrainConfig.in_epochs.num_mini_batches": lambda: 3,
    "training.TrainConfig.scheduled_lr.num_mini_batches": lambda: 3,
    "training.TrainConfig.scheduled_lr.step": lambda: 1,
    "data.chorales.num_steps": lambda: (8, 9),
    "data.chorales.num_test": lambda: 1,
    "data.chorales.num_train": lambda: 1,
    "data.chorales.num_valid": lambda: 1,
    "data.Dataset.train": some_set,
    "data.Dataset.valid": some_set,
    "data.Dataset.test": some_set,
    "data.Dataset.name": lambda: "d",
    "data.download.directory": lambda: Path(),
    "data.download.name": lambda: "jsb_chorales",
    "data.download.opener": lambda: lambda url: Response(b"something"),
    "data.download.progress": lambda: False,
    "data.download.sha256": lambda: hashlib.sha256(NEVER_READ).hexdigest(),
    "data.from_arrays.arrays": lambda: [[[1.0, 2.0], [3.0, float("nan")]], [[5.0, 6.0]]],
    "data.from_arrays.controls": lambda: [[1.0, 2.0], [3.0]],
    "data.from_arrays.dtype": lambda: torch.float64,
    "data.from_arrays.static": lambda: [0.5, 1.5],
    "data.from_frame.columns": lambda: ["x"],
    "data.from_frame.controls": lambda: ["u"],
    "data.from_frame.frame": frame,
    "data.from_frame.freq": lambda: "D",
    "data.from_frame.id": lambda: "who",
    "data.from_frame.static": lambda: "age",
    "data.from_frame.time": lambda: "t",
    "data.read_midi_folder.path": lambda: Path("music"),
    "data.read_table.columns": lambda: "x",
    "data.read_table.freq": lambda: "D",
    "data.read_table.id": lambda: "who",
    "data.read_table.path": lambda: Path("table.csv"),
    "data.read_table.time": lambda: "t",
    "data.split.data": some_set,
    "data.split.fractions": lambda: (0.5, 0.25, 0.25),
    "data.SequenceSet.controls": lambda: batch().mini_batch_mask[..., None] * rows(2),
    "data.SequenceSet.static": lambda: rows(2)[:, 0].clone(),
    "data.load.path": lambda: Path("set.npz"),
    "data.save_npz.dataset": dataset,
    "data.save_npz.path": lambda: Path("new.npz"),
    "data.SequenceSet.padded_steps.buckets": lambda: (2, 4),
    "data.SequenceSet.padded_steps.longest": lambda: 3,
    "data.SequenceSet.segments.steps": lambda: 3,
    "data.SequenceSet.sequences": lambda: batch().mini_batch,
    "data.get_mini_batch.mini_batch_indices": lambda: torch.tensor([2, 0]),
    "data.get_mini_batch.seq_lengths": lengths,
    "data.get_mini_batch.sequences": lambda: batch().mini_batch,
    "distributions.BernoulliEmission.log_prob.value": lambda: batch().mini_batch,
    "distributions.BernoulliEmission.emitter": lambda: small_dmm().emitter.weights,
    "distributions.GaussianEmission.log_prob.value": lambda: batch().mini_batch,
    "distributions.GaussianEmission.emitter": lambda: small_dmm(emission="gaussian").emitter.weights,
    "distributions.ModuleEmission.emitter": Laplacian,
    "distributions.ModuleEmission.log_prob.value": lambda: batch().mini_batch,
    "distributions.ModuleEmission.output_dim": lambda: 5,
    "distributions.NadeEmission.log_prob.value": lambda: batch().mini_batch,
    "distributions.NadeEmission.emitter": lambda: nn.NadeEmitter(5, 3, 4, 6).weights,
    "distributions.NadeEmission.order": lambda: torch.tensor([3, 0, 4, 2, 1]),
    "distributions.CategoricalEmission.log_prob.value": lambda: torch.eye(5)[counts()[..., 0].long()],
    "distributions.CategoricalEmission.emitter": lambda: nn.CategoricalEmitter(5, 3, 4).weights,
    "distributions.NegativeBinomialEmission.log_prob.value": counts,
    "distributions.NegativeBinomialEmission.emitter": lambda: nn.NegativeBinomialEmitter(5, 3, 4).weights,
    "distributions.PoissonEmission.log_prob.value": counts,
    "distributions.PoissonEmission.emitter": lambda: nn.PoissonEmitter(5, 3, 4).weights,
    "distributions.FlowedNormal.expand.batch_shape": lambda: (2, 4),
    "distributions.FlowedNormal.flows": lambda: with_flows().iafs,
    "distributions.FlowedNormal.loc": lambda: rows(3)[:, 0],
    "distributions.FlowedNormal.log_prob.value": lambda: rows(3)[:, 0],
    "distributions.FlowedNormal.scale": lambda: rows(3)[:, 1].exp(),
    "distributions.MarkovPosterior.expand.batch_shape": lambda: (2, 4),
    "distributions.MarkovPosterior.flows": lambda: with_flows().iafs,
    "distributions.MarkovPosterior.kl_to.prior": prior,
    "distributions.MarkovPosterior.log_prob.value": lambda: rows(3),
    "distributions.MarkovPosterior.combiner": lambda: small_dmm().combiner.weights,
    "distributions.MarkovPosterior.rsample.sample_shape": lambda: (2,),
    "distributions.MarkovPosterior.sample.sample_shape": lambda: (2,),
    "distributions.MeanFieldPosterior.Z": lambda: 3,
    "distributions.MeanFieldPosterior.combiner": lambda: small_dmm(inference="mf-r").combiner.weights,
    "distributions.MeanFieldPosterior.expand.batch_shape": lambda: (2, 4),
    "distributions.MeanFieldPosterior.flows": lambda: with_flows().iafs,
    "distributions.MeanFieldPosterior.kl_to.prior": prior,
    "distributions.MeanFieldPosterior.log_prob.value": lambda: rows(3),
    "distributions.MeanFieldPosterior.rsample.sample_shape": lambda: (2,),
    "distributions.MeanFieldPosterior.sample.sample_shape": lambda: (2,),
    "distributions.MarkovPrior.kl_from.loc": lambda: rows(3),
    "distributions.MarkovPrior.kl_from.pre_scale": lambda: rows(3),
    "distributions.MarkovPrior.log_prob.value": lambda: rows(3),
    "distributions.MarkovPrior.transition": lambda: small_dmm().trans.weights,
    "distributions.SequenceDistribution.expand.batch_shape": lambda: (2, 4),
    "distributions.SequenceDistribution.log_prob.value": lambda: rows(3),
    "infer.DataParallel.broadcast.module": small_dmm,
    "infer.DataParallel.check_alike.expected": lambda: "the same in all processes",
    "infer.DataParallel.check_alike.name": lambda: "data",
    "infer.DataParallel.elbo.elbo": Trace_ELBO,
    "infer.DataParallel.most.number": lambda: 3,
    "infer.DataParallel.of_main.tensor": lambda: torch.ones(2),
    "infer.DataParallel.share.total": lambda: 4,
    "infer.DataParallel.sum.tensor": lambda: torch.ones(2),
    "infer.GraphedSVI.guide": lambda: small_dmm().guide,
    "infer.GraphedSVI.loss": Trace_ELBO,
    "infer.SequenceELBO.elbo": Trace_ELBO,
    "infer.counterfactual.batch": lambda: (*batch(), 1.0, rows(2)),
    "infer.counterfactual.controls": lambda: rows(2)[:, 2:],
    "infer.counterfactual.dmm": lambda: small_dmm(control_dim=2),
    "infer.counterfactual.start": lambda: 2,
    "infer.GraphedSVI.model": lambda: small_dmm().model,
    "infer.GraphedSVI.optim": lambda: optim.PyroClippedAdam({"lr": 1e-3}),
    "infer.GraphedSVI.step.*": lambda: [*batch(), 0.5],
    "infer.GraphedSVI.steps.batches": lambda: [(*batch(), 0.5), (*batch(), 0.7)],
    "music.to_midi.tempo": lambda: 100.0,
    "music.write_midi.midi": lambda: music.to_midi(roll()),
    "music.write_midi.path": lambda: Path("new.mid"),
    "model.DMM.encode.batch": lambda: small_dmm().mini_batch(*batch()),
    "model.DMM.emission.z": lambda: rows(3),
    "model.DMM.emission_inputs.batch": lambda: small_dmm().mini_batch(*batch()),
    "model.DMM.emission_inputs.z": lambda: rows(3),
    "model.DMM.mini_batch.mini_batch_reversed": lambda: None,
    "model.DMM.posterior.h": lambda: rows(7),
    "model.DMM.prior.T": lambda: 6,
    "model.DMM.transition_inputs.batch": lambda: small_dmm().mini_batch(*batch()),
    "model.DMM.standardize.sequences": lambda: rows(5),
    "model.DMM.model.mini_batch_reversed": lambda: None,
    "nn.Combiner.forward.h_rnn": lambda: rows(7),
    "nn.InferenceNetwork.forward.h_0": lambda: torch.zeros(7),
    "nn.InferenceNetwork.hidden_size": lambda: 7,
    "nn.InferenceNetwork.input_size": lambda: 5,
    "nn.MeanFieldCombiner.forward.h_rnn": lambda: rows(7),
    "nn.TwoWayNetwork.forward.h_0": lambda: torch.zeros(2, 7),
    "nn.NadeEmitter.nade_dim": lambda: 6,
    "nn.TwoWayNetwork.left": lambda: torch.nn.GRU(5, 7, batch_first=True),
    "nn.TwoWayNetwork.right": lambda: nn.InferenceNetwork(5, 7),
    "optim.ClippedAdam.add_param_group.param_group": lambda: {"params": [parameter()], "lr": 0.1},
    "optim.ClippedAdam.load_state_dict.state_dict": lambda: optimizer().state_dict(),
    "optim.ClippedAdam.params": lambda: [parameter()],
    "optim.PyroClippedAdam.__call__.params": lambda: [stored_parameter()],
    "optim.PyroClippedAdam.clip_args": lambda: {"clip_norm": 1.0},
    "optim.PyroClippedAdam.optim_args": lambda: {"lr": 1e-3, "betas": (0.9, 0.99)},
    "music.compare.boundary": lambda: 2,
    "music.compare.panels": lambda: [music.Panel("a", roll())],
    "music.note_range.rolls": lambda: [roll()],
    "music.piano_roll.notes": lambda: (40, 60),
    "music.save_png.dpi": lambda: 20,
    "music.save_png.figure": lambda: Figure(figsize=(1, 1)),
    "music.save_png.path": lambda: Path("new.png"),
    "training.training_curve.metrics": metrics,
    "training.Trainer.data": dataset,
    "training.train.data": dataset,
    "ops.use_backend.name": lambda: "reference",
    "ops.use_backend.ops": lambda: ("rnn_scan",),
}  # fmt: skip
"""Functions that make an argument, under the name of its function and its own, or under its own alone."""
