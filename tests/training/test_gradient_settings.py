"""Training with other estimators of the gradient, and with several draws of each sequence."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from dmm_fast import training
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.infer import ImportanceELBO
from dmm_fast.training import train
from dmm_fast.training._folder import LAST
from dmm_fast.training._objective import guide_and_elbo, path_gradient
from tests.helpers_model import assert_close, small_dmm
from tests.helpers_train import GraphedTrainer, assert_same_run, small_data, stop_at, tiny

KINDS: list[dict[str, Any]] = [
    {"gradient": "path"},
    {"gradient": "path", "num_particles": 2, "num_iafs": 1, "iaf_dim": 5},
    {"elbo": "mean_field", "num_particles": 2},
    {"elbo": "importance", "num_particles": 3},
    {"elbo": "importance", "num_particles": 3, "gradient": "path"},
    {"elbo": "importance", "num_particles": 3, "gradient": "dreg"},
]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_data()


@pytest.mark.parametrize("settings", [KINDS[1], KINDS[5]], ids=str)
def test_a_resumed_run_is_bitwise_equal(settings: dict[str, Any], tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path / "whole", num_epochs=3, **settings), data)
    parts = tiny(tmp_path / "parts", num_epochs=2, **settings)
    train(parts, data)
    train(dataclasses.replace(parts, num_epochs=3, resume=True), data)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert training.load_dmm(tmp_path / "whole" / LAST).path_gradient is False


def test_each_setting_changes_the_run(data: Dataset) -> None:
    curves = [training_losses(settings, data) for settings in ({}, *KINDS)]
    assert len({*map(tuple, curves)}) == len(curves)


def training_losses(settings: dict[str, Any], data: Dataset) -> list[float]:
    trainer = training.Trainer(tiny(num_epochs=1, **settings), data)
    with path_gradient(trainer.dmm, trainer.config):
        return [trainer.svi.step(*_step(trainer, n), 0.5).item() for n in range(2)]


def _step(trainer: training.Trainer, number: int) -> tuple[Any, ...]:
    batches = trainer._batches
    order = batches.order()
    indices, T, _ = batches.step(order, number)
    return indices, T


@pytest.mark.parametrize("settings", [KINDS[1], KINDS[5]], ids=str)
def test_a_graphed_run_is_that_of_plain_steps(
    settings: dict[str, Any], tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise for more steps would change the noise from the second mini-batch on.
    monkeypatch.setattr(SequenceSet, "padded_steps", lambda self, longest: longest)
    plain = train(tiny(tmp_path / "plain", num_epochs=2, **settings), data)
    trainer = GraphedTrainer(tiny(tmp_path / "graphed", num_epochs=2, **settings), data)
    trainer.run()
    assert trainer.graphs.replays > 0
    for name, value in plain.state_dict().items():
        if value.is_floating_point():
            assert_close(trainer.dmm.state_dict()[name], value, 1e-4, name)


def test_the_objective_is_the_one_that_was_named() -> None:
    dmm = small_dmm()
    for settings, kind in (
        ({"gradient": "path"}, Trace_ELBO),
        ({"elbo": "mean_field", "num_particles": 2}, TraceMeanField_ELBO),
        ({"num_particles": 4}, Trace_ELBO),
        ({"elbo": "importance", "num_particles": 3, "gradient": "dreg"}, ImportanceELBO),
    ):
        config = tiny(**settings)
        _, elbo = guide_and_elbo(dmm, config)
        assert isinstance(elbo, kind)
        assert elbo.num_particles == config.num_particles
        assert not dmm.path_gradient
        with path_gradient(dmm, config):
            assert dmm.path_gradient == (config.gradient == "path")
        assert getattr(elbo, "gradient", config.gradient) == config.gradient


def test_a_trained_model_has_the_total_gradient(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dmm = train(tiny(num_epochs=1, gradient="path"), data)
    assert not dmm.path_gradient
    trainer = training.Trainer(tiny(num_epochs=1, gradient="path"), data)
    used = []
    stop_at(monkeypatch, 2, lambda: used.append(trainer.dmm.path_gradient) or float("nan"))
    with pytest.raises(training.NonFiniteLossError):
        trainer.run()
    assert used == [True]
    assert not trainer.dmm.path_gradient


def test_a_checkpoint_from_before_these_settings_is_resumed(tmp_path: Path, data: Dataset) -> None:
    train(tiny(tmp_path / "whole", num_epochs=3), data)
    config = tiny(tmp_path / "old", num_epochs=2)
    train(config, data)
    saved = training.load_checkpoint(tmp_path / "old" / LAST)
    before = {k: v for k, v in saved.config.items() if k not in ("gradient", "num_particles")}
    assert len(before) == len(saved.config) - 2
    training.save_checkpoint(tmp_path / "old" / LAST, dataclasses.replace(saved, config=before))
    train(dataclasses.replace(config, num_epochs=3, resume=True), data)
    assert_same_run(tmp_path / "whole", tmp_path / "old")
