"""The baseline: the Deep Markov Model in ordinary per-step Pyro, as in the DMM tutorial.

It has two sample statements per time step, about forty small kernels each. Parameter names and the order in
which parameters are initialised and noise is drawn are the tutorial's, so that one seed gives one
loss in the tutorial, here and in ``dmm_fast.DMM``.

Source: Krishnan, Shalit, Sontag 2017 (arXiv 1609.09869), and Pyro's tutorial on the same model.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineAutoregressive, affine_autoregressive
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from dmm_fast.data import Batch, get_mini_batch


class BaselineEmitter(nn.Module):
    """Probabilities of x_t given z_t: ``[..., z_dim] -> [..., input_dim]``."""

    def __init__(self, input_dim: int, z_dim: int, emission_dim: int) -> None:
        super().__init__()
        self.lin_z_to_hidden = nn.Linear(z_dim, emission_dim)
        self.lin_hidden_to_hidden = nn.Linear(emission_dim, emission_dim)
        self.lin_hidden_to_input = nn.Linear(emission_dim, input_dim)

    def forward(self, z: Tensor) -> Tensor:
        """Two ReLU layers, then a sigmoid."""
        hidden = self.lin_hidden_to_hidden(self.lin_z_to_hidden(z).relu()).relu()
        return torch.sigmoid(self.lin_hidden_to_input(hidden))


class BaselineTransition(nn.Module):
    """The gated transition: ``loc, scale`` of p(z_t | z_{t-1}), both ``[..., z_dim]``."""

    def __init__(self, z_dim: int, transition_dim: int) -> None:
        super().__init__()
        self.lin_gate_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_gate_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_proposed_mean_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_proposed_mean_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_sig = nn.Linear(z_dim, z_dim)
        self.lin_z_to_loc = nn.Linear(z_dim, z_dim)
        nn.init.eye_(self.lin_z_to_loc.weight)  # the linear path starts out as the identity
        nn.init.zeros_(self.lin_z_to_loc.bias)

    def forward(self, z_prev: Tensor) -> tuple[Tensor, Tensor]:
        """The gate mixes a linear and a proposed mean; the scale comes from the proposed mean."""
        gate_hidden = self.lin_gate_z_to_hidden(z_prev).relu()
        gate = torch.sigmoid(self.lin_gate_hidden_to_z(gate_hidden))
        proposal_hidden = self.lin_proposed_mean_z_to_hidden(z_prev).relu()
        proposed_mean = self.lin_proposed_mean_hidden_to_z(proposal_hidden)
        loc = gate * proposed_mean + (1 - gate) * self.lin_z_to_loc(z_prev)
        return loc, softplus(self.lin_sig(proposed_mean.relu()))


class BaselineCombiner(nn.Module):
    """``loc, scale`` of q(z_t | z_{t-1}, x_{t:T}), both ``[..., z_dim]``."""

    def __init__(self, z_dim: int, rnn_dim: int) -> None:
        super().__init__()
        self.lin_z_to_hidden = nn.Linear(z_dim, rnn_dim)
        self.lin_hidden_to_loc = nn.Linear(rnn_dim, z_dim)
        self.lin_hidden_to_scale = nn.Linear(rnn_dim, z_dim)

    def forward(self, z_prev: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Average the contributions of z and h, then apply two linear heads."""
        combined = 0.5 * (torch.tanh(self.lin_z_to_hidden(z_prev)) + h)
        return self.lin_hidden_to_loc(combined), softplus(self.lin_hidden_to_scale(combined))


