"""The settings of a run: their ranges, and the annealing schedule of Pyro's example."""

from pathlib import Path
from typing import Any

import pytest

from dmm_fast.config import TrainConfig


def test_annealing_factor_is_the_example_s() -> None:
    config = TrainConfig(annealing_epochs=2, minimum_annealing_factor=0.2)
    factors = [config.annealing_factor(e, b, 4) for e in range(3) for b in range(4)]
    expected = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors == pytest.approx(expected, abs=1e-15)
    assert TrainConfig(annealing_epochs=0).annealing_factor(0, 0, 4) == 1.0
    # The formula as it stands there, to the bit.
    want = 0.2 + (1.0 - 0.2) * (float(7 + 123 * 12 + 1) / float(1000 * 12))
    assert TrainConfig().annealing_factor(123, 7, 12) == want


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, "num_epochs: expected at least 1, got 0"),
        ({"mini_batch_size": 0}, "mini_batch_size"),
        ({"elbo": "renyi"}, "elbo: expected one of trace, mean_field, tmc, tmcelbo, got renyi"),
        ({"lr_schedule": "step"}, "lr_schedule"),
        ({"minimum_annealing_factor": 1.5}, "minimum_annealing_factor: expected 0 to 1, got 1.5"),
        ({"resume": True}, "resume: expected a folder"),
        ({"load_opt": Path("o")}, "load_opt: expected load_model with it"),
        ({"warmup_steps": -1}, "warmup_steps"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)
