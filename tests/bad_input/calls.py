"""Every public function above the ops, found when this runs, and arguments with which it can be called.

A function is known by its module and name (``infer.forecast``), a method by its class too
(``model.DMM.guide``), a constructor by the class (``model.DMM``). An argument is looked up first under the
name of its function (``infer.forecast.num_steps``), then under its own (``num_steps``), and is otherwise
left at its default. A function is covered when all it requires is found.
"""

import dataclasses
import hashlib
import importlib
import inspect
import io
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO

import dmm_fast
from dmm_fast import DMM, checkpoint, config, data, distributions, midi, nn, optim, plots
from dmm_fast.data import Dataset, SequenceSet
from tests.helpers_model import FLOWS, SIZES, make_batch, small_dmm

INTERNAL_MODULES = {
    "capturable", "check", "cli", "commands", "cuda", "data.files", "data.harmony", "elbo", "gallery", "held",
    "interrupt", "kernels", "library", "native", "ops", "parameters", "products", "reference", "runlog",
}  # fmt: skip
"""Modules that users do not call: what goes into them is checked above them. The ops have tests of their own."""

NOT_CALLED = {
    "distributions.SequenceDistribution": "a base class",
    "distributions.SequenceDistribution.rsample": "a base class",
    "graphed.CudaGraphs": "needs a GPU",
    "graphed.CudaGraphs.run": "needs a GPU",
    "graphed.CudaGraphs.capture": "needs a GPU",
    "train.Trainer.run": "takes no arguments",
}
"""Public functions that are not called here, with the reason."""

SLOW = {"train.train", "train.Trainer", "data.chorales.chorales", "plots.save_png", "plots.compare"}
"""A tenth of the tries is for these."""


NEVER_READ = b"a file of the right digest is not read"


class Call(NamedTuple):
    """A function and what makes arguments for it."""

    name: str
    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """Call the function; the arguments under ``*`` are positional."""
        named = {name: value for name, value in arguments.items() if name != "*"}
        return self.function(*arguments.get("*", ()), **named)


def batch() -> data.Batch:
    return make_batch()


def some_set(seed: int = 2) -> SequenceSet:
    made = make_batch(seed=seed)
    return SequenceSet(made.mini_batch, made.mini_batch_seq_lengths)


def dataset() -> Dataset:
    return Dataset("d", some_set(), some_set(3), some_set(4))


def lengths() -> torch.Tensor:
    return batch().mini_batch_seq_lengths


def rows(last: int, *lead: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 4 * 6 * last).reshape(4, 6, last).expand(*lead, 4, 6, last)


def roll(T: int = 6) -> torch.Tensor:
    return (torch.arange(T * 88).reshape(T, 88) % 7 == 0).float()


def prior() -> distributions.MarkovPrior:
    return small_dmm().prior(lengths(), 6)


def posterior() -> distributions.MarkovPosterior:
    made = small_dmm().posterior(rows(SIZES["rnn_dim"]), lengths())
    made.rsample()
    return made


def small_config(**settings: Any) -> config.TrainConfig:
    sizes = {name: size for name, size in SIZES.items() if name != "input_dim"}
    quiet = {"num_epochs": 1, "progress": False, "tensorboard": False, "eval_frequency": 0}
    return config.TrainConfig(**{**sizes, **quiet, "num_sequences": 2, **settings})


