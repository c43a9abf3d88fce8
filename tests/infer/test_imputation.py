"""Draws of missing values."""

from typing import Any

import pytest
import torch

from dmm_fast.infer import impute, reconstruct
from tests.helpers_model import (
    LENGTHS,
    SIZES,
    assert_means_agree,
    make_batch,
    missing_mask,
    small_dmm,
    valid_steps,
)

B, T, D = len(LENGTHS), max(LENGTHS), SIZES["input_dim"]


@pytest.mark.parametrize("layers", [{}, {"emission": "gaussian", "augment": "both"}], ids=["plain", "past"])
@pytest.mark.parametrize("dims", [2, 3])
def test_missing_values_are_drawn_and_observed_values_are_unchanged(
    layers: dict[str, Any], dims: int
) -> None:
    emission = layers.get("emission", "bernoulli")
    dmm = small_dmm(dtype=torch.float64, **layers)
    made = make_batch(dtype=torch.float64, emission=emission)
    mask = missing_mask(made, dims)
    observed = (mask if dims == 3 else mask[..., None]).bool().expand(B, T, D)
    missing = valid_steps()[..., None] & ~observed
    batch = (made.mini_batch.masked_fill(~observed, float("nan")), None, mask, made.mini_batch_seq_lengths)
    N = 2000
    filled = impute(dmm, batch, N, seed=1)
    assert filled.shape == (N, B, T, D)
    assert torch.equal(filled[:, observed], made.mini_batch[observed].expand(N, -1))
    assert bool((filled[:, ~valid_steps()] == 0).all())
    assert bool((filled[:, missing].std(0) > 0).all())
    assert_means_agree(filled[:, missing], reconstruct(dmm, batch, N, seed=2)[:, missing])
    assert torch.equal(impute(dmm, batch, seed=3), impute(dmm, batch, seed=3))
    assert impute(dmm, batch).shape == (B, T, D)
