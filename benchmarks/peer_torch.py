"""The peer "PyTorch, hand-written backward": the step optimised with the means of PyTorch alone.

It uses neither Pyro nor the ops of ``dmm_fast``. A mini-batch is stored as its N valid rows, step after step,
as in a ``PackedSequence``: every linear map outside the scans is a GEMM of N rows, and nothing is masked. The
two scans are autograd functions whose backward loop computes the deltas only; each weight gradient is one
GEMM after the loop. Their large buffers are reused from step to step.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

from benchmarks.cases import Case
from benchmarks.stepper import OPTIMIZER, tutorial_noise
from benchmarks.timing import Timed
from dmm_fast.data import Batch

Parameters = dict[str, Tensor]


class Buffers:
    """Uninitialised buffers by name, kept and grown, as fresh pages in every step are slower."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._held: dict[str, Tensor] = {}

    def rows(self, name: str, N: int, width: int) -> Tensor:
        """A matrix ``[N, width]`` in the buffer ``name``, valid until the next request for that buffer."""
        if name not in self._held or self._held[name].numel() < N * width:
            self._held[name] = torch.empty(N * width, device=self._device)
        return self._held[name][: N * width].view(N, width)


class Rows:
    """A mini-batch as its N valid rows, ordered by time step; step t has ``sizes[t]`` of them.

    Args:
        batch: rows sorted by falling length, as by the tutorial's ``get_mini_batch``.
        buffers: workspace of the scans.

    Raises:
        ValueError: the rows are not sorted, so the rows of a step are not the first ones of the step before.
    """

    def __init__(self, batch: Batch, buffers: Buffers) -> None:
        device = batch.mini_batch.device
        lengths = batch.mini_batch_seq_lengths.to(device)
        if bool((lengths.diff() > 0).any()):
            raise ValueError(f"batch: expected rows sorted by falling length, got {lengths.tolist()}")
        self.valid = torch.arange(batch.mini_batch.shape[1], device=device).unsqueeze(1) < lengths  # [T, B]
        self.x = batch.mini_batch.transpose(0, 1)[self.valid]
        self.sizes: list[int] = self.valid.sum(1)[: int(lengths.max())].tolist()
        number = self.valid.flatten().cumsum(0).view_as(self.valid) - 1
        self.last = number[
            lengths - 1, torch.arange(len(lengths), device=device)
        ]  # the last row of each sequence
        self.before = number[:-1][
            self.valid[1:]
        ]  # the row of the same sequence one step earlier, from step 2 on
        self.buffers = buffers

    @property
    def B(self) -> int:
        """The number of sequences."""
        return self.sizes[0]

    def steps(self, *packed: Tensor) -> list[tuple[Tensor, ...]]:
        """The rows of each step of matrices with N rows."""
        return list(zip(*(p.split(self.sizes) for p in packed), strict=True))