def saved_run() -> checkpoint.Checkpoint:
    dmm = small_dmm()
    return checkpoint.Checkpoint(
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
    return dmm_fast.infer.GraphedSVI(**made, loss=Trace_ELBO())


class Response(io.BytesIO):
    """What an opener gives."""

    headers: dict[str, str] = {}  # noqa: RUF012


def with_flows() -> DMM:
    return small_dmm(**FLOWS)


def files() -> None:
    """Write the files that the calls read into the current folder."""
    for name in ("set.npz", "chorales.npz"):
        data.save_npz(dataset(), name)
    checkpoint.save("run.safetensors", saved_run())
    checkpoint.save_optimizer("optimizer.safetensors", stepped_optimizer(small_dmm()).get_state())
    Path("jsb_chorales.pickle").write_bytes(NEVER_READ)


INSTANCES: dict[str, Callable[[], Any]] = {
    "config.TrainConfig": small_config,
    "data.linear_gaussian.LinearGaussianSet": lambda: data.linear_gaussian(2, 3),
    "data.sequences.Dataset": dataset,
    "data.sequences.SequenceSet": some_set,
    "distributions.BernoulliEmission": lambda: small_dmm().emission(rows(3), lengths()),
    "distributions.GaussianEmission": lambda: small_dmm(emission="gaussian").emission(rows(3), lengths()),
    "distributions.MarkovPosterior": posterior,
    "distributions.MarkovPrior": prior,
    "distributions.SequenceDistribution": prior,
    "graphed.GraphedSVI": svi,
    "model.DMM": small_dmm,
    "nn.Combiner": lambda: nn.Combiner(3, 7),
    "nn.Emitter": lambda: nn.Emitter(5, 3, 4),
    "nn.GatedTransition": lambda: nn.GatedTransition(3, 6),
    "nn.GaussianEmitter": lambda: nn.GaussianEmitter(5, 3, 4),
    "nn.InferenceNetwork": lambda: nn.InferenceNetwork(5, 7),
    "optim.ClippedAdam": optimizer,
    "optim.PyroClippedAdam": lambda: optim.PyroClippedAdam({"lr": 1e-3}),
}
"""What methods are called on."""

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
    "checkpoint.build_dmm.sizes": lambda: dict(SIZES),
    "checkpoint.load_optimizer.path": lambda: "optimizer.safetensors",
    "checkpoint.load_state.state": lambda: small_dmm().state_dict(),
    "checkpoint.save.checkpoint": saved_run,
    "checkpoint.save.path": lambda: Path("new.safetensors"),
    "checkpoint.save_model.path": lambda: Path("new.safetensors"),
    "checkpoint.save_optimizer.path": lambda: Path("new.safetensors"),
    "checkpoint.save_optimizer.state": lambda: {"a": {"state": {0: {"step": 1}}, "param_groups": []}},
    "config.TrainConfig.annealing_factor.epoch": lambda: 2,
    "config.TrainConfig.annealing_factor.num_mini_batches": lambda: 3,
    "config.TrainConfig.annealing_factor.which_mini_batch": lambda: 1,
    "config.TrainConfig.data": lambda: "chorales",
    "config.TrainConfig.scheduled_lr.num_mini_batches": lambda: 3,
    "config.TrainConfig.scheduled_lr.step": lambda: 1,
    "data.chorales.chorale_voices.num_chorales": lambda: 1,
    "data.chorales.chorale_voices.num_steps": lambda: (8, 9),
    "data.chorales.chorales.num_steps": lambda: (8, 9),
    "data.chorales.chorales.num_test": lambda: 1,
    "data.chorales.chorales.num_train": lambda: 1,
    "data.chorales.chorales.num_valid": lambda: 1,
    "data.download.download.directory": lambda: Path(),
    "data.download.download.name": lambda: "jsb_chorales",
    "data.download.download.opener": lambda: lambda url: Response(b"something"),
    "data.download.download.progress": lambda: False,
    "data.download.download.sha256": lambda: hashlib.sha256(NEVER_READ).hexdigest(),
    "data.music.load.path": lambda: Path("set.npz"),
    "data.music.read_notes.file": lambda: io.BytesIO(b"}(U\x05train](](](K<eeeU\x05valid](](](K<eeeU\x04test](](](K<eeeu."),
    "data.music.save_npz.dataset": dataset,
    "data.music.save_npz.path": lambda: Path("new.npz"),
    "data.sequences.SequenceSet.padded_steps.buckets": lambda: (2, 4),
    "data.sequences.SequenceSet.padded_steps.longest": lambda: 3,
    "data.sequences.SequenceSet.sequences": lambda: batch().mini_batch,
    "data.sequences.get_mini_batch.mini_batch_indices": lambda: torch.tensor([2, 0]),
    "data.sequences.get_mini_batch.seq_lengths": lengths,
    "data.sequences.get_mini_batch.sequences": lambda: batch().mini_batch,
    "distributions.BernoulliEmission.log_prob.value": lambda: batch().mini_batch,
    "distributions.BernoulliEmission.weights": lambda: small_dmm().emitter.weights,
    "distributions.GaussianEmission.log_prob.value": lambda: batch().mini_batch,
    "distributions.GaussianEmission.weights": lambda: small_dmm(emission="gaussian").emitter.weights,
    "distributions.MarkovPosterior.expand.batch_shape": lambda: (2, 4),
    "distributions.MarkovPosterior.flows": lambda: with_flows().iafs,
    "distributions.MarkovPosterior.kl_to.prior": prior,
    "distributions.MarkovPosterior.log_prob.value": lambda: rows(3),
    "distributions.MarkovPosterior.weights": lambda: small_dmm().combiner.weights,
    "distributions.MarkovPrior.log_prob.value": lambda: rows(3),
    "distributions.MarkovPrior.weights": lambda: small_dmm().trans.weights,
    "distributions.SequenceDistribution.expand.batch_shape": lambda: (2, 4),
    "distributions.standard_noise.like": lambda: torch.zeros(1),
    "distributions.standard_noise.shape": lambda: torch.Size((2, 3, 4)),
    "graphed.GraphedSVI.guide": lambda: small_dmm().guide,
    "graphed.GraphedSVI.loss": Trace_ELBO,
    "graphed.GraphedSVI.model": lambda: small_dmm().model,
    "graphed.GraphedSVI.optim": lambda: optim.PyroClippedAdam({"lr": 1e-3}),
    "graphed.GraphedSVI.step.*": lambda: [*batch(), 0.5],
    "midi.to_midi.tempo": lambda: 100.0,
    "midi.write_midi.midi": lambda: midi.to_midi(roll()),
    "midi.write_midi.path": lambda: Path("new.mid"),
    "model.DMM.model.mini_batch_reversed": lambda: None,
    "nn.Combiner.forward.h_rnn": lambda: rows(7),
    "nn.InferenceNetwork.forward.h_0": lambda: torch.zeros(7),
    "nn.InferenceNetwork.hidden_size": lambda: 7,
    "nn.InferenceNetwork.input_size": lambda: 5,
    "observations.observe.boolean": lambda: True,
    "observations.observe.input_dim": lambda: 5,
    "observations.observe.like": lambda: torch.zeros(3),
    "observations.observe.mini_batch_reversed": lambda: None,
    "observations.observe.validate": lambda: None,
    "optim.ClippedAdam.add_param_group.param_group": lambda: {"params": [parameter()], "lr": 0.1},
    "optim.ClippedAdam.load_state_dict.state_dict": lambda: optimizer().state_dict(),
    "optim.ClippedAdam.params": lambda: [parameter()],
    "optim.PyroClippedAdam.__call__.params": lambda: [stored_parameter()],
    "optim.PyroClippedAdam.clip_args": lambda: {"clip_norm": 1.0},
    "optim.PyroClippedAdam.optim_args": lambda: {"lr": 1e-3, "betas": (0.9, 0.99)},
    "plots.compare.boundary": lambda: 2,
    "plots.compare.panels": lambda: [plots.Panel("a", roll())],
    "plots.note_range.rolls": lambda: [roll()],
    "plots.piano_roll.notes": lambda: (40, 60),
    "plots.save_png.dpi": lambda: 20,
    "plots.save_png.figure": lambda: Figure(figsize=(1, 1)),
    "plots.save_png.path": lambda: Path("new.png"),
    "plots.training_curve.metrics": lambda: [{"epoch": 0, "train": 2.0}, {"epoch": 1, "train": 1.0, "valid": 3.0}],
    "train.Trainer.data": dataset,
    "train.fingerprint.data": dataset,
    "train.train.data": dataset,
    "ops.use_backend.name": lambda: "reference",
    "ops.use_backend.ops": lambda: ("rnn_scan",),
}  # fmt: skip
"""What makes an argument, under the name of its function and its own, or under its own alone."""


