"""Drawing the posterior chain z_{1:T} through normalizing flows, forward in time."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import CombinerWeights, FlowWeights


def flow_scan(
    h: Tensor,
    eps: Tensor,
    z_q_0: Tensor,
    weights: CombinerWeights,
    flow_weights: FlowWeights,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Draw ``z_t = f_K(... f_1(loc_t + softplus(pre_scale_t) eps_t))`` with affine autoregressive flows.

    ``loc_t, pre_scale_t`` are the combiner's at ``z_{t-1}``, as in :func:`combiner_scan`. A flow is
    ``f(x)_j = exp(s_j) x_j + m_j`` with ``a = relu(W_in x + b_in)``, ``m = W_mean a + b_mean`` and
    ``s = W_log_scale a + b_log_scale``, clamped to [-5, 3]; gradients pass the clamp unchanged. The op does
    not know the order of the latents: the caller has to set to zero the weights that violate it, and only
    then is ``log_det`` the logarithm of a determinant.

    Args:
        h: ``[..., B, T, H]``, the output of the inference network; broadcasts with ``eps`` on the particle
            dimensions.
        eps: ``[..., B, T, Z]``, standard normal noise.
        z_q_0: the initial state of the guide, of any shape that broadcasts to ``[..., B, Z]``.
        weights: weights of the combiner.
        flow_weights: weights of ``K`` flows with ``F`` hidden units each, in the order of application.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``z, loc, pre_scale``, each ``[..., B, T, Z]`` and zero past the end of each row, where ``loc`` and
        ``pre_scale`` are those before any flow; and ``log_det [..., B]``, the sum of all ``s`` over valid
        steps.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``eps`` or weights have the wrong type.

    Source: arXiv 1609.09869, section 4; arXiv 1606.04934, eq. 10; ``num_iafs`` in Pyro's ``examples/dmm.py``.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = call(
        "flow_scan", h, eps, z_q_0, weights, flow_weights, lengths
    )
    return result
