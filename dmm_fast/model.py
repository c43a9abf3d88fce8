"""The Deep Markov Model as Pyro users know it: a model and a guide with the example's signatures."""

import warnings
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.distributions.util import is_identically_one
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dmm_fast import _arguments, _flows, _handlers, _step_sites, check
from dmm_fast._minibatch import MiniBatch, checked_once
from dmm_fast._parameters import register
from dmm_fast._recurrent import make_network, read
from dmm_fast._units import make_room, units_of
from dmm_fast.distributions import (
    BernoulliEmission,
    GaussianEmission,
    MarkovPosterior,
    MarkovPrior,
    MeanFieldPosterior,
    Units,
)
from dmm_fast.nn import (
    Combiner,
    Emitter,
    GatedTransition,
    GaussianEmitter,
    InferenceNetwork,
    MeanFieldCombiner,
    NotFusedWarning,
    TwoWayNetwork,
    why_not_fused,
)


class _Annealing(ScaleMessenger):
    """``poutine.scale`` that multiplies nothing by one: on a GPU each product of two numbers is a launch.

    It belongs outside of a plate, whose own scale would multiply a tensor.
    """

    def _process_message(self, msg: Any) -> None:
        if is_identically_one(msg["scale"]):
            msg["scale"] = self.scale
        else:
            super()._process_message(msg)