def public_calls() -> tuple[list[Call], list[str]]:
    """All calls that are covered, and the names of the public functions that are not."""
    calls, uncovered = [], []
    for name, function, instance in _public_functions():
        if name in NOT_CALLED:
            continue
        arguments = _arguments_of(name, function, instance)
        if arguments is None:
            uncovered.append(name)
        else:
            calls.append(Call(name, _Bound(function, instance), arguments))
    return calls, uncovered


class _Bound:
    """A function, or a method of an instance made for each call; a context manager is left at once."""

    def __init__(self, function: Callable[..., Any], instance: Callable[[], Any] | None) -> None:
        self._function, self._instance = function, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._instance is not None:
            return self._function(self._instance(), *args, **kwargs)
        made = self._function(*args, **kwargs)
        if isinstance(made, dmm_fast.use_backend):
            with made:
                return None
        return made


def _public_functions() -> Iterator[tuple[str, Callable[..., Any], Callable[[], Any] | None]]:
    yield "ops.use_backend", dmm_fast.use_backend, None
    for info in pkgutil.walk_packages(dmm_fast.__path__, "dmm_fast."):
        stem = info.name.removeprefix("dmm_fast.")
        if (
            info.ispkg
            or stem.startswith("_")
            or any(stem == name or stem.startswith(f"{name}.") for name in INTERNAL_MODULES)
        ):
            continue
        module = importlib.import_module(info.name)
        for name, thing in sorted(vars(module).items()):
            if name.startswith("_") or getattr(thing, "__module__", None) != info.name:
                continue
            if inspect.isclass(thing):
                yield from _of_class(f"{stem}.{name}", thing)
            elif inspect.isfunction(thing):
                yield f"{stem}.{name}", thing, None


