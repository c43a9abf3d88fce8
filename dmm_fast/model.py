"""The Deep Markov Model as Pyro users know it: a model and a guide with the example's signatures."""

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.distributions.util import is_identically_one
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dmm_fast import check
from dmm_fast.distributions import (
    BernoulliEmission,
    GaussianEmission,
    MarkovPosterior,
    MarkovPrior,
)
from dmm_fast.nn import Combiner, Emitter, GatedTransition, GaussianEmitter, InferenceNetwork
from dmm_fast.observations import Observations, observe
from dmm_fast.parameters import register


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

    Sites, in plate ``z_minibatch``: ``z`` of event shape ``[T, Z]`` and ``obs_x`` of event shape
    ``[T, D]``; with ``per_step_sites=True`` ``z_1 .. z_T`` and ``obs_x_1 .. obs_x_T`` as the example
    has them, which is what ``TraceTMC_ELBO`` and ``TraceEnum_ELBO`` need.

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
        per_step_sites: one site a time step in place of one a sequence.
        validate_args: check the values of a mini-batch, not only its shapes. None: where reading
            them costs no wait for a device, that is on a CPU.

    Raises:
        ValueError: a size that is not positive, an unknown emission.

    Source: arXiv 1609.09869; Pyro's ``examples/dmm.py``.
    """

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
        per_step_sites: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__()
        if emission not in ("bernoulli", "gaussian"):
            check.fail("emission", "'bernoulli' or 'gaussian'", repr(emission))
        if num_iafs < 0:
            check.fail("num_iafs", "an int from 0", str(num_iafs))
        if not 0.0 <= rnn_dropout_rate <= 1.0:
            check.fail("rnn_dropout_rate", "a probability between 0 and 1", repr(rnn_dropout_rate))
        if num_iafs > 0 and iaf_dim < z_dim:
            check.fail("iaf_dim", f"at least z_dim = {z_dim} for autoregressive flows", str(iaf_dim))
        self.input_dim, self.use_cuda = input_dim, use_cuda
        self.per_step_sites, self.validate_args = per_step_sites, validate_args
        # Built in the example's order, so that a seed gives the example's parameters.
        self.emitter: Emitter | GaussianEmitter = (
            Emitter(input_dim, z_dim, emission_dim)
            if emission == "bernoulli"
            else GaussianEmitter(input_dim, z_dim, emission_dim)
        )
        self.trans = GatedTransition(z_dim, transition_dim)
        self.combiner = Combiner(z_dim, rnn_dim)
        self.rnn = InferenceNetwork(input_dim, rnn_dim, num_layers, dropout=rnn_dropout_rate)
        self.iafs = [affine_autoregressive(z_dim, hidden_dims=[iaf_dim]) for _ in range(num_iafs)]
        self.iafs_modules = nn.ModuleList(self.iafs)
        self.z_0 = nn.Parameter(torch.zeros(z_dim))
        self.z_q_0 = nn.Parameter(torch.zeros(z_dim))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, rnn_dim))
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
        given = self.observe(mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths)
        plate = pyro.plate("z_minibatch", given.lengths.shape[0])
        if self.per_step_sites:
            with plate:
                return list(self._model_steps(given, annealing_factor))
        with _Annealing(annealing_factor), plate:
            z = pyro.sample("z", self.prior(given.lengths, given.T))
        with plate:
            x: Tensor = pyro.sample("obs_x", self.emission(z, given.lengths, given.mask), obs=given.x)
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
        if mini_batch is None:
            check.fail("mini_batch", "data for the guide to condition on", "None")
        given = self.observe(mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths)
        h = self.rnn(given.x, self.h_0.flatten(), given.lengths)
        plate = pyro.plate("z_minibatch", given.lengths.shape[0])
        if self.per_step_sites:
            with plate:
                return list(self._guide_steps(given, h, annealing_factor))
        with _Annealing(annealing_factor), plate:
            z: Tensor = pyro.sample("z", self.posterior(h, given.lengths))
        return z

    def prior(self, lengths: Tensor, T: int) -> MarkovPrior:
        """p(z_{1:T}) for rows of the given lengths in a batch of ``T`` steps."""
        return MarkovPrior(self.z_0, self.trans.weights, lengths, T)

    def posterior(self, h: Tensor, lengths: Tensor) -> MarkovPosterior:
        """q(z_{1:T} | x_{1:T}) from the inference network's ``h [B, T, H]``."""
        return MarkovPosterior(h, self.z_q_0, self.combiner.weights, lengths, self.iafs)

    def emission(
        self, z: Tensor, lengths: Tensor, mask: Tensor | None = None
    ) -> BernoulliEmission | GaussianEmission:
        """p(x_{1:T} | z_{1:T}) for ``z [..., B, T, Z]``."""
        if isinstance(self.emitter, GaussianEmitter):
            return GaussianEmission(z, self.emitter.weights, lengths, mask)
        return BernoulliEmission(z, self.emitter.weights, lengths, mask)

    def observe(
        self,
        mini_batch: Tensor | None,
        mini_batch_reversed: Tensor | PackedSequence | None = None,
        mini_batch_mask: Tensor | None = None,
        mini_batch_seq_lengths: Tensor | None = None,
    ) -> Observations:
        """Check a mini-batch against this model; arguments and errors as for :meth:`model`."""
        return observe(
            mini_batch,
            mini_batch_reversed,
            mini_batch_mask,
            mini_batch_seq_lengths,
            input_dim=self.input_dim,
            like=self.z_0,
            boolean=isinstance(self.emitter, Emitter),
            validate=self.validate_args,
        )

    def _model_steps(self, given: Observations, annealing_factor: float | Tensor) -> Iterator[Tensor]:
        """Sites ``z_t`` and ``obs_x_t`` for t = 1 .. T; yields each x_t."""
        z_prev = self.z_0.expand(given.lengths.shape[0], -1)
        valid = given.valid.unsqueeze(-1).unbind(1)
        observed = given.observed.unbind(1)
        x = [None] * given.T if given.x is None else given.x.unbind(1)
        for t in pyro.markov(range(1, given.T + 1)):
            prior = dist.Normal(*self.trans(z_prev)).mask(valid[t - 1]).to_event(1)
            with poutine.scale(scale=annealing_factor):
                z_prev = pyro.sample(f"z_{t}", prior)
            emission = self._emission_step(z_prev).mask(observed[t - 1]).to_event(1)
            yield pyro.sample(f"obs_x_{t}", emission, obs=x[t - 1])

    def _emission_step(self, z_t: Tensor) -> Any:
        if isinstance(self.emitter, GaussianEmitter):
            return dist.Normal(*self.emitter(z_t))
        return dist.Bernoulli(self.emitter(z_t))

    def _guide_steps(
        self, given: Observations, h: Tensor, annealing_factor: float | Tensor
    ) -> Iterator[Tensor]:
        """Sites ``z_t`` for t = 1 .. T; yields each z_t."""
        z_prev = self.z_q_0.expand(given.lengths.shape[0], -1)
        valid = given.valid.unbind(1)
        h_steps = h.unbind(1)
        for t in pyro.markov(range(1, given.T + 1)):
            posterior = dist.Normal(*self.combiner(z_prev, h_steps[t - 1]))
            if self.iafs:
                flowed = dist.TransformedDistribution(posterior, self.iafs)
                site = flowed.mask(valid[t - 1])
            else:
                site = posterior.mask(valid[t - 1].unsqueeze(-1)).to_event(1)
            with poutine.scale(scale=annealing_factor):
                z_prev = pyro.sample(f"z_{t}", site)
            yield z_prev