class RnnScan(torch.autograd.Function):
    """``h_t = relu(a_t + W h_{t+1})`` from the end of each sequence to its start; ``h_0`` past the end."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, h_0: Tensor, rows: Rows) -> Tensor:
        h = rows.buffers.rows("h", *a.shape)
        after = rows.buffers.rows("after", *a.shape)  # h one step later, for each row
        after[rows.last] = h_0
        steps = rows.steps(a, after, h)
        for t in reversed(range(len(steps))):
            a_t, after_t, h_t = steps[t]
            torch.addmm(a_t, after_t, weight.t(), out=h_t).relu_()
            if t > 0:
                steps[t - 1][1][: len(h_t)] = h_t
        ctx.save_for_backward(h, after, weight)
        ctx.rows = rows
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        h, after, weight = ctx.saved_tensors
        rows: Rows = ctx.rows
        delta = rows.buffers.rows("delta", *h.shape)
        alive = torch.sign(h, out=rows.buffers.rows("alive", *h.shape))  # derivative of the ReLU, as h >= 0
        carried: Tensor | None = None
        for dh_t, alive_t, delta_t in rows.steps(dh, alive, delta):
            if carried is None:
                torch.mul(dh_t, alive_t, out=delta_t)
            else:
                torch.addmm(dh_t, carried[: len(dh_t)], weight, out=delta_t).mul_(alive_t)
            carried = delta_t
        return delta, delta.t() @ after, delta[rows.last].sum(0) @ weight, None


class CombinerScan(torch.autograd.Function):
    """The recurrence of the guide: ``z_t = loc_t + scale_t eps_t`` of ``tanh(W_z z_{t-1} + b_z) + h_t``.

    ``W_out`` and ``b_out`` hold both heads, loc above scale. Returns ``z`` and ``scale`` ``[N, Z]``, and the
    previous ``z`` of each row from step 2 on.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        eps: Tensor,
        z_q_0: Tensor,
        W_z: Tensor,
        b_z: Tensor,
        W_out: Tensor,
        b_out: Tensor,
        rows: Rows,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (N, H), Z = h.shape, eps.shape[1]
        u, g = rows.buffers.rows("u", N, H), rows.buffers.rows("g", N, H)
        heads = rows.buffers.rows("heads", N, 2 * Z)
        z, scale = torch.empty_like(eps), torch.empty_like(eps)
        before = z_q_0.expand(rows.B, -1)
        steps = rows.steps(h, eps, u, g, heads, heads[:, :Z], heads[:, Z:], scale, z)
        for h_t, eps_t, u_t, g_t, heads_t, loc_t, raw_t, scale_t, z_t in steps:
            torch.addmm(b_z, before[: len(h_t)], W_z.t(), out=u_t).tanh_()
            torch.add(u_t, h_t, out=g_t)
            torch.addmm(b_out, g_t, W_out.t(), out=heads_t)
            softplus(raw_t, out=scale_t)  # type: ignore[call-arg]  # missing in the type stub
            torch.addcmul(loc_t, scale_t, eps_t, out=z_t)
            before = z_t
        z_before = z.index_select(0, rows.before)
        ctx.save_for_backward(eps, z_q_0, W_z, W_out, u, g, heads, z_before)
        ctx.rows = rows
        return z, scale, z_before

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, dscale: Tensor, dz_before: Tensor) -> tuple[Tensor | None, ...]:
        eps, z_q_0, W_z, W_out, u, g, heads, z_before = ctx.saved_tensors
        rows: Rows = ctx.rows
        (N, H), Z, B = u.shape, eps.shape[1], rows.B
        slope = torch.sigmoid(heads[:, Z:])
        dheads = torch.cat([dz, dscale * slope], 1)
        dheads[:, :Z].index_put_((rows.before,), dz_before, accumulate=True)
        # Before its step in the loop, dheads holds the gradient of z from outside the recurrence.
        du, dg = rows.buffers.rows("du", N, H), rows.buffers.rows("dg", N, H)
        torch.addcmul(torch.ones((), device=u.device), u, u, value=-1, out=du)  # derivative of tanh
        steps = rows.steps(slope.mul_(eps), dheads, dheads[:, :Z], dheads[:, Z:], dg, du)
        later: Tensor | None = None
        for by_scale, dheads_t, dz_t, draw_t, dg_t, du_t in reversed(steps):
            if later is not None:
                dz_t[: len(later)].addmm_(later, W_z)
            draw_t.addcmul_(dz_t, by_scale)
            torch.mm(dheads_t, W_out, out=dg_t)
            later = du_t.mul_(dg_t)
        first = du[:B].sum(0)
        dW_z = (du[B:].t() @ z_before).addr_(first, z_q_0)
        return dg, None, first @ W_z, dW_z, du.sum(0), dheads.t() @ g, dheads.sum(0), None


def leaves(parameters: Mapping[str, Tensor], device: torch.device) -> Parameters:
    """Trainable copies on ``device``."""
    return {name: value.to(device, copy=True).requires_grad_() for name, value in parameters.items()}


def heads(p: Parameters, kind: str) -> Tensor:
    """The weights or biases of both heads of the combiner, loc above scale."""
    return torch.cat([p[f"combiner.lin_hidden_to_{head}.{kind}"] for head in ("loc", "scale")])


def layer(p: Parameters, name: str, inputs: Tensor) -> Tensor:
    """Apply a linear map of the tutorial."""
    return linear(inputs, p[f"{name}.weight"], p[f"{name}.bias"])


def excess(p: Parameters, z: Tensor, z_before: Tensor, q_scale: Tensor, eps: Tensor) -> Tensor:
    """``log q(z) - log p(z)``, elementwise, with z = loc + scale eps in q; the constants cancel."""
    hidden = layer(p, "trans.lin_gate_z_to_hidden", z_before).relu()
    gate = layer(p, "trans.lin_gate_hidden_to_z", hidden).sigmoid()
    hidden = layer(p, "trans.lin_proposed_mean_z_to_hidden", z_before).relu()
    proposed = layer(p, "trans.lin_proposed_mean_hidden_to_z", hidden)
    p_loc = torch.lerp(layer(p, "trans.lin_z_to_loc", z_before), proposed, gate)
    p_scale = softplus(layer(p, "trans.lin_sig", proposed.relu()))
    return 0.5 * (((z - p_loc) / p_scale).square() - eps.square()) + (p_scale / q_scale).log()


def surprise(p: Parameters, z: Tensor, x: Tensor, reduction: str) -> Tensor:
    """``-log p(x | z)``, elementwise or summed."""
    hidden = layer(p, "emitter.lin_hidden_to_hidden", layer(p, "emitter.lin_z_to_hidden", z).relu()).relu()
    logits = layer(p, "emitter.lin_hidden_to_input", hidden)
    return binary_cross_entropy_with_logits(logits, x, reduction=reduction)


