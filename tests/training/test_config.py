"""The settings of a run: their ranges, and the annealing schedule of Pyro's example."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from dmm_fast.training import TrainConfig


def test_annealing_factor_equals_that_of_the_example() -> None:
    config = TrainConfig(annealing_epochs=2, minimum_annealing_factor=0.2)
    factors = [config.annealing_factor(e, b, 4) for e in range(3) for b in range(4)]
    expected = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert factors == pytest.approx(expected, abs=1e-15)
    assert TrainConfig(annealing_epochs=0).annealing_factor(0, 0, 4) == 1.0
    # The formula of the example, bitwise.
    want = 0.2 + (1.0 - 0.2) * (float(7 + 123 * 12 + 1) / float(1000 * 12))
    assert TrainConfig().annealing_factor(123, 7, 12) == want


def test_annealing_over_steps_ends_in_mid_epoch() -> None:
    config = TrainConfig(annealing_steps=5, minimum_annealing_factor=0.0)
    factors = [config.annealing_factor(epoch, batch, 4) for epoch in range(2) for batch in range(4)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0], abs=1e-15)
    assert TrainConfig(annealing_steps=0).annealing_factor(0, 0, 4) == 1.0
    # As many steps as epochs have: the same, bitwise.
    epochs, steps = TrainConfig(), TrainConfig(annealing_steps=12_000)
    assert [each.annealing_factor(123, 7, 12) for each in (epochs, steps)] == [0.2 + 0.8 * 1484 / 12_000] * 2
    # An explicit default cannot be told from an absent setting.
    assert TrainConfig(annealing_steps=5, annealing_epochs=1000) == TrainConfig(annealing_steps=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, "num_epochs: expected at least 1, got 0"),
        ({"mini_batch_size": 0}, "mini_batch_size"),
        ({"num_sequences": 0}, "num_sequences: expected at least 1"),
        ({"elbo": "renyi"}, "elbo: expected one of trace, mean_field, importance, tmc, tmcelbo, got renyi"),
        ({"gradient": "stl"}, "gradient: expected one of total, path, dreg, got stl"),
        ({"gradient": "dreg"}, "gradient: expected total or path with elbo trace, got dreg"),
        ({"gradient": "path", "elbo": "mean_field"}, "gradient: expected total with elbo mean_field, got"),
        ({"num_particles": 0}, "num_particles: expected at least 1, got 0"),
        ({"num_particles": 2, "elbo": "tmc"}, "num_particles: expected 1 with elbo tmc, got 2"),
        ({"lr_schedule": "step"}, "lr_schedule"),
        ({"emission": "cauchy"}, "emission: expected one of bernoulli, .*nade.*, got cauchy"),
        ({"augment": "latents"}, "augment: expected one of transition, emission, both, got latents"),
        ({"nade_dim": 0}, "nade_dim: expected at least 1, got 0"),
        ({"split_seed": -1}, "split_seed: expected 0 to"),
        ({"inference": "st"}, "inference: expected one of st-r, st-l, st-lr, mf-r, mf-l, mf-lr, got st"),
        ({"rnn": "LSTM"}, "rnn: expected one of relu, tanh, lstm, gru, got LSTM"),
        ({"minimum_annealing_factor": 1.5}, "minimum_annealing_factor: expected 0 to 1, got 1.5"),
        ({"resume": True}, "resume: expected a folder"),
        ({"load_opt": Path("o")}, "load_opt: expected load_model with it"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"learning_rate": math.nan}, "learning_rate: expected a finite number from 0, got nan"),
        ({"learning_rate": -0.1}, "learning_rate: expected a finite number from 0, got -0.1"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"beta1": 1.0}, "beta1: expected a number below 1"),
        ({"beta2": -0.5}, "beta2: expected 0 to 1"),
        ({"clip_norm": 0.0}, "clip_norm: expected a number above 0"),
        ({"clip_norm": math.nan}, "clip_norm: expected at least 0, got nan"),
        ({"lr_decay": 0}, "lr_decay: expected a number above 0"),
        ({"rnn_dropout_rate": 1.1}, "rnn_dropout_rate"),
        ({"z_dim": 0}, "z_dim: expected at least 1"),
        ({"seed": 2**32}, "seed: expected 0 to 4294967295"),
        ({"min_scale": -0.1}, "min_scale: expected a finite number from 0, got -0.1"),
        ({"annealing_steps": -1}, "annealing_steps: expected at least 0, got -1"),
        (
            {"annealing_steps": 9, "annealing_epochs": 3},
            "annealing_steps: expected None beside annealing_epochs 3, got 9",
        ),
        ({"guide_weight_decay": math.inf}, "guide_weight_decay: expected a finite number from 0, got inf"),
        ({"average_decay": 1.0}, "average_decay: expected a number below 1, got 1"),
        ({"standardize": True}, "standardize: expected emission gaussian with it, got bernoulli"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_a_value_of_another_type_is_named(field: Any) -> None:
    """No field accepts an object; only bool fields accept bools, and only str fields strings."""
    hint = field.type
    wrong: list[Any] = [object(), [1]]
    wrong += [] if "bool" in hint else [True]
    wrong += [] if "str" in hint else ["0.1"]
    wrong += [] if "float" in hint else [0.5]
    wrong += [] if "None" in hint else [None]
    for value in wrong:
        with pytest.raises(TypeError, match=f"^{field.name}: expected .*{hint.split(' ')[0]}.*, got "):
            TrainConfig(**{field.name: value})


def test_valid_types_are_accepted() -> None:
    config = TrainConfig(learning_rate=1, clip_norm=math.inf, out=Path("o"), num_sequences=3)
    assert (config.learning_rate, config.num_sequences) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((0.0, 0, 3), TypeError, "epoch: expected int, got float 0.0"),
        ((-1, 0, 3), ValueError, "epoch: expected at least 0, got -1"),
        ((0, True, 3), TypeError, "which_mini_batch: expected int, got bool True"),
        ((0, 3, 3), ValueError, "which_mini_batch: expected 0 to 2, got 3"),
        ((0, 0, 0), ValueError, "num_mini_batches: expected at least 1, got 0"),
    ],
)
def test_arguments_of_the_annealing_are_checked(
    arguments: tuple[Any, Any, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        TrainConfig().annealing_factor(*arguments)


@pytest.mark.parametrize(("step", "batches"), [(-1, 3), (0, 0)])
def test_arguments_of_the_schedule_are_checked(step: int, batches: int) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        TrainConfig().scheduled_lr(step, batches)


def test_a_schedule_of_steps_is_that_of_as_many_epochs() -> None:
    steps = TrainConfig(lr_schedule="cosine", num_steps=11)
    epochs = TrainConfig(lr_schedule="cosine", num_epochs=3)
    rates = [[each.scheduled_lr(step, 4) for step in range(12)] for each in (steps, epochs)]
    assert rates[0] == rates[1]
    assert rates[0][6] < 0.6 * rates[0][0]
    # Runs of other lengths are other runs, but only with this schedule.
    kept = [TrainConfig(lr_schedule="cosine", num_steps=n).kept() for n in (11, 12)]
    assert kept[0] != kept[1]
    assert [each["num_steps"] for each in kept] == [11, 12]
    assert TrainConfig(num_steps=11).kept() == TrainConfig().kept()
    assert "num_steps" not in epochs.kept()
    assert TrainConfig(**steps.saved()).saved() == steps.saved()


def test_standardize_follows_the_emission() -> None:
    assert not TrainConfig().is_standardized
    assert TrainConfig(emission="gaussian").is_standardized
    assert not TrainConfig(emission="gaussian", standardize=False).is_standardized
    # Explicit or by the emission, it is the same run.
    assert (
        TrainConfig(emission="gaussian").kept() == TrainConfig(emission="gaussian", standardize=True).kept()
    )


def test_sizes_have_only_options_that_differ_from_their_defaults() -> None:
    assert not {"emission", "min_scale", "inference", "rnn"} & TrainConfig().sizes(88).keys()
    sizes = TrainConfig(emission="gaussian", min_scale=0.1).sizes(88)
    assert (sizes["emission"], sizes["min_scale"]) == ("gaussian", 0.1)
    assert TrainConfig(min_scale=0.1).sizes(88)["min_scale"] == 0.1
    new = {"nade_dim": 7, "augment": "both", "mask_input": True}
    assert not {*new, "control_dim", "static_dim"} & TrainConfig().sizes(88).keys()
    sizes = TrainConfig(**new).sizes(88, 2, 3)
    assert {name: sizes[name] for name in (*new, "control_dim", "static_dim")} == {
        **new, "control_dim": 2, "static_dim": 3,
    }  # fmt: skip
    sizes = TrainConfig(inference="mf-lr", rnn="gru").sizes(88)
    assert (sizes["inference"], sizes["rnn"]) == ("mf-lr", "gru")
