"""Affine autoregressive flows of Pyro: their weights in the form of the ops, and their exact inverse."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn.auto_reg_nn import AutoRegressiveNN, MaskedLinear
from torch import Tensor, nn
from torch.distributions import Transform

from dmm_fast import check
from dmm_fast._network import has_hooks
from dmm_fast.reference import FLOW_LOG_SCALES, FlowWeights, affine_flows, clamp_log_scale


def checked(flows: Any, Z: int) -> tuple[Any, ...]:
    """Check a list of transforms over ``Z`` latents.

    Raises:
        TypeError: ``flows`` is not a list or tuple of transforms.
        ValueError: an autoregressive flow has another number of latents.
    """
    check.kind("flows", flows, list, tuple)
    for i, flow in enumerate(flows):
        check.kind(f"flows[{i}]", flow, Transform)
        own = getattr(getattr(flow, "arn", None), "input_dim", Z)
        if own != Z:
            check.fail(f"flows[{i}]", f"a transform of {Z} latents", f"one of {own}")
    return tuple(flows)


def why_no_weights(flows: Sequence[Any]) -> str | None:
    """The reason why no op can compute these flows; None if :func:`weights_of` can return their weights.

    It can if all flows are as Pyro's ``affine_autoregressive(z_dim, hidden_dims=[F])`` creates them, with the
    same ``F``, except for the values of their parameters and masks.
    """
    if len({flow.arn.layers[0].out_features for flow in flows if why_not_affine(flow) is None}) > 1:
        return "they have different numbers of hidden units"
    return next((why for flow in flows if (why := why_not_affine(flow)) is not None), None)


def why_not_affine(flow: Any) -> str | None:
    """The difference of a flow from Pyro's affine autoregressive flow with one hidden layer; None if none."""
    if type(flow) is not AffineAutoregressive or {"forward", "_call"} & vars(flow).keys():
        return f"one is a {type(flow).__name__} or has functions of its own"
    network: Any = flow.arn
    if type(network) is not AutoRegressiveNN or "forward" in vars(network):
        return f"the network of one is a {type(network).__name__} or has functions of its own"
    if (flow.log_scale_min_clip, flow.log_scale_max_clip) != FLOW_LOG_SCALES:
        return "one has another range of scales"
    if list(network.param_dims) != [1, 1] or network.skip_layer is not None or type(network.f) is not nn.ReLU:
        return "the network of one has other outputs, skips layers or has another nonlinearity"
    if len(network.layers) != 2 or not all(_is_masked_layer(layer) for layer in network.layers):
        return "the network of one has other layers than two masked ones"
    return "one has hooks" if any(has_hooks(module) for module in flow.modules()) else None


def _is_masked_layer(layer: nn.Module) -> bool:
    return type(layer) is MaskedLinear and "forward" not in vars(layer) and layer.bias is not None


def weights_of(flows: Sequence[Any]) -> FlowWeights:
    """The masked weights of ``K`` flows for which :func:`why_no_weights` returns None."""
    layers = [flow.arn.layers for flow in flows]
    w_in = _stacked([first.weight * first.mask for first, _ in layers])
    # The second layer has the rows of all means, followed by the rows of all log-scales.
    w_out = _stacked([(second.weight * second.mask).unflatten(0, (2, -1)) for _, second in layers], 1)
    b_in = _stacked([first.bias for first, _ in layers])
    b_out = _stacked([second.bias.unflatten(0, (2, -1)) for _, second in layers], 1)
    # Split after stacking, so that backward combines the gradients of both heads in one operation.
    (w_mean, w_log_scale), (b_mean, b_log_scale) = w_out.unbind(), b_out.unbind()
    return FlowWeights(w_in, b_in, w_mean, b_mean, w_log_scale, b_log_scale)


def _stacked(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return torch.stack(tensors, dim) if len(tensors) > 1 else tensors[0].unsqueeze(dim)


def weights_if_any(flows: Sequence[Any]) -> FlowWeights | None:
    """The weights for :func:`apply`, to be reused in several calls; None if no op can compute the flows."""
    return weights_of(flows) if flows and why_no_weights(flows) is None else None


def apply(flows: Sequence[Transform], x: Tensor, weights: FlowWeights | None) -> tuple[Tensor, Tensor]:
    """``y [..., Z]`` and the log-determinant ``[...]`` of any flows, one after another, at ``x [..., Z]``.

    ``weights`` is the result of :func:`weights_if_any`.
    """
    if weights is not None:
        return affine_flows(x, weights)
    log_det = x.new_zeros(x.shape[:-1])
    for flow in flows:
        before, x = x, flow(x)
        log_det = log_det + flow.log_abs_det_jacobian(before, x)
    return x, log_det


def invert(flows: Sequence[Any], y: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse ``x [..., Z]`` of flows at ``y [..., Z]``, and the flows' log-determinant ``[...]`` at x.

    Affine autoregressive flows are inverted exactly, latent by latent in their order: O(Z F) for each flow
    and row, in the dtype of ``y``. Any other flow is inverted by its own ``inv``.
    """
    log_det = y.new_zeros(y.shape[:-1])
    for flow in reversed(flows):
        if why_not_affine(flow) is None:
            y, log_det_here = _invert_affine(flow, y)
        else:
            after, y = y, flow.inv(y)
            log_det_here = flow.log_abs_det_jacobian(y, after)
        log_det = log_det + log_det_here
    return y, log_det


def _invert_affine(flow: AffineAutoregressive, y: Tensor) -> tuple[Tensor, Tensor]:
    order = flow.arn.permutation
    # Permuted into the flow's order of latents, so that the loop needs no indices from the device.
    weights = [each[0] for each in weights_of([flow])]
    w_in, b_in, w_mean, b_mean, w_log_scale, b_log_scale = weights
    columns = w_in.index_select(1, order).unbind(1)
    heads = torch.stack([w_mean, w_log_scale], 1).index_select(0, order).unbind(0)
    biases = torch.stack([b_mean, b_log_scale], 1).index_select(0, order).unbind(0)
    hidden = b_in
    found, log_scales = [], []
    for y_j, column, head, bias in zip(
        y.index_select(-1, order).unbind(-1), columns, heads, biases, strict=True
    ):
        mean, log_scale = F.linear(torch.relu(hidden), head, bias).unbind(-1)
        log_scale = clamp_log_scale(log_scale)
        x_j = (y_j - mean) * torch.exp(-log_scale)
        # By the masks, only later latents depend on the hidden units that this one changes.
        hidden = hidden + x_j.unsqueeze(-1) * column
        found.append(x_j)
        log_scales.append(log_scale.expand_as(x_j))
    x = torch.stack(found, -1).index_select(-1, order.argsort())
    return x, torch.stack(log_scales, -1).sum(-1)