class BaselineDMM(nn.Module):
    """Model and guide with one sample statement per time step.

    ``mended=False`` is the tutorial's code: it reverses the outputs of the RNN row by row into full-size
    zeros, and slices ``[:, t]`` of them in the loop. The backward passes allocate full-size zeros for every
    row or step, O(B^2 T) and O(B T^2). ``mended=True`` computes the same with one gather and one
    ``unbind``, both linear in B T.
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
        mended: bool = False,
    ) -> None:
        super().__init__()
        self.mended = mended
        self.emitter = BaselineEmitter(input_dim, z_dim, emission_dim)
        self.trans = BaselineTransition(z_dim, transition_dim)
        self.combiner = BaselineCombiner(z_dim, rnn_dim)
        self.rnn = nn.RNN(
            input_dim,
            rnn_dim,
            num_layers,
            nonlinearity="relu",
            batch_first=True,
            dropout=rnn_dropout_rate if num_layers > 1 else 0.0,
        )
        self.iafs: list[AffineAutoregressive] = [
            affine_autoregressive(z_dim, hidden_dims=[iaf_dim]) for _ in range(num_iafs)
        ]
        self.iafs_modules = nn.ModuleList(self.iafs)
        self.z_0 = nn.Parameter(torch.zeros(z_dim))
        self.z_q_0 = nn.Parameter(torch.zeros(z_dim))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, rnn_dim))
        if use_cuda:
            self.cuda()

    def model(
        self,
        mini_batch: Tensor,
        mini_batch_reversed: PackedSequence,
        mini_batch_mask: Tensor,
        mini_batch_seq_lengths: Tensor,
        annealing_factor: float = 1.0,
    ) -> None:
        """p(x_{1:T}, z_{1:T}): sites ``z_1, obs_x_1, z_2, ..`` in plate ``z_minibatch``."""
        pyro.module("dmm", self)
        B, T, _ = mini_batch.shape
        z = self.z_0.expand(B, -1)
        with pyro.plate("z_minibatch", B):
            for t in pyro.markov(range(T)):
                valid = mini_batch_mask[:, t : t + 1]
                prior = dist.Normal(*self.trans(z)).mask(valid).to_event(1)
                with poutine.scale(scale=annealing_factor):
                    z = pyro.sample(f"z_{t + 1}", prior)
                likelihood = dist.Bernoulli(self.emitter(z)).mask(valid).to_event(1)
                pyro.sample(f"obs_x_{t + 1}", likelihood, obs=mini_batch[:, t])

    def guide(
        self,
        mini_batch: Tensor,
        mini_batch_reversed: PackedSequence,
        mini_batch_mask: Tensor,
        mini_batch_seq_lengths: Tensor,
        annealing_factor: float = 1.0,
    ) -> None:
        """q(z_{1:T} | x_{1:T}): the RNN over the reversed packed batch, then ``z_1, z_2, ..``."""
        pyro.module("dmm", self)
        B, T, _ = mini_batch.shape
        hidden = self._hidden_states(mini_batch_reversed, mini_batch_seq_lengths, B, T)
        steps = hidden.unbind(1) if self.mended else None
        z = self.z_q_0.expand(B, -1)
        with pyro.plate("z_minibatch", B):
            for t in pyro.markov(range(T)):
                h = hidden[:, t] if steps is None else steps[t]
                posterior = self._posterior(z, h, mini_batch_mask[:, t : t + 1])
                with poutine.scale(scale=annealing_factor):
                    z = pyro.sample(f"z_{t + 1}", posterior)

    def _posterior(self, z_prev: Tensor, h: Tensor, valid: Tensor) -> dist.TorchDistribution:
        """q(z_t | z_{t-1}, h_t) with event shape [Z], masked by ``valid`` [B, 1]."""
        normal = dist.Normal(*self.combiner(z_prev, h))
        if not self.iafs:
            return normal.mask(valid).to_event(1)
        return dist.TransformedDistribution(normal, self.iafs).mask(valid[:, 0])

    def _hidden_states(self, mini_batch_reversed: PackedSequence, lengths: Tensor, B: int, T: int) -> Tensor:
        """The outputs of the RNN in forward time, ``[B, T, H]``, zero past the end of each sequence."""
        h_0 = self.h_0.expand(self.rnn.num_layers, B, -1).contiguous()
        packed, _ = self.rnn(mini_batch_reversed, h_0)
        padded, _ = pad_packed_sequence(packed, batch_first=True, total_length=T)
        return _reverse_at_once(padded, lengths) if self.mended else _reverse_rows(padded, lengths)


def _reverse_rows(padded: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each row within its length, row by row, with a full-size gradient for each."""
    forward = torch.zeros_like(padded)
    for b, length in enumerate(lengths.tolist()):
        backwards = torch.arange(length - 1, -1, -1, device=padded.device)
        forward[b, :length] = padded[b, :, :].index_select(0, backwards)
    return forward


def _reverse_at_once(padded: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each row within its length in one gather; steps past the end keep their positions."""
    t = torch.arange(padded.size(1), device=padded.device).expand(padded.shape[:2])
    end = lengths.to(padded.device).unsqueeze(1)
    source = torch.where(t < end, end - 1 - t, t)
    return padded.gather(1, source.unsqueeze(-1).expand_as(padded))


def tutorial_mini_batch(indices: Tensor, sequences: Tensor, lengths: Tensor, *, cuda: bool = False) -> Batch:
    """The tutorial's mini-batch: rows sorted by falling length, the reversed copy packed.

    ``indices`` [B] int64 chooses from ``sequences`` [N, T_max, D] and ``lengths`` [N].
    """
    return get_mini_batch(indices, sequences, lengths, cuda=cuda)