def loss(p: Parameters, rows: Rows, eps: Tensor, annealing_factor: float) -> Tensor:
    """The negative ELBO of one sample, as ``Trace_ELBO`` estimates it; ``eps`` is ``[N, Z]``."""
    bias = p["rnn.bias_ih_l0"] + p["rnn.bias_hh_l0"]
    projected = linear(rows.x, p["rnn.weight_ih_l0"], bias)
    h = RnnScan.apply(projected, p["rnn.weight_hh_l0"], p["h_0"].view(-1), rows)
    # The factor 0.5 of the combiner's average is part of the weights of its heads.
    W_z, b_z = p["combiner.lin_z_to_hidden.weight"], p["combiner.lin_z_to_hidden.bias"]
    z, q_scale, z_before = CombinerScan.apply(
        h, eps, p["z_q_0"], W_z, b_z, 0.5 * heads(p, "weight"), heads(p, "bias"), rows
    )
    z_before = torch.cat([p["z_0"].expand(rows.B, -1), z_before])
    annealed = annealing_factor * excess(p, z, z_before, q_scale, eps).sum()
    return surprise(p, z, rows.x, "sum") + annealed


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None, "every parameter is used"
    return p.grad


class FusedClippedAdam(torch.optim.Adam):
    """Pyro's ``ClippedAdam`` by torch's fused ``Adam``: one pass over each parameter.

    Pyro adds ``eps`` before the bias correction of the second moment, torch after it; the ``eps`` of the
    parameter group is adjusted in every step to compensate.
    """

    def __init__(self, params: list[Tensor], *, clip_norm: float, lrd: float, **options: Any) -> None:
        super().__init__(params, fused=True, **options)
        self._clip_norm, self._lrd, self._steps = clip_norm, lrd, 0
        self._eps: float = self.defaults["eps"]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Decay the learning rate, clamp the gradients elementwise, then Adam with L2 weight decay."""
        self._steps += 1
        for group in self.param_groups:
            group["lr"] *= self._lrd
            group["eps"] = self._eps / (1 - group["betas"][1] ** self._steps) ** 0.5
            grads = [_gradient(p) for p in group["params"]]
            torch._foreach_clamp_min_(grads, -self._clip_norm)
            torch._foreach_clamp_max_(grads, self._clip_norm)
        super().step()


class TorchStepper:
    """Takes the SVI steps of this peer; parameters have the tutorial's names."""

    def __init__(self, case: Case, parameters: Mapping[str, Tensor]) -> None:
        self.case = case
        self.parameters = leaves(parameters, case.device)
        self._optimizer = FusedClippedAdam(list(self.parameters.values()), **OPTIMIZER)
        self._buffers = Buffers(case.device)
        self._batches = [Rows(batch, self._buffers) for batch in case.batches]

    def active(self) -> nullcontext[None]:
        """No context is needed."""
        return nullcontext()

    def run(self) -> float:
        """Take a step on every batch of the case, which is one timed run. Returns the last loss."""
        value = torch.tensor(float("nan"))
        z_dim = self.parameters["z_0"].numel()
        for rows in self._batches:
            value = self.step(rows, torch.randn(len(rows.x), z_dim, device=self.case.device))
        return value.item()

    def step(self, rows: Rows, eps: Tensor) -> Tensor:
        """Take a step with the noise ``eps`` ``[N, Z]``; returns the loss before it, on the device."""
        value = self._backward(rows, eps)
        self._optimizer.step()
        return value

    def loss_and_grads(self, batch: Batch, seed: int) -> tuple[float, dict[str, Tensor]]:
        """The loss and the gradient of every parameter with the tutorial's noise for ``seed``."""
        rows = Rows(batch, self._buffers)
        noise = tutorial_noise(batch, self.parameters["z_0"].numel(), seed)
        value = self._backward(rows, noise[rows.valid])
        return value.item(), {name: _gradient(p).clone() for name, p in self.parameters.items()}

    def timed(self) -> Timed:
        """The function to time."""
        return Timed(self.run)

    def _backward(self, rows: Rows, eps: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        value = loss(self.parameters, rows, eps, self.case.annealing_factor)
        value.backward()
        return value.detach()


@dataclass(frozen=True)
class TorchImplementation:
    """This peer."""

    name: str = "PyTorch, hand-written backward"
    elbo: Callable[[], Any] = Trace_ELBO

    def setup(self, case: Case, parameters: Mapping[str, Tensor]) -> TorchStepper:
        """Build a stepper for ``case`` that starts from ``parameters``."""
        return TorchStepper(case, parameters)
