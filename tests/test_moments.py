"""The moments of every distribution, and the errors for those without a closed form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmm_fast import distributions
from tests.bad_input.arguments import INSTANCES
from tests.helpers_model import assert_means_agree, posterior_of, small_dmm

NAMES = [name for name in distributions.__all__ if not issubclass(getattr(distributions, name), tuple)]
MAKERS: dict[str, Callable[[], Any]] = {name: INSTANCES[f"distributions.{name}"] for name in NAMES}
MAKERS["MeanFieldPosterior with flows"] = lambda: posterior_of(
    small_dmm(inference="mf-r", num_iafs=1, iaf_dim=6)
)
NO_MEAN = {"FlowedNormal", "MarkovPosterior", "MarkovPrior", "NadeEmission", "SequenceDistribution"}
NO_MEAN.add("MeanFieldPosterior with flows")
NO_VARIANCE = NO_MEAN | {"ModuleEmission"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_moment_equals_that_of_draws_or_is_refused_with_a_remedy(name: str) -> None:
    made = MAKERS[name]()
    shape = made.batch_shape + made.event_shape
    torch.manual_seed(0)
    draws = made.sample((4000,))
    for moment, lacking in (("mean", NO_MEAN), ("variance", NO_VARIANCE), ("stddev", NO_VARIANCE)):
        if name in lacking:
            with pytest.raises(
                NotImplementedError, match=r"^(mean|variance): .+; .*(average|estimate|draws)"
            ):
                getattr(made, moment)
            continue
        value = getattr(made, moment).detach()
        assert value.shape == shape
        if moment == "stddev":
            assert torch.equal(value, made.variance.sqrt())
            continue
        sampled = draws if moment == "mean" else (draws - made.mean.detach()).square()
        random = draws.std(0) > 0
        assert_means_agree(sampled[:, random], value[random])
        torch.testing.assert_close(sampled.mean(0)[~random], value[~random])
