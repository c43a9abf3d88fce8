"""Drawing the posterior chain z_{1:T}, forward in time."""

from torch import Tensor

from dmm_fast.ops._registry import call
from dmm_fast.reference import CombinerWeights


def combiner_scan(
    h: Tensor, eps: Tensor, z_q_0: Tensor, weights: CombinerWeights, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draw ``z_t = loc_t + softplus(pre_scale_t) eps_t`` with ``loc, pre_scale`` from the combiner.

    ``c_t = (tanh(W_z z_{t-1} + b_z) + h_t) / 2``, ``loc_t = W_loc c_t + b_loc``,
    ``pre_scale_t = W_scale c_t + b_scale``. The pre-activation is returned instead of the scale, so that the
    log-density stays finite if the scale underflows.

    On a GPU, backend ``"cuda"`` multiplies large batches in tf32 unless
    ``torch.set_float32_matmul_precision`` is ``"highest"``: latents, units and weights are rounded to 11
    bits. Sums and everything else are in float32. The scan of the gradient rounds likewise.

    If autograd records, a compiled backend keeps the tanh of every step for the backward pass,
    ``[..., B, T, H]``; otherwise, as under ``torch.no_grad``, it does not.

    Args:
        h: ``[..., B, T, H]``, the output of the inference network; broadcasts with ``eps`` on the particle
            dimensions, so that ``[B, T, H]`` is shared by all particles.
        eps: ``[..., B, T, Z]``, standard normal noise.
        z_q_0: the initial state of the guide, of any shape that broadcasts to ``[..., B, Z]``.
        weights: weights of the combiner.
        lengths: int64 ``[B]``, values in ``[0, T]``.

    Returns:
        ``z, loc, pre_scale``, each ``[..., B, T, Z]`` and zero past the end of each row.

    Raises:
        ValueError: a shape, dtype, device or length is wrong.
        TypeError: ``eps`` or ``weights`` has the wrong type.

    Source: arXiv 1609.09869, section 4 (structured inference, DKS).
    """
    result: tuple[Tensor, Tensor, Tensor] = call("combiner_scan", h, eps, z_q_0, weights, lengths)
    return result
