"""The parts of a Deep Markov Model: its networks, and the distributions that they parameterise."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.transforms import affine_autoregressive
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dmm_fast import _arguments, _flows, _handlers, check
from dmm_fast._heads import HEADS, Head, checked_emission, make_emitter, name_of
from dmm_fast._inputs import Inputs, one_step_later
from dmm_fast._minibatch import MiniBatch, checked_once
from dmm_fast._recurrent import make_network, read
from dmm_fast._share import dropout
from dmm_fast._units import make_room, units_of
from dmm_fast.distributions import (
    MarkovPosterior,
    MarkovPrior,
    MeanFieldPosterior,
    ModuleEmission,
    SequenceDistribution,
    Units,
)
from dmm_fast.nn import (
    Combiner,
    GatedTransition,
    InferenceNetwork,
    MeanFieldCombiner,
    NotFusedWarning,
    TwoWayNetwork,
    why_not_fused,
)


class Parts(nn.Module):
    """The networks and parameters of a :class:`dmm_fast.DMM`, which documents the arguments."""

    path_gradient: bool = False
    """Whether the gradient of the guide's log-density is its path gradient."""
    nade_order: Tensor | None
    x_loc: Tensor | None
    x_scale: Tensor | None

    def __init__(
        self,
        input_dim: int = 88,
        z_dim: int = 100,
        emission_dim: int = 100,
        transition_dim: int = 200,
        rnn_dim: int = 600,
        num_layers: int = 1,
        rnn_dropout_rate: float = 0.0,
        num_iafs: int = 0,
        iaf_dim: int = 50,
        use_cuda: bool = False,
        *,
        emission: str | nn.Module = "bernoulli",
        nade_dim: int = 100,
        nade_order: Sequence[int] | None = None,
        augment: str | None = None,
        past_dropout_rate: float = 0.0,
        control_dim: int = 0,
        static_dim: int = 0,
        mask_input: bool = False,
        inference: str = "st-r",
        rnn: str = "relu",
        per_step_sites: bool = False,
        min_scale: float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__()
        _arguments.check_constructor(
            input_dim=input_dim,
            z_dim=z_dim,
            num_layers=num_layers,
            rnn_dropout_rate=rnn_dropout_rate,
            num_iafs=num_iafs,
            iaf_dim=iaf_dim,
            use_cuda=use_cuda,
            nade_dim=nade_dim,
            nade_order=nade_order,
            augment=augment,
            past_dropout_rate=past_dropout_rate,
            control_dim=control_dim,
            static_dim=static_dim,
            mask_input=mask_input,
            inference=inference,
            rnn=rnn,
            per_step_sites=per_step_sites,
            min_scale=min_scale,
            validate_args=validate_args,
        )
        self.input_dim, self.use_cuda, self.min_scale = input_dim, use_cuda, min_scale
        self.per_step_sites, self.validate_args = per_step_sites, validate_args
        self.inference, self._emission = inference, checked_emission(emission)
        if nade_order is not None and self._emission != "nade":
            check.fail("nade_order", "None unless emission='nade'", check.describe(nade_order))
        self.augment, self.control_dim, self.static_dim = augment, control_dim, static_dim
        self.past_dropout_rate = past_dropout_rate
        self.inputs = Inputs(input_dim, augment, control_dim, static_dim, mask_input)
        self._said_not_fused = set[str]()
        self._model_has_step_sites: bool | None = None
        # Built in the example's order, so that the same seed gives the example's parameters.
        width = z_dim + self.inputs.width_of_emission
        self.emitter: nn.Module = make_emitter(emission, input_dim, width, emission_dim, nade_dim)
        self.trans: nn.Module = GatedTransition(z_dim, transition_dim, self.inputs.width_of_transition)
        guide, _, side = inference.partition("-")
        directions = len(side)
        self.combiner: nn.Module = (
            Combiner(z_dim, rnn_dim, directions)
            if guide == "st"
            else MeanFieldCombiner(z_dim, rnn_dim, directions)
        )
        self._rnn_kind = {"lstm": nn.LSTM, "gru": nn.GRU}.get(rnn, InferenceNetwork)
        direction = {"r": "backward", "l": "forward", "lr": "both"}[side]
        self.rnn = make_network(
            rnn, self.inputs.width_of_guide, rnn_dim, num_layers, rnn_dropout_rate, direction
        )
        self.iafs = [affine_autoregressive(z_dim, hidden_dims=[iaf_dim]) for _ in range(num_iafs)]
        self.iafs_modules = nn.ModuleList(self.iafs)
        self.z_0 = nn.Parameter(torch.zeros(z_dim))
        self.z_q_0 = nn.Parameter(torch.zeros(z_dim)) if guide == "st" else None
        self.h_0 = nn.Parameter(torch.zeros(directions, 1, rnn_dim))  # for lr: left, right
        order = None if nade_order is None else torch.as_tensor(nade_order, dtype=torch.int64)
        self.register_buffer("nade_order", order)
        self.register_buffer("x_loc", None)
        self.register_buffer("x_scale", None)
        self.register_load_state_dict_pre_hook(make_room)
        if use_cuda:
            self.cuda()

    def encode(self, batch: MiniBatch) -> Tensor:
        """The inference network's ``h [B, T, H]`` for a result of :meth:`mini_batch`."""
        _check_batch(batch)
        if batch.x is None:
            check.fail("mini_batch", "data for the guide to condition on", "None")
        observed = batch.observed if self.inputs.mask_input else None
        x = self.inputs.of_guide(self._in_own_units(batch.x, batch), observed, batch.controls)
        self._say_unknown_network(self.rnn)
        h_0 = self.h_0.squeeze(1) if self.inference.endswith("-lr") else self.h_0.flatten()
        direction = "forward" if self.inference.endswith("-l") else "backward"
        return read(self.rnn, x, h_0, batch.lengths, direction)

    def prior(self, lengths: Tensor, T: int, inputs: Tensor | None = None) -> MarkovPrior:
        """p(z_{1:T}) for rows of the given lengths in a batch of ``T`` steps.

        ``inputs [B, T, X]`` is the result of :meth:`transition_inputs`, for a model with such inputs.
        """
        return MarkovPrior(self.z_0, self._weights_or_module("trans", GatedTransition), lengths, T, inputs)

    def posterior(self, h: Tensor, lengths: Tensor) -> MarkovPosterior | MeanFieldPosterior:
        """q(z_{1:T} | x_{1:T}) from the inference network's ``h [B, T, H]``."""
        if self.z_q_0 is None:
            combiner = self._weights_or_module("combiner", MeanFieldCombiner)
            Z = self.z_0.shape[0]
            return MeanFieldPosterior(
                h, combiner, Z, lengths, self.iafs, self.min_scale, path_gradient=self.path_gradient
            )
        combiner = self._weights_or_module("combiner", Combiner)
        if (why := _flows.why_no_weights(self.iafs)) is not None:
            self._say_not_fused("iafs", why)
        return MarkovPosterior(
            h, self.z_q_0, combiner, lengths, self.iafs, self.min_scale, path_gradient=self.path_gradient
        )

    def emission(self, z: Tensor, lengths: Tensor, mask: Tensor | None = None) -> SequenceDistribution:
        """p(x_{1:T} | z_{1:T}) for ``z [..., B, T, Z]``; may be overridden, see the class.

        If the emission depends on past data, ``z`` is the result of :meth:`emission_inputs`.
        """
        head = self._head
        if head is None:
            return ModuleEmission(z, self.emitter, lengths, mask, self.input_dim)
        emitter, more = self._weights_or_module("emitter", head.emitter), dict[str, Any]()
        if head is HEADS["gaussian"]:
            more = {"min_scale": self.min_scale, "units": self._units()}
        elif head is HEADS["nade"]:
            more = {"order": self.nade_order}
            if emitter is self.emitter:
                more |= {"read": emitter.read, "write": emitter.write}
        return head.distribution(z, emitter, lengths, mask, self.input_dim, **more)

    def transition_inputs(self, batch: MiniBatch) -> Tensor | None:
        """``[B, T, X]``: inputs of the transition beside z_{t-1}, past data and controls; None if X = 0."""
        _check_batch(batch)
        return self.inputs.of_transition(self._past(batch), batch.controls)

    def emission_inputs(self, z: Tensor, batch: MiniBatch) -> Tensor:
        """``z [..., B, T, Z]``, concatenated with x_{t-1} if the emission depends on it."""
        check.sequences("z", z)
        _check_batch(batch)
        return self.inputs.of_emission(z, self._past(batch))

    @torch.no_grad()
    def standardize(
        self, sequences: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Use the mean and the standard deviation of each feature of a data set as the model's units.

        The networks then read and emit standardised values. Everything else stays in the units of the data:
        the arguments of :meth:`model`, draws, forecasts, reconstructions and log-densities. The units are
        buffers, ``x_loc`` and ``x_scale [D]``, and part of the ``state_dict()``.

        Args:
            sequences: ``[N, T, D]``; NaN is a missing value.
            lengths: int64 ``[N]``; None: all T.
            mask: ``[N, T]`` or ``[N, T, D]`` of 0 and 1, 1 at observed entries. None: all observed.

        Raises:
            ValueError: the emission is not Gaussian or is overridden, a shape is wrong, or a feature's mean
                or standard deviation cannot be represented in the model's dtype.
        """
        if not self._has_units:
            check.fail("emission", "'gaussian' for units", repr(name_of(self.emitter, self._emission)))
        if getattr(self.emission, "__func__", None) is not Parts.emission:
            check.fail("emission", "DMM's own for units", f"{type(self).__name__}.emission()")
        units = units_of(sequences, lengths, mask, self.input_dim, self.z_0.dtype)
        self.x_loc, self.x_scale = (each.to(self.z_0.device) for each in units)

    def mini_batch(
        self,
        mini_batch: Tensor | None,
        mini_batch_reversed: Tensor | PackedSequence | None = None,
        mini_batch_mask: Tensor | None = None,
        mini_batch_seq_lengths: Tensor | None = None,
        annealing_factor: float | Tensor = 1.0,
        controls: Tensor | None = None,
        static: Tensor | None = None,
    ) -> MiniBatch:
        """Check a mini-batch against this model; arguments and errors as for :meth:`model`.

        The annealing factor is accepted for convenience and ignored.
        """
        return checked_once(
            mini_batch,
            mini_batch_reversed,
            mini_batch_mask,
            mini_batch_seq_lengths,
            controls,
            static,
            input_dim=self.input_dim,
            like=self.z_0,
            kind="real" if self._head is None else self._head.values,
            control_dim=self.control_dim,
            static_dim=self.static_dim,
            rows=_handlers.rows_in(mini_batch),
            validate=self.validate_args,
        )

    @property
    def _has_units(self) -> bool:
        """True if the data can have units, that is for a Gaussian emission."""
        return self._head is HEADS["gaussian"]

    @property
    def _head(self) -> Head | None:
        """The emission of the emitter if it is one of the package's; None for a user's module."""
        return HEADS.get(name_of(self.emitter, self._emission))

    def _past(self, batch: MiniBatch) -> Tensor | None:
        """``x_{t-1} [B, T, D]`` in the units of the networks; None if no network reads it."""
        if self.augment is None or batch.x is None:
            return None
        if batch.past is not None:
            return batch.past
        return one_step_later(self._in_own_units(batch.x, batch))

    def _with_dropped_past(self, batch: MiniBatch) -> MiniBatch:
        """``batch`` with the x_{t-1} of a training step, in which dropout has zeroed some elements."""
        if not self.training or self.past_dropout_rate == 0 or (past := self._past(batch)) is None:
            return batch
        return batch._replace(past=dropout(past, self.past_dropout_rate, self.training))

    def _in_own_units(self, x: Tensor, batch: MiniBatch) -> Tensor:
        """Data in the units of the networks, with 0 at unobserved entries."""
        units = self._units()
        return x if units is None else torch.where(batch.observed, (x - units.loc) / units.scale, 0.0)

    def _units(self) -> Units | None:
        return None if self.x_loc is None or self.x_scale is None else Units(self.x_loc, self.x_scale)

    def _weights_or_module(self, name: str, kind: type[Any]) -> Any:
        """A network's weights if an op can compute it, else the network itself, with one warning."""
        network = getattr(self, name)
        why = why_not_fused(network, kind)
        if why is None:
            return network.weights
        self._say_not_fused(name, why)
        return network

    def _say_not_fused(self, name: str, why: str) -> None:
        message = f"{name} is computed by its own forward, slower than by an op of dmm_fast: {why}"
        if message not in self._said_not_fused:
            self._said_not_fused.add(message)
            warnings.warn(message, NotFusedWarning, stacklevel=3)

    def _say_unknown_network(self, rnn: nn.Module) -> None:
        """Warn of a recurrent network that is neither the package's nor the one of torch named by ``rnn``."""
        for each in (rnn.left, rnn.right) if isinstance(rnn, TwoWayNetwork) else (rnn,):
            if not isinstance(each, InferenceNetwork) and type(each) is not self._rnn_kind:
                self._say_not_fused("rnn", f"it is a {type(each).__name__}")


def _check_batch(batch: object) -> None:
    """Check the types of a result of :meth:`Parts.mini_batch`."""
    check.kind("batch", batch, MiniBatch)
    assert isinstance(batch, MiniBatch)
    check.kind("batch.controls", batch.controls, Tensor, type(None))
