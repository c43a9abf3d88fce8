"""Drawing the posterior chain z_{1:T}, forward in time."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import CombinerWeights


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draw ``z_t = loc_t + softplus(pre_scale_t) eps_t`` with ``loc, pre_scale`` from the combiner.

    ``c_t = (tanh(W_z z_{t-1} + b_z) + h_t) / 2``, ``loc_t = W_loc c_t + b_loc``,
    ``pre_scale_t = W_scale c_t + b_scale``. The pre-activation is returned in place of the scale:
    from it the log-density stays finite where the scale underflows.

    On a GPU, backend ``"cuda"`` multiplies large batches in tf32 where
    ``torch.set_float32_matmul_precision`` is not ``"highest"``: latents, units and weights are rounded to 11
    bits. Sums and all else are in float32. The gradient's scan rounds likewise.

    Where autograd may ask for a gradient, a compiled backend keeps the tanh of every step for the backward
    pass, ``[..., B, T, H]``; without one, as under ``torch.no_grad``, it does not.

    Args:
        h: ``[..., B, T, H]``, what the inference network gives; broadcasts with ``eps`` on the particle
            dimensions, so that ``[B, T, H]`` is for all particles.
        eps: ``[..., B, T, Z]``, standard normal noise.
        z_q_0: what z_0 stands for in the guide; of any shape that broadcasts to ``[..., B, Z]``.
        weights: of the combiner.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``z, loc, pre_scale``, each ``[..., B, T, Z]`` and zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length that does not fit.
        TypeError: ``eps`` or ``weights`` is of another kind.

    Source: arXiv 1609.09869, section 4 (structured inference, DKS).
    """
    result: tuple[Tensor, Tensor, Tensor] = call("combiner_scan", h, eps, z_q_0, weights, lengths)
    return result
