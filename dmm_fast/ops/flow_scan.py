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
    ``s = W_log_scale a + b_log_scale``, clamped to [-5, 3]; the gradient passes the clamp as it is. The op
    knows no order of the latents: it is the caller who sets to zero the weights that an order forbids, and
    only with those ``log_det`` is the logarithm of a determinant.

    Args:
        h: ``[..., B, T, H]``, what the inference network gives; broadcasts with ``eps`` on the particle
            dimensions.
        eps: ``[..., B, T, Z]``, standard normal noise.
        z_q_0: what z_0 stands for in the guide; of any shape that broadcasts to ``[..., B, Z]``.
        weights: of the combiner.
        flow_weights: of ``K`` flows with ``F`` hidden units each, in the order in which they are applied.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``z, loc, pre_scale``, each ``[..., B, T, Z]`` and zero past the end of each row; the last two
        are those before any flow. And ``log_det [..., B]``, the sum of all ``s`` over valid steps.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``eps`` or weights are of another kind.

    Source: arXiv 1609.09869, section 4; arXiv 1606.04934, eq. 10; ``num_iafs`` in Pyro's ``examples/dmm.py``.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = call(
        "flow_scan", h, eps, z_q_0, weights, flow_weights, lengths
    )
    return result
