"""Path gradients: the gradient of a draw's log-density through the draw alone, its parameters held constant.

``log q(z)`` depends on the parameters of q directly and through the reparameterised ``z``. The direct part,
the score, has expectation zero, but a variance that does not vanish where q is exact. A path gradient leaves
it out: it is ``d log q / dz`` with the parameters as constants, times the derivative of ``z``.

Source: Roeder, Wu and Duvenaud, arXiv 1703.09194 ("sticking the landing").
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dmm_fast import _flows, check
from dmm_fast._reference_pieces import positive_softplus
from dmm_fast.ops._autocast import in_float32
from dmm_fast.reference import CombinerWeights

ToPrevious = Callable[[Tensor, Tensor], Tensor]
"""Takes the gradients of log q with respect to ``loc`` and ``scale`` of each step before any flow, each
``[..., B, T, Z]``, and returns that with respect to ``z_{t-1}``, of the same shape."""


class _WithSlope(torch.autograd.Function):
    """A log-density whose gradient with respect to the draw was computed before."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, slope: Tensor, log_prob: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return log_prob

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            # The slope would be taken for a constant.
            expected = "a backward pass without create_graph, as its gradient cannot be differentiated"
            check.fail("path_gradient", expected, "create_graph=True", NotImplementedError)
        (slope,) = ctx.saved_tensors
        return gradient[..., None, None] * slope, None, None


def with_slope(log_prob: Tensor, z: Tensor, slope: Tensor) -> Tensor:
    """``log_prob [..., B]`` with the gradient ``slope [..., B, T, Z]`` with respect to ``z``, and no other.

    It has first derivatives only: a backward pass with ``create_graph`` raises a ``NotImplementedError``.
    """
    result: Tensor = _WithSlope.apply(z, slope, log_prob.detach())
    return result


@torch.no_grad()
def slope_of(
    z: Tensor,
    eps: Tensor,
    pre_scale: Tensor,
    keep: Tensor,
    flows: Sequence[Any],
    to_previous: ToPrevious | None,
) -> Tensor:
    """``d log q(z) / dz``, ``[..., B, T, Z]``, with the parameters of q as constants; 0 past the end.

    The residuals are those of the noise, so no difference ``z - loc`` loses digits.

    Args:
        z: ``[..., B, T, Z]``, a draw.
        eps: its noise, of the same shape.
        pre_scale: the scale of each step before softplus, of the same shape.
        keep: bool ``[B, T, 1]``, True at valid steps.
        flows: flows that :func:`check_flows` accepts.
        to_previous: the chain's dependence on ``z_{t-1}``; None: the steps are independent.
    """
    scale = positive_softplus(pre_scale)
    eps = torch.where(keep, eps, 0.0)
    to_loc = torch.where(keep, eps / scale, 0.0)
    slope = -to_loc
    if flows:
        slope = in_float32(partial(_before_flows, flows, keep), (z, slope))
    if to_previous is not None:
        to_scale = torch.where(keep, (eps.square() - 1.0) / scale, 0.0)
        from_next = to_previous(to_loc, to_scale)[..., 1:, :]
        slope = torch.cat([slope[..., :-1, :] + from_next, slope[..., -1:, :]], dim=-2)
    return slope


def _before_flows(flows: Sequence[Any], keep: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient with respect to the flowed ``z``; given are ``z``, and that with respect to its base."""
    z, slope = given
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        base, log_det = _flows.invert(flows, z)
    to_log_det = -keep.squeeze(-1).to(z.dtype).expand_as(log_det)
    (gradient,) = torch.autograd.grad((base, log_det), z, (slope, to_log_det))
    return gradient


def to_previous_by_weights(
    z_prev: Tensor, scale: Tensor, weights: CombinerWeights, min_scale: float
) -> ToPrevious:
    """The dependence on ``z_{t-1}`` of a combiner given as weights; ``scale`` includes ``min_scale``."""

    def compute(given: tuple[Any, ...]) -> Tensor:
        z_prev, scale, weights, to_loc, to_scale = given
        # The derivative of softplus, from its value.
        to_pre_scale = to_scale * -torch.expm1(min_scale - scale)
        heads = torch.cat([weights.w_loc, weights.w_scale])
        to_combined = torch.cat([to_loc, to_pre_scale], dim=-1) @ heads
        # Weights without gradients, so that autograd computes that of z_{t-1} alone.
        w_z, b_z = weights.w_z.detach(), weights.b_z.detach()
        with torch.enable_grad():
            z_prev = z_prev.detach().requires_grad_()
            combined = 0.5 * torch.tanh(F.linear(z_prev, w_z, b_z))
        (gradient,) = torch.autograd.grad(combined, z_prev, to_combined)
        return gradient

    return lambda to_loc, to_scale: in_float32(compute, (z_prev, scale, weights, to_loc, to_scale))


def to_previous_by_network(
    z_prev: Tensor, conditional: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> ToPrevious:
    """The dependence on ``z_{t-1}`` of any network: ``conditional(z_prev)`` returns its ``loc, scale``."""

    def to_previous(to_loc: Tensor, to_scale: Tensor) -> Tensor:
        with torch.enable_grad():
            given = z_prev.detach().requires_grad_()
            loc, scale = conditional(given)
        of_given = [(loc, to_loc)] * loc.requires_grad + [(scale, to_scale)] * scale.requires_grad
        if not of_given:
            return torch.zeros_like(given)
        # With z_{t-1} as the only input, autograd computes no gradients of parameters.
        outputs, gradients = zip(*of_given, strict=True)
        (gradient,) = torch.autograd.grad(outputs, given, gradients, allow_unused=True)
        return torch.zeros_like(given) if gradient is None else gradient

    return to_previous


def check_flows(flows: Sequence[Any]) -> None:
    """Check that flows can be inverted exactly, as :func:`slope_of` does.

    Raises:
        ValueError: one of them is not an affine autoregressive flow with one hidden layer.
    """
    for flow in flows:
        if (why := _flows.why_not_affine(flow)) is not None:
            expected = "False, or only flows made by affine_autoregressive(Z, hidden_dims=[F])"
            check.fail("path_gradient", expected, f"True with others: {why}")


def check_combiner(combiner: Any) -> None:
    """Check that a combiner can be evaluated once more, as :func:`to_previous_by_network` does.

    Raises:
        ValueError: it is a module with active dropout, which would draw another mask.
    """
    if isinstance(combiner, nn.Module):
        for module in combiner.modules():
            if isinstance(module, _DropoutNd) and module.training and module.p > 0:
                expected = "False, or a combiner without active dropout"
                check.fail("path_gradient", expected, f"True with {type(module).__name__}({module.p:g})")