class DMM(nn.Module):
    r"""A Deep Markov Model and its structured guide, drop-in for ``DMM`` of Pyro's ``examples/dmm.py``.

    The model is ``z_t ~ N(gated_transition(z_{t-1}))``, ``x_t ~ p(x_t | emitter(z_t))``; the guide
    draws ``z_t ~ N(combiner(z_{t-1}, h_t))`` with ``h_t`` from a recurrent network that reads
    ``x_{t:T}`` backward. Parameter names and initialisation are the example's.

    ``inference`` names the guide, as table 1 of arXiv 1609.09869 has them. What follows the dash is what h_t
    summarises: ``r`` x_{t:T} (right), ``l`` x_{1:t} (left), ``lr`` both, by two networks, ``rnn.left`` and
    ``rnn.right``, whose outputs are added up. What precedes it is how z_t depends on the past:

    * ``st`` (structured), on z_{t-1}: ``c_t = (tanh(W z_{t-1} + b) + h_t) / 2``, of ``lr``
      ``(tanh(W z_{t-1} + b) + h_t^left + h_t^right) / 3``. ``"st-r"``, the default, is the paper's DKS.
    * ``mf`` (mean-field), not at all: ``c_t = h_t``, of ``lr`` ``(h_t^left + h_t^right) / 2``. There is then
      no ``z_q_0``, all z_t are drawn at once, and ``combiner`` is a :class:`~dmm_fast.nn.MeanFieldCombiner`.

    Sites, in plate ``z_minibatch``: ``z`` of event shape ``[T, Z]`` and ``obs_x`` of event shape
    ``[T, D]``; with ``per_step_sites=True`` ``z_1 .. z_T`` and ``obs_x_1 .. obs_x_T`` as the example
    has them, which is what ``TraceTMC_ELBO`` and ``TraceEnum_ELBO`` need. Within a plate of a data set,
    ``pyro.plate("data", N, subsample=indices)``, the rows are that plate's and count N / B times.

    What of the example may be changed may be changed here: activations and layers of the networks, hooks,
    parametrizations, ``emitter``, ``trans`` and ``combiner`` as a whole (same arguments, same results), and
    the example's own ``model()`` or ``guide()`` in a subclass. An op computes each network that is as it was
    built; any other runs by its own ``forward``, for all time steps at once where the chain allows it, and a
    :class:`~dmm_fast.nn.NotFusedWarning` says so once. Two more ways to extend it:

    * ``rnn`` may be any module with ``forward(x [B, T, D], h_0 [H], lengths [B]) -> [B, T, H]``, or torch's
      ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, which read in the direction of ``inference``. With ``lr`` it is
      given ``h_0 [2, H]``, the left network's and the right one's, and two networks of torch's go into one as
      ``dmm_fast.nn.TwoWayNetwork(left, right)``.
    * :meth:`emission` may be overridden to return any Pyro distribution of batch shape ``[..., B]`` and event
      shape ``[T, D]``, masked by ``lengths`` and ``mask``. With ``emission="gaussian"`` data are not
      expected to be 0 or 1.

    Args:
        input_dim: features ``D`` of x_t.
        z_dim: latents ``Z``.
        emission_dim: hidden units of the emitter.
        transition_dim: hidden units of the gated transition.
        rnn_dim: hidden units of the inference network.
        num_layers: layers of the inference network; all start from the one ``h_0``.
        rnn_dropout_rate: dropout between those layers.
        num_iafs: normalizing flows applied to each z_t of the guide.
        iaf_dim: hidden units of each flow.
        use_cuda: move the module to the current CUDA device.
        emission: ``"bernoulli"`` or ``"gaussian"``.
        inference: ``"st-r"``, ``"st-l"``, ``"st-lr"``, ``"mf-r"``, ``"mf-l"`` or ``"mf-lr"``.
        rnn: ``"relu"`` or ``"tanh"`` for an RNN of the package; ``"lstm"`` or ``"gru"`` for torch's own.
        per_step_sites: one site a time step in place of one a sequence.
        min_scale: added to the scale of every z_t of the guide and of a Gaussian emission; it bounds the
            log-density of data from above. The scan then has ``z_dim`` more hidden units.
        validate_args: check the values of a mini-batch, not only its shapes. None: where reading
            them costs no wait for a device, that is on a CPU.

    Raises:
        ValueError: an argument that is out of range or of another type; the message names it.

    Source: arXiv 1609.09869; Pyro's ``examples/dmm.py``.
    """

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
        emission: str = "bernoulli",
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
            emission=emission,
            inference=inference,
            rnn=rnn,
            per_step_sites=per_step_sites,
            min_scale=min_scale,
            validate_args=validate_args,
        )
        self.input_dim, self.use_cuda, self.min_scale = input_dim, use_cuda, min_scale
        self.per_step_sites, self.validate_args = per_step_sites, validate_args
        self.inference, self._emission, self._said_not_fused = inference, emission, set[str]()
        self._model_has_step_sites: bool | None = None
        # Built in the example's order, so that a seed gives the example's parameters.
        self.emitter: nn.Module = (
            Emitter(input_dim, z_dim, emission_dim)
            if emission == "bernoulli"
            else GaussianEmitter(input_dim, z_dim, emission_dim)
        )
        self.trans: nn.Module = GatedTransition(z_dim, transition_dim)
        guide, _, side = inference.partition("-")
        directions = len(side)
        self.combiner: nn.Module = (
            Combiner(z_dim, rnn_dim, directions)
            if guide == "st"
            else MeanFieldCombiner(z_dim, rnn_dim, directions)
        )
        self._rnn_kind = {"lstm": nn.LSTM, "gru": nn.GRU}.get(rnn, InferenceNetwork)
        direction = {"r": "backward", "l": "forward", "lr": "both"}[side]
        self.rnn = make_network(rnn, input_dim, rnn_dim, num_layers, rnn_dropout_rate, direction)
        self.iafs = [affine_autoregressive(z_dim, hidden_dims=[iaf_dim]) for _ in range(num_iafs)]
        self.iafs_modules = nn.ModuleList(self.iafs)
        self.z_0 = nn.Parameter(torch.zeros(z_dim))
        self.z_q_0 = nn.Parameter(torch.zeros(z_dim)) if guide == "st" else None
        self.h_0 = nn.Parameter(torch.zeros(directions, 1, rnn_dim))  # of lr the left one is first
        self.register_buffer("x_loc", None)
        self.register_buffer("x_scale", None)
        self.register_load_state_dict_pre_hook(make_room)
        if use_cuda:
            self.cuda()

    def model(
        self,
        mini_batch: Tensor | None,
        mini_batch_reversed: Tensor | PackedSequence | None = None,
        mini_batch_mask: Tensor | None = None,
        mini_batch_seq_lengths: Tensor | None = None,
        annealing_factor: float | Tensor = 1.0,
    ) -> Tensor | list[Tensor]:
        """p(x_{1:T} | z_{1:T}) p(z_{1:T}), with the log-density of z scaled by ``annealing_factor``.

        Args:
            mini_batch: ``[B, T, D]``, rows in any order; None draws x instead of observing it.
            mini_batch_reversed: accepted for the example's sake; it may be None.
            mini_batch_mask: 0/1, ``[B, T]`` or ``[B, T, D]``; a 0 within a sequence is a missing
                observation, whose value (NaN, say) leaves no trace.
            mini_batch_seq_lengths: int64 ``[B]``; None: read off the mask.
            annealing_factor: positive, weight of the KL term.

        Returns:
            The observed or drawn x, ``[..., B, T, D]``; with ``per_step_sites`` the list of x_t.

        Raises:
            ValueError: an argument that does not fit; the message names it.
        """
        register("dmm", self)
        batch = self.mini_batch(mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths)
        annealing_factor = _arguments.check_annealing_factor(annealing_factor, batch.lengths.shape[0])
        plate = _handlers.rows_plate(batch.lengths.shape[0])
        drawn = _handlers.replayed_sites()
        if "z" not in drawn and ("z_1" in drawn or self.per_step_sites):
            _step_sites.refuse_overridden(self, DMM, "prior", "emission")
            with plate:
                return list(_step_sites.model_steps(self, batch, annealing_factor))
        _handlers.refuse_enumeration()
        with _Annealing(annealing_factor), plate:
            z = pyro.sample("z", self.prior(batch.lengths, batch.T))
        with plate:
            x: Tensor = pyro.sample("obs_x", self.emission(z, batch.lengths, batch.mask), obs=batch.x)
        return x

    def guide(
        self,
        mini_batch: Tensor,
        mini_batch_reversed: Tensor | PackedSequence | None = None,
        mini_batch_mask: Tensor | None = None,
        mini_batch_seq_lengths: Tensor | None = None,
        annealing_factor: float | Tensor = 1.0,
    ) -> Tensor | list[Tensor]:
        """q(z_{1:T} | x_{1:T}); arguments and errors as for :meth:`model`.

        Returns:
            The drawn z, ``[..., B, T, Z]``; with ``per_step_sites`` the list of z_t.
        """
        register("dmm", self)
        tensors = (mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths)
        batch = self.mini_batch(*tensors)
        annealing_factor = _arguments.check_annealing_factor(annealing_factor, batch.lengths.shape[0])
        h = self.encode(batch)
        plate = _handlers.rows_plate(batch.lengths.shape[0])
        if self.per_step_sites or self._own_model_has_step_sites(*tensors, annealing_factor):
            _step_sites.refuse_overridden(self, DMM, "posterior")
            with plate:
                return list(_step_sites.guide_steps(self, batch, h, annealing_factor))
        _handlers.refuse_enumeration()
        with _Annealing(annealing_factor), plate:
            z: Tensor = pyro.sample("z", self.posterior(h, batch.lengths))
        return z

    def encode(self, batch: MiniBatch) -> Tensor:
        """The inference network's ``h [B, T, H]`` for what :meth:`mini_batch` returns."""
        check.kind("batch", batch, MiniBatch)
        if batch.x is None:
            check.fail("mini_batch", "data for the guide to condition on", "None")
        x = batch.x
        if (units := self._units()) is not None:
            x = torch.where(batch.observed, (x - units.loc) / units.scale, 0.0)
        self._say_unknown_network(self.rnn)
        h_0 = self.h_0.squeeze(1) if self.inference.endswith("-lr") else self.h_0.flatten()
        direction = "forward" if self.inference.endswith("-l") else "backward"
        return read(self.rnn, x, h_0, batch.lengths, direction)

    def prior(self, lengths: Tensor, T: int) -> MarkovPrior:
        """p(z_{1:T}) for rows of the given lengths in a batch of ``T`` steps."""
        return MarkovPrior(self.z_0, self._weights_or_module("trans", GatedTransition), lengths, T)

    def posterior(self, h: Tensor, lengths: Tensor) -> MarkovPosterior | MeanFieldPosterior:
        """q(z_{1:T} | x_{1:T}) from the inference network's ``h [B, T, H]``."""
        if self.z_q_0 is None:
            combiner = self._weights_or_module("combiner", MeanFieldCombiner)
            Z = self.z_0.shape[0]
            return MeanFieldPosterior(h, combiner, Z, lengths, self.iafs, self.min_scale)
        combiner = self._weights_or_module("combiner", Combiner)
        if (why := _flows.why_no_weights(self.iafs)) is not None:
            self._say_not_fused("iafs", why)
        return MarkovPosterior(h, self.z_q_0, combiner, lengths, self.iafs, self.min_scale)

    def emission(
        self, z: Tensor, lengths: Tensor, mask: Tensor | None = None
    ) -> BernoulliEmission | GaussianEmission:
        """p(x_{1:T} | z_{1:T}) for ``z [..., B, T, Z]``; may be overridden, see the class."""
        if not self._is_gaussian:
            emitter = self._weights_or_module("emitter", Emitter)
            return BernoulliEmission(z, emitter, lengths, mask, self.input_dim)
        emitter = self._weights_or_module("emitter", GaussianEmitter)
        units = self._units()
        return GaussianEmission(z, emitter, lengths, mask, self.input_dim, self.min_scale, units)

    @torch.no_grad()
    def standardize(
        self, sequences: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Take the mean and the standard deviation of each feature of a data set for the model's units.

        The networks then read and emit values around 0 of size 1. Everything else stays in the units of the
        data: what :meth:`model` is given, draws, forecasts and reconstructions, and log-densities, which are
        those of the data as they are. The units are buffers, ``x_loc`` and ``x_scale [D]``, and part of the
        ``state_dict()``.

        Args:
            sequences: ``[N, T, D]``; NaN is a missing value.
            lengths: int64 ``[N]``; None: all T.
            mask: ``[N, T]`` or ``[N, T, D]`` of 0 and 1: what is observed. None: all of it.

        Raises:
            ValueError: the emission is not Gaussian or overridden, a shape does not fit, or a feature has no
                mean or standard deviation that the model's dtype holds.
        """
        if not self._is_gaussian:
            check.fail("emission", "'gaussian' for units", repr(self._emission))
        if getattr(self.emission, "__func__", None) is not DMM.emission:
            check.fail("emission", "DMM's own for units", f"{type(self).__name__}.emission()")
        units = units_of(sequences, lengths, mask, self.input_dim, self.z_0.dtype)
        self.x_loc, self.x_scale = (each.to(self.z_0.device) for each in units)

    def mini_batch(
        self,
        mini_batch: Tensor | None,
        mini_batch_reversed: Tensor | PackedSequence | None = None,
        mini_batch_mask: Tensor | None = None,
        mini_batch_seq_lengths: Tensor | None = None,
    ) -> MiniBatch:
        """Check a mini-batch against this model; arguments and errors as for :meth:`model`."""
        return checked_once(
            mini_batch,
            mini_batch_reversed,
            mini_batch_mask,
            mini_batch_seq_lengths,
            input_dim=self.input_dim,
            like=self.z_0,
            boolean=not self._is_gaussian,
            rows=_handlers.rows_in(mini_batch),
            validate=self.validate_args,
        )

    @property
    def _is_gaussian(self) -> bool:
        """Whether the emitter gives ``loc, scale``; a user's own is for the emission that was asked for."""
        if isinstance(self.emitter, Emitter | GaussianEmitter):
            return isinstance(self.emitter, GaussianEmitter)
        return self._emission == "gaussian"

    def _units(self) -> Units | None:
        return None if self.x_loc is None or self.x_scale is None else Units(self.x_loc, self.x_scale)

    def _weights_or_module(self, name: str, kind: type[Any]) -> Any:
        """The weights of a network that an op computes, or the network itself, which is said once."""
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
        """Say that a recurrent network is neither the package's nor one of torch's that was asked for."""
        for each in (rnn.left, rnn.right) if isinstance(rnn, TwoWayNetwork) else (rnn,):
            if not isinstance(each, InferenceNetwork) and type(each) is not self._rnn_kind:
                self._say_not_fused("rnn", f"it is a {type(each).__name__}")

    def _own_model_has_step_sites(self, *args: Any) -> bool:
        """Whether a ``model()`` of a subclass draws z_1, z_2 and so on, which the guide has to draw then."""
        if getattr(self.model, "__func__", None) is DMM.model:
            return False
        if self._model_has_step_sites is None:
            # Also the answer to a model that asks its guide in turn.
            self._model_has_step_sites = False
            devices = [self.z_0.device] if self.z_0.is_cuda else []
            with torch.no_grad(), torch.random.fork_rng(devices=devices), poutine.block():
                sites = poutine.trace(self.model).get_trace(*args).nodes
            self._model_has_step_sites = "z_1" in sites and "z" not in sites
        return self._model_has_step_sites
