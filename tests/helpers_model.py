"""Small models and batches, and results of inference steps on them."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from dmm_fast import DMM
from dmm_fast.data import Batch
from dmm_fast.distributions import MarkovPosterior

SIZES = {"input_dim": 5, "z_dim": 3, "emission_dim": 4, "transition_dim": 6, "rnn_dim": 7}

FLOWS = {"num_iafs": 2, "iaf_dim": 6}
"""Arguments of a DMM with normalizing flows."""

LENGTHS = (6, 2, 1, 5)
"""Ragged and in no order; the longest fills the batch."""

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Norm-wise relative error admitted between two ways to compute one thing."""


def small_dmm(seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: Any) -> DMM:
    """A small DMM without zero parameters, reproducible by seed and layers."""
    torch.manual_seed(seed)
    dmm = DMM(**{**SIZES, **kwargs})
    return stir(dmm).to(dtype)


def stir(dmm: nn.Module) -> Any:
    """Perturb every parameter slightly, in the order of the names."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in sorted(dmm.named_parameters()):
            p.add_(0.3 * torch.randn(p.shape, generator=generator).to(p.dtype))
    return dmm


def make_batch(
    lengths: tuple[int, ...] = LENGTHS,
    *,
    T: int | None = None,
    D: int = SIZES["input_dim"],
    dtype: torch.dtype = torch.float32,
    emission: str = "bernoulli",
    seed: int = 2,
) -> Batch:
    """Rows of the given lengths padded to ``T``, nothing reversed."""
    generator = torch.Generator().manual_seed(seed)
    # Drawn for more steps than any test needs, so that a larger T only adds padding.
    x = torch.randn(len(lengths), 12, D, generator=generator, dtype=torch.float64)
    if emission == "bernoulli":
        x = (x > 0.3).to(torch.float64)
    length = torch.tensor(lengths)
    mask = torch.arange(T or max(lengths)) < length[:, None]
    x = x[:, : mask.shape[1]] * mask[:, :, None]
    return Batch(x.to(dtype), None, mask.to(dtype), length)


def valid_steps(steps: int = max(LENGTHS)) -> Tensor:
    """``[B, T]`` bool: the steps within the rows of ``LENGTHS``."""
    return torch.arange(steps) < torch.tensor(LENGTHS)[:, None]


def missing_mask(batch: Batch, dims: int, seed: int = 3) -> Tensor:
    """The mask of the batch with about a third set to zero: ``[B, T]`` or ``[B, T, D]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch.mini_batch.shape[:dims]
    mask = batch.mini_batch_mask if dims == 2 else batch.mini_batch_mask[:, :, None]
    return mask * (torch.rand(shape, generator=generator) > 0.35)


def posterior_of(dmm: DMM, dtype: torch.dtype = torch.float32) -> MarkovPosterior:
    """The guide's distribution given the batch of ``LENGTHS``."""
    batch = make_batch(dtype=dtype)
    lengths = batch.mini_batch_seq_lengths
    return dmm.posterior(dmm.rnn(batch.mini_batch, dmm.h_0[0, 0], lengths), lengths)


def loss_and_grads(
    dmm: Any, batch: tuple[Any, ...], elbo: Any, *args: Any, seed: int = 5
) -> tuple[float, dict[str, Tensor]]:
    """The loss of ``elbo`` under a seed, and the gradient of every parameter."""
    pyro.clear_param_store()
    dmm.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = elbo.loss_and_grads(dmm.model, dmm.guide, *batch, *args)
    return loss, {name: p.grad for name, p in dmm.named_parameters()}


def assert_same_step(
    ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]], tol: float
) -> None:
    """Assert that losses and gradients agree, and that every parameter has a gradient."""
    assert abs(ours[0] - theirs[0]) <= tol * abs(theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        assert ours[1][name] is not None, name
        assert grad is not None, name
        assert_close(ours[1][name], grad, tol, name)


def assert_close(ours: Tensor, theirs: Tensor, tol: float, what: str = "") -> None:
    """Norm-wise relative error, of tensors of one shape and dtype that are not all zero."""
    assert ours.shape == theirs.shape, what
    assert ours.dtype == theirs.dtype, what
    assert bool(theirs.isfinite().all()), what
    assert theirs.norm() > 0, what
    error = ((ours - theirs).norm() / theirs.norm()).item()
    assert error <= tol, f"{what}: {error:.3g} > {tol:.3g}"


def gradients(scalar: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """The gradient of ``scalar`` for each parameter it depends on; the graph is kept."""
    named = dict(module.named_parameters())
    grads = torch.autograd.grad(scalar, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(named, grads, strict=True) if g is not None}


def assert_means_agree(a: Tensor, b: Tensor | float, sigmas: float = 4.5) -> None:
    """Assert that the means over dimension 0 agree elementwise within ``sigmas`` standard errors."""
    b = torch.as_tensor(b, dtype=a.dtype)
    variance = a.var(0) / len(a)
    mean_b = b
    if b.dim() == a.dim():
        variance, mean_b = variance + b.var(0) / len(b), b.mean(0)
    error = (a.mean(0) - mean_b).abs() / variance.sqrt()
    assert bool((error < sigmas).all()), error


def set_linear(layer: Any, weight: Any, bias: Any) -> None:
    """Set the weight and bias of a linear layer; a number fills the tensor."""
    with torch.no_grad():
        for parameter, value in ((layer.weight, weight), (layer.bias, bias)):
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand_as(parameter))


def landed() -> DMM:
    """A DMM whose guide is the exact posterior: all steps are standard normal in prior and guide.

    The emission does not depend on z, so the posterior is the prior.
    """
    dmm = small_dmm(dtype=torch.float64)
    unit = torch.log(torch.expm1(torch.ones((), dtype=torch.float64)))
    for layer, bias in (
        (dmm.trans.lin_z_to_loc, 0.0),
        (dmm.trans.lin_proposed_mean_hidden_to_z, 0.0),
        (dmm.trans.lin_sig, unit),
        (dmm.combiner.lin_hidden_to_loc, 0.0),
        (dmm.combiner.lin_hidden_to_scale, unit),
    ):
        set_linear(layer, 0.0, bias)
    set_linear(dmm.emitter.lin_z_to_hidden, 0.0, 0.1)
    return dmm


def repeat(times: int, draw: Callable[[], float]) -> Tensor:
    """``[times]``: stacked results of repeated calls of ``draw``."""
    return torch.tensor([draw() for _ in range(times)], dtype=torch.float64)
