"""The Deep Markov Model: a model and a guide with the signatures of Pyro's example."""

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_one
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dmm_fast import _arguments, _handlers, _step_sites, check
from dmm_fast._parameters import register
from dmm_fast._parts import Parts


class _Annealing(ScaleMessenger):
    """``poutine.scale`` without the multiplication by one, which would be a kernel launch on a GPU.

    It has to be entered outside a plate, whose own scale would otherwise be multiplied with a tensor.
    """

    def _process_message(self, msg: Any) -> None:
        if is_identically_one(msg["scale"]):
            msg["scale"] = self.scale
        else:
            super()._process_message(msg)


class DMM(Parts):
    r"""A Deep Markov Model and its guide, a drop-in replacement for ``DMM`` of Pyro's ``examples/dmm.py``.

    The model is ``z_t ~ N(gated_transition(z_{t-1}))``, ``x_t ~ p(x_t | emitter(z_t))``; the guide
    draws ``z_t ~ N(combiner(z_{t-1}, h_t))`` with ``h_t`` from a recurrent network that reads
    ``x_{t:T}`` backward. Parameter names and initialisation are the example's.

    ``inference`` names the guide, as in table 1 of arXiv 1609.09869. The part after the dash tells the
    observations that h_t summarises: ``r`` (right) x_{t:T}, ``l`` (left) x_{1:t}, ``lr`` both, with two
    networks, ``rnn.left`` and ``rnn.right``, whose outputs are added. The part before the dash tells the
    dependence of z_t on the past:

    * ``st`` (structured): z_t depends on z_{t-1}, ``c_t = (tanh(W z_{t-1} + b) + h_t) / 2``; for ``lr``
      ``c_t = (tanh(W z_{t-1} + b) + h_t^left + h_t^right) / 3``. The default ``"st-r"`` is the paper's DKS.
    * ``mf`` (mean-field): z_t is independent of z_{t-1}, ``c_t = h_t``; for ``lr``
      ``c_t = (h_t^left + h_t^right) / 2``. There is then no ``z_q_0``, all z_t are drawn at once, and
      ``combiner`` is a :class:`~dmm_fast.nn.MeanFieldCombiner`.

    Sites, in plate ``z_minibatch``: ``z`` of event shape ``[T, Z]`` and ``obs_x`` of event shape
    ``[T, D]``; with ``per_step_sites=True`` ``z_1 .. z_T`` and ``obs_x_1 .. obs_x_T`` as in the example,
    which ``TraceTMC_ELBO`` and ``TraceEnum_ELBO`` need. Within the plate of a data set,
    ``pyro.plate("data", N, subsample=indices)``, that plate takes the place of ``z_minibatch``, and each row
    counts N / B times.

    Everything that can be customised in the example can be customised here: activations and layers of the
    networks, hooks, parametrizations, ``emitter``, ``trans`` and ``combiner`` as a whole (with the same
    arguments and results), and the example's own ``model()`` or ``guide()`` in a subclass. A network that is
    unchanged is computed by a fused op; a changed one runs its own ``forward``, for all time steps at once if
    the chain allows it, and a :class:`~dmm_fast.nn.NotFusedWarning` is given once. There are two more ways to
    extend the model:

    * ``rnn`` may be any module with ``forward(x [B, T, D], h_0 [H], lengths [B]) -> [B, T, H]``, or torch's
      ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, which then read in the direction of ``inference``. With ``lr``
      the module receives ``h_0 [2, H]``, for the left and the right network; two networks of torch are
      combined by ``dmm_fast.nn.TwoWayNetwork(left, right)``.
    * :meth:`emission` may be overridden to return any Pyro distribution of batch shape ``[..., B]`` and event
      shape ``[T, D]``, masked by ``lengths`` and ``mask``. Pass ``emission="gaussian"`` with it, so that the
      data are not required to be 0 or 1.

    ``dmm.path_gradient = True`` leaves the score of the guide out of the gradient of a sampled ELBO, see
    :class:`~dmm_fast.distributions.MarkovPosterior`. It concerns the draws of the guide: latents whose values
    are given, as by ``poutine.replay``, keep the whole gradient. It may be set at any time and is not part of
    the ``state_dict()``.

    Args:
        input_dim: number of features ``D`` of x_t.
        z_dim: number of latents ``Z``.
        emission_dim: number of hidden units of the emitter.
        transition_dim: number of hidden units of the gated transition.
        rnn_dim: number of hidden units of the inference network.
        num_layers: number of layers of the inference network; all start from the same ``h_0``.
        rnn_dropout_rate: dropout probability between those layers.
        num_iafs: number of normalizing flows applied to each z_t of the guide.
        iaf_dim: number of hidden units of each flow.
        use_cuda: move the module to the current CUDA device.
        emission: p(x_t | z_t). ``"bernoulli"`` or ``"nade"`` for zeros and ones (independent given z_t, or
            each conditioned on the preceding features of the step), ``"gaussian"`` for real numbers,
            ``"poisson"`` or ``"negative_binomial"`` for counts, ``"categorical"`` for one-hot vectors; or a
            module with ``log_prob(x, z)`` and ``sample(z)``, see
            :class:`~dmm_fast.distributions.ModuleEmission`.
        nade_dim: number of hidden units of a ``"nade"`` emission.
        nade_order: the order of its features, a permutation of ``range(input_dim)``; None: their own order.
        augment: the networks that read x_{t-1} beside the latents: ``"transition"``, ``"emission"`` or
            ``"both"``; None: neither.
        past_dropout_rate: dropout probability of each element of that x_{t-1} in training mode. Transition
            and emission read the same elements; the others are 0, and those that are kept are divided by
            ``1 - past_dropout_rate``, as by ``torch.nn.Dropout``. Data that the model draws are not dropped.
        control_dim: number of controls ``U`` of each step, inputs of transition and guide.
        static_dim: number of covariates ``S`` of each sequence, inputs of transition and guide.
        mask_input: give the guide the mask of observed values as a further input, so that it can tell a
            missing value from 0.
        inference: ``"st-r"``, ``"st-l"``, ``"st-lr"``, ``"mf-r"``, ``"mf-l"`` or ``"mf-lr"``.
        rnn: ``"relu"`` or ``"tanh"`` for an RNN of this package; ``"lstm"`` or ``"gru"`` for torch's.
        per_step_sites: use one sample site per time step instead of one per sequence.
        min_scale: added to the scale of every z_t of the guide and of a Gaussian emission; it bounds the
            log-density of data from above. The scan then has ``z_dim`` more hidden units.
        validate_args: check the values of a mini-batch, not only its shapes. None: check them if they are on
            a CPU, where reading them needs no synchronisation.

    Raises:
        ValueError: an argument is out of range or has the wrong type; the message names it.

    Source: arXiv 1609.09869; Pyro's ``examples/dmm.py``.
    """

    def model(
        self,
        mini_batch: Tensor | None,
        mini_batch_reversed: Tensor | PackedSequence | None = None,
        mini_batch_mask: Tensor | None = None,
        mini_batch_seq_lengths: Tensor | None = None,
        annealing_factor: float | Tensor = 1.0,
        controls: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """p(x_{1:T} | z_{1:T}) p(z_{1:T}), with the log-density of z scaled by ``annealing_factor``.

        Args:
            mini_batch: ``[B, T, D]``, rows in any order; None: draw x instead of observing it.
            mini_batch_reversed: accepted for compatibility with the example; it may be None.
            mini_batch_mask: 0/1, ``[B, T]`` or ``[B, T, D]``; a 0 within a sequence marks a missing
                observation, whose value (even NaN) has no effect on values and gradients.
            mini_batch_seq_lengths: int64 ``[B]``; None: derived from the mask.
            annealing_factor: positive weight of the KL term.
            controls: ``[B, T, U]`` for a model with ``control_dim`` U.
            static: ``[B, S]`` for a model with ``static_dim`` S.

        Returns:
            The observed or drawn x, ``[..., B, T, D]``; with ``per_step_sites`` the list of x_t.

        Raises:
            ValueError: an argument is invalid; the message names it.
        """
        register("dmm", self)
        tensors = (mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths)
        batch = self.mini_batch(*tensors, annealing_factor, controls, static)
        annealing_factor = _arguments.check_annealing_factor(annealing_factor, batch.lengths.shape[0])
        plate = _handlers.rows_plate(batch.lengths.shape[0])
        batch = self._with_dropped_past(batch)
        drawn = _handlers.replayed_sites()
        if "z" not in drawn and ("z_1" in drawn or self.per_step_sites):
            _step_sites.refuse_overridden(self, DMM, "prior", "emission")
            with plate:
                return list(_step_sites.model_steps(self, batch, annealing_factor))
        _handlers.refuse_enumeration()
        if batch.x is None and self.augment is not None:
            expected = "data, or per_step_sites=True: each x_t that is drawn is an input of the next step"
            check.fail("mini_batch", expected, "None")
        inputs = self.transition_inputs(batch)
        with _Annealing(annealing_factor), plate:
            z = pyro.sample("z", self.prior(batch.lengths, batch.T, *([] if inputs is None else [inputs])))
        with plate:
            emission = self.emission(self.emission_inputs(z, batch), batch.lengths, batch.mask)
            x: Tensor = pyro.sample("obs_x", emission, obs=batch.x)
        return x

    def guide(
        self,
        mini_batch: Tensor,
        mini_batch_reversed: Tensor | PackedSequence | None = None,
        mini_batch_mask: Tensor | None = None,
        mini_batch_seq_lengths: Tensor | None = None,
        annealing_factor: float | Tensor = 1.0,
        controls: Tensor | None = None,
        static: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """q(z_{1:T} | x_{1:T}); arguments and errors as for :meth:`model`.

        Returns:
            The drawn z, ``[..., B, T, Z]``; with ``per_step_sites`` the list of z_t.
        """
        register("dmm", self)
        tensors = (mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths)
        batch = self.mini_batch(*tensors, annealing_factor, controls, static)
        annealing_factor = _arguments.check_annealing_factor(annealing_factor, batch.lengths.shape[0])
        h = self.encode(batch)
        plate = _handlers.rows_plate(batch.lengths.shape[0])
        # A subclass may have the example's own model(), which does not accept these two arguments.
        more: tuple[Any, ...] = () if controls is None and static is None else (controls, static)
        if self.per_step_sites or self._own_model_has_step_sites(*tensors, annealing_factor, *more):
            _step_sites.refuse_overridden(self, DMM, "posterior")
            with plate:
                return list(_step_sites.guide_steps(self, batch, h, annealing_factor))
        _handlers.refuse_enumeration()
        posterior = self.posterior(h, batch.lengths)
        if self.path_gradient and not getattr(posterior, "path_gradient", False):
            check.fail("path_gradient", "False, or a posterior() that passes it on", "True")
        with _Annealing(annealing_factor), plate:
            z: Tensor = pyro.sample("z", posterior)
        return z

    def _own_model_has_step_sites(self, *args: Any) -> bool:
        """True if a subclass's ``model()`` draws z_1, z_2 and so on, which the guide then has to draw too."""
        if getattr(self.model, "__func__", None) is DMM.model:
            return False
        if self._model_has_step_sites is None:
            # Set before the model runs, so that a model that calls its guide does not recurse.
            self._model_has_step_sites = False
            devices = [self.z_0.device] if self.z_0.is_cuda else []
            with torch.no_grad(), torch.random.fork_rng(devices=devices), poutine.block():
                sites = poutine.trace(self.model).get_trace(*args).nodes
            self._model_has_step_sites = "z_1" in sites and "z" not in sites
        return self._model_has_step_sites
