"""The peer "PyTorch, batched": the step written in plain autograd by an experienced user of PyTorch.

It uses neither Pyro nor the ops of ``dmm_fast``. A mini-batch is padded and masked, time first; shapes are
static, and no step synchronises with the device. The backward RNN is torch's, on a GPU cuDNN's, over
sequences reversed within their lengths, so that padding follows their ends and is never read. The combiner is
a loop over the steps; everything else is batched over T x B.

"PyTorch, batched, compiled" compiles three functions with ``torch.compile``: the combiner cell, the densities
and the optimizer. The recurrence remains cuDNN's, and the loop over the cell remains Python's, as unrolling
129 steps takes the compiler minutes. The cell is compiled once per batch size. The densities are compiled for
their first shape and once more for all others, as an epoch has as many shapes as mini-batches.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from benchmarks.cases import Case
from benchmarks.peer_torch import Parameters, excess, heads, leaves, surprise
from benchmarks.stepper import OPTIMIZER, tutorial_noise
from benchmarks.timing import Timed
from dmm_fast.data import Batch

ADAM_EPS = 1e-8


class Padded(NamedTuple):
    """A mini-batch, time first: ``x`` and each sequence reversed ``[T, B, D]``, ``valid`` ``[T, B]``, and
    ``source`` ``[T B]``, the index of each row in the reversed sequences.
    """

    x: Tensor
    x_reversed: Tensor
    valid: Tensor
    source: Tensor


def padded(batch: Batch) -> Padded:
    """``batch`` in the layout of this peer."""
    x = batch.mini_batch.transpose(0, 1).contiguous()
    T, B, _ = x.shape
    t, b = torch.arange(T, device=x.device).unsqueeze(1), torch.arange(B, device=x.device)
    lengths = batch.mini_batch_seq_lengths.to(x.device)
    valid = t < lengths
    source = (torch.where(valid, lengths - 1 - t, t) * B + b).flatten()
    return Padded(x, x.flatten(0, 1)[source].view_as(x), valid, source)


def cell(
    z: Tensor, h: Tensor, eps: Tensor, W_z: Tensor, b_z: Tensor, W_out: Tensor, b_out: Tensor
) -> tuple[Tensor, Tensor]:
    """A step of the guide: ``z`` and its scale."""
    combined = linear(z, W_z, b_z).tanh() + h
    loc, raw = linear(combined, W_out, b_out).chunk(2, dim=1)
    scale = softplus(raw)
    return torch.addcmul(loc, scale, eps), scale


def densities(
    p: Parameters, batch: Padded, z: Tensor, q_scale: Tensor, eps: Tensor, annealing_factor: float
) -> Tensor:
    """The loss for given draws z."""
    z_before = torch.cat([p["z_0"].expand(1, z.shape[1], -1), z[:-1]])
    annealed = annealing_factor * excess(p, z, z_before, q_scale, eps).sum(-1)
    return torch.where(batch.valid, surprise(p, z, batch.x, "none").sum(-1) + annealed, 0.0).sum()


class AdamState(NamedTuple):
    """The state of the optimizer. ``lr``, ``steps`` and ``betas`` are float64 on the device.

    ``lr`` and ``steps`` have shape [1]: ``torch.compile`` treats a float64 tensor without dimensions on a CPU
    as a number and drops in-place changes to it.
    """

    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    lr: Tensor
    steps: Tensor
    betas: Tensor


def adam_state(parameters: Parameters) -> AdamState:
    """The state before the first step."""
    mine = list(parameters.values())
    numbers = functools.partial(torch.tensor, dtype=torch.float64, device=mine[0].device)
    return AdamState(
        parameters=mine,
        means=[torch.zeros_like(p) for p in mine],
        squares=[torch.zeros_like(p) for p in mine],
        lr=numbers([OPTIMIZER["lr"]]),
        steps=numbers([0]),
        betas=numbers(OPTIMIZER["betas"]),
    )


@torch.no_grad()
def clipped_adam(state: AdamState, gradients: list[Tensor]) -> None:
    """A step of Pyro's ``ClippedAdam`` with all of its state on the device, so that it can be captured."""
    beta1, beta2 = OPTIMIZER["betas"]
    state.lr.mul_(OPTIMIZER["lrd"])
    state.steps.add_(1)
    left1, left2 = (1 - state.betas**state.steps).unbind()
    step_size = (state.lr * left2.sqrt() / left1).float().squeeze()

    g = torch._foreach_clamp_min(gradients, -OPTIMIZER["clip_norm"])
    torch._foreach_clamp_max_(g, OPTIMIZER["clip_norm"])
    torch._foreach_add_(g, state.parameters, alpha=OPTIMIZER["weight_decay"])
    torch._foreach_lerp_(state.means, g, 1 - beta1)
    torch._foreach_mul_(state.squares, beta2)
    torch._foreach_addcmul_(state.squares, g, g, 1 - beta2)
    moves = torch._foreach_sqrt(state.squares)
    torch._foreach_add_(moves, ADAM_EPS)
    torch._foreach_div_(moves, step_size)
    torch._foreach_addcdiv_(state.parameters, state.means, moves, -1.0)


