"""The prior chain, forward in time: each step needs the launches of a gated transition for all rows."""

import triton.language as tl
from torch import Tensor

from dmm_fast.triton import tiles, transition
from dmm_fast.triton.common import softplus
from dmm_fast.triton.rows import clear_past_ends, rows_of, rowwise_kernel, steps_of


@rowwise_kernel
def transition_scan_fwd_kernel(w, mixed, eps, z, ahead, found, count, blocks):  # type: ignore[no-untyped-def]
    """Whole rows of one step: z_t is written to ``z``, and to ``ahead`` for the next step if there is one."""
    index, _, valid = tiles.rows_of_tile(found, count, blocks)
    transition.mix(w, mixed, index, valid, blocks)
    for n in range(0, mixed.loc.width, blocks.N):
        columns = n + tl.arange(0, blocks.N)
        loc, pre_scale = transition.head(mixed, w, index, valid, columns, blocks)
        value = loc + softplus(pre_scale) * tiles.read(eps, index, valid, columns)
        tiles.write(z, index, valid, columns, value)
        if ahead is not None:
            tiles.write(ahead, index, valid, columns, value)


def transition_scan(
    eps: Tensor, z_0: Tensor, inputs: Tensor, weights: list[Tensor], lengths: Tensor
) -> Tensor:
    """``z [P, B, T, Z]``.

    The rows of a step are adjacent in memory until all steps are drawn. Rows continue past their end, where
    the values are not read, and are cleared there at the end.
    """
    P, B, T, Z = eps.shape
    noise = eps.permute(2, 0, 1, 3).contiguous()
    given = eps.new_empty(T, P, B, Z + inputs.shape[-1])  # [z_{t-1}, inputs_t]
    given[..., Z:] = inputs.permute(2, 0, 1, 3)
    given[0, ..., :Z] = z_0
    z, ahead = noise.new_empty(noise.shape), tiles.columns_of(given.flatten(0, 2), slice(0, Z))
    for t in range(T):
        read = given[t].view(1, P * B, 1, given.shape[-1])
        drawn = tiles.features_of(noise[t]), tiles.features_of(z[t])
        after = ahead._replace(ptr=given[t + 1]) if t + 1 < T else None
        step = rows_of(read), None, steps_of(read, None)
        transition.forward(transition_scan_fwd_kernel, weights, P * B, *step, *drawn, after)
    return clear_past_ends(z.permute(1, 2, 0, 3).contiguous(), lengths)