def _of_class(name: str, cls: type) -> Iterator[tuple[str, Callable[..., Any], Callable[[], Any] | None]]:
    """The constructor, if it checks anything, and the methods that have arguments."""
    if issubclass(cls, BaseException) or getattr(cls, "_is_protocol", False):
        return
    holds_alone = dataclasses.is_dataclass(cls) and not hasattr(cls, "__post_init__")
    if not issubclass(cls, tuple) and not holds_alone:
        yield name, cls, None
    for method, function in sorted(vars(cls).items()):
        is_public = not method.startswith("_") or method == "__call__"
        if is_public and inspect.isfunction(function) and len(inspect.signature(function).parameters) > 1:
            yield f"{name}.{method}", function, INSTANCES.get(name, lambda: None)


def _arguments_of(
    name: str, function: Callable[..., Any], instance: Callable[[], Any] | None
) -> Callable[[], dict[str, Any]] | None:
    """What makes all arguments of a function; None if it requires one that is not known here."""
    if instance is not None and name.rpartition(".")[0] not in INSTANCES:
        return None
    makers: dict[str, Callable[[], Any]] = {}
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters if instance is None else parameters[1:]:
        key = "*" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name
        if f"{name}.{key}" in ARGUMENTS:
            makers[key] = ARGUMENTS[f"{name}.{key}"]
        elif parameter.default is not parameter.empty:
            makers[key] = ARGUMENTS.get(key, lambda default=parameter.default: default)
        elif key in ARGUMENTS:
            makers[key] = ARGUMENTS[key]
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
    return lambda: {key: make() for key, make in makers.items()}