class Parts(NamedTuple):
    """The functions of a step, plain or compiled."""

    cell: Callable[..., tuple[Tensor, Tensor]]
    densities: Callable[..., Tensor]
    clipped_adam: Callable[..., None]


PLAIN = Parts(cell, densities, clipped_adam)


@functools.cache
def compiled(backend: str | Callable[..., Any] = "inductor") -> Parts:
    """The compiled functions; they fail beyond torch's limit of recompilations instead of running eagerly."""
    fixed = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
    return Parts(fixed(cell), torch.compile(densities, fullgraph=True, backend=backend), fixed(clipped_adam))


def loss(p: Parameters, batch: Padded, eps: Tensor, annealing_factor: float, parts: Parts = PLAIN) -> Tensor:
    """The negative ELBO of one sample, as ``Trace_ELBO`` estimates it; ``eps`` is ``[T, B, Z]``."""
    rnn = [p[f"rnn.{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    h_0 = p["h_0"].expand(-1, eps.shape[1], -1).contiguous()
    # Arguments: biases, one layer, no dropout, training, unidirectional, time first.
    h, _ = torch.rnn_relu(batch.x_reversed, h_0, rnn, True, 1, 0.0, True, False, False)
    h = h.flatten(0, 1).index_select(0, batch.source).view_as(h)

    # The factor 0.5 of the combiner's average is part of the weights of its heads.
    W_z, b_z = p["combiner.lin_z_to_hidden.weight"], p["combiner.lin_z_to_hidden.bias"]
    weights = W_z, b_z, 0.5 * heads(p, "weight"), heads(p, "bias")
    z = (
        p["z_q_0"].expand(eps.shape[1], -1).contiguous()
    )  # same strides as in later steps, to compile only once
    drawn, scales = [], []
    for h_t, eps_t in zip(h.unbind(), eps.unbind(), strict=True):
        z, scale = parts.cell(z, h_t, eps_t, *weights)
        drawn.append(z)
        scales.append(scale)
    return parts.densities(p, batch, torch.stack(drawn), torch.stack(scales), eps, annealing_factor)


def resident(parameters: Mapping[str, Tensor], device: torch.device) -> Parameters:
    """Trainable copies on ``device``; those of the RNN are contiguous, as cuDNN would copy others."""
    H, D = parameters["rnn.weight_ih_l0"].shape
    rnn = nn.RNN(D, H, nonlinearity="relu", device=device)
    rnn.load_state_dict({name: parameters[f"rnn.{name}"] for name, _ in rnn.named_parameters()})
    return leaves(parameters, device) | dict(rnn.named_parameters(prefix="rnn"))


class BatchedStepper:
    """Takes the SVI steps of this peer; parameters have the tutorial's names."""

    def __init__(self, case: Case, parameters: Mapping[str, Tensor], parts: Parts = PLAIN) -> None:
        self.case = case
        self.parameters = resident(parameters, case.device)
        self.optimizer = adam_state(self.parameters)
        self.parts = parts
        self._batches = [padded(batch) for batch in case.batches]

    def active(self) -> AbstractContextManager[None]:
        """No context is needed."""
        return nullcontext()

    def run(self) -> float:
        """Take a step on every batch of the case, which is one timed run. Returns the last loss."""
        value = torch.tensor(float("nan"))
        for batch in self._batches:
            value = self.step(batch)
        return value.item()

    def step(self, batch: Padded) -> Tensor:
        """Take a step with random noise; returns the loss before it."""
        T, B, _ = batch.x.shape
        Z = self.parameters["z_0"].numel()
        return self.step_with(batch, torch.randn(T, B, Z, device=self.case.device))

    def step_with(self, batch: Padded, eps: Tensor) -> Tensor:
        """Take a step with the noise ``eps`` ``[T, B, Z]``; returns the loss before it."""
        value, gradients = self.differentiated(batch, eps)
        self.parts.clipped_adam(self.optimizer, gradients)
        return value

    def differentiated(self, batch: Padded, eps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss with the noise ``eps`` and its gradients, in the order of the parameters."""
        value = loss(self.parameters, batch, eps, self.case.annealing_factor, self.parts)
        return value.detach(), list(torch.autograd.grad(value, list(self.parameters.values())))

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradient of every parameter with the tutorial's noise for ``seed``."""
        eps = tutorial_noise(batch, self.parameters["z_0"].numel(), seed)
        value, gradients = self.differentiated(padded(batch), eps)
        return value.item(), dict(zip(self.parameters, gradients, strict=True))

    def timed(self) -> Timed:
        """The function to time."""
        return Timed(self.run)


@dataclass(frozen=True)
class BatchedImplementation:
    """This peer, plain or :func:`compiled`."""

    name: str = "PyTorch, batched"
    parts: Callable[[], Parts] = lambda: PLAIN
    elbo: Callable[[], Any] = Trace_ELBO

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> BatchedStepper:
        """Build a stepper for ``case`` that starts from ``parameters``."""
        return BatchedStepper(case, parameters, self.parts())
