"""Averaging of the parameters: its formula, resumed and recovered runs, files with averages."""

import dataclasses
import math
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import SVI

from dmm_fast import DMM, training
from dmm_fast.data import Dataset
from dmm_fast.infer import evaluate_elbo
from dmm_fast.training import CheckpointError, Trainer, TrainingInterrupted, _trainer, read_metrics, train
from dmm_fast.training._averaging import Averaging
from dmm_fast.training._folder import BEST, LAST
from tests.helpers_train import (
    STEPS_AN_EPOCH,
    GraphedTrainer,
    assert_same_run,
    small_data,
    stop_at,
    tiny,
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_data()


def test_averages_equal_those_of_a_loop() -> None:
    dmm = DMM(input_dim=3, z_dim=2, emission_dim=3, transition_dim=3, rnn_dim=4).double()
    averaging = Averaging(dmm, 0.25)
    expected = {name: p.detach().clone() for name, p in dmm.named_parameters()}
    memory = [average.data_ptr() for average in averaging.tensors.values()]
    for step in range(9):
        decay = min(0.25, (1 + step) / (10 + step))
        assert (decay == 0.25) == (step >= 2)
        with torch.no_grad():
            for name, parameter in dmm.named_parameters():
                parameter.add_(torch.randn_like(parameter))
                expected[name] = decay * expected[name] + (1 - decay) * parameter
        averaging.update(step)
    for name, average in averaging.tensors.items():
        assert torch.allclose(average, expected[name], rtol=1e-13, atol=1e-14)
    assert memory == [average.data_ptr() for average in averaging.tensors.values()]


def test_swapping_is_undone_bitwise_even_by_an_error() -> None:
    dmm = DMM(input_dim=3, z_dim=2, emission_dim=3, transition_dim=3, rnn_dim=4)
    averaging = Averaging(dmm, 0.9)
    own = {name: parameter + 1 for name, parameter in dmm.state_dict().items()}
    dmm.load_state_dict(own)
    averages = {name: average.clone() for name, average in averaging.tensors.items()}
    with suppress(ZeroDivisionError), averaging.swapped():
        assert all(torch.equal(dmm.state_dict()[name], value) for name, value in averages.items())
        raise ZeroDivisionError
    assert all(torch.equal(dmm.state_dict()[name], value) for name, value in own.items())
    assert all(torch.equal(averaging.tensors[name], value) for name, value in averages.items())


def test_the_average_is_evaluated_and_saved(tmp_path: Path, data: Dataset) -> None:
    plain = Trainer(tiny(num_epochs=2), data)
    plain.run()
    files = {"save_model": tmp_path / "m", "out": tmp_path / "run"}
    dmm = train(tiny(num_epochs=2, average_decay=0.9, **files), data)
    saved = training.load_checkpoint(tmp_path / "run" / LAST)
    # The steps are those of a run without averages.
    assert saved.unaveraged.keys() == {name for name, _ in plain.dmm.named_parameters()}
    for name, parameter in plain.dmm.named_parameters():
        assert torch.equal(saved.unaveraged[name], parameter)
    assert not torch.equal(saved.model["z_0"], saved.unaveraged["z_0"])
    from_file = DMM(**saved.sizes)
    training.load_model(tmp_path / "m", from_file)
    for each in (from_file, training.load_dmm(tmp_path / "run" / LAST)):
        assert all(torch.equal(each.state_dict()[name], value) for name, value in dmm.state_dict().items())
    torch.manual_seed(1)
    measured = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["test"]
    assert measured == evaluate_elbo(from_file, data.test).total_over_total
    best = training.load_checkpoint(tmp_path / "run" / BEST)
    assert all(torch.equal(best.model[name], value) for name, value in saved.model.items())
    assert all(torch.equal(best.unaveraged[name], value) for name, value in saved.unaveraged.items())


def test_averages_start_at_a_loaded_model(tmp_path: Path, data: Dataset) -> None:
    train(tiny(num_epochs=1, save_model=tmp_path / "m"), data)
    trainer = Trainer(tiny(average_decay=0.5, load_model=tmp_path / "m"), data)
    assert all(torch.equal(trainer.averaging.tensors[name], p) for name, p in trainer.dmm.named_parameters())


@pytest.mark.parametrize("recover", [False, True])
def test_a_resumed_run_is_bitwise_equal(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, recover: bool
) -> None:
    unbroken = tiny(tmp_path / "unbroken", num_epochs=2, average_decay=0.9, recover=recover)
    train(unbroken, data)
    broken = dataclasses.replace(unbroken, out=tmp_path / "broken")
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS_AN_EPOCH + 2, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            train(broken, data)
    resumed = dataclasses.replace(broken, resume=True)
    Trainer(resumed, data)._save(LAST)
    train(resumed, data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    with pytest.raises(ValueError, match=r"average_decay: expected 0\.9, as in .*, got 0\.0"):
        train(dataclasses.replace(resumed, average_decay=0.0), data)


def test_recovery_goes_back_with_the_averages(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_trainer, "_STEPS_AHEAD", 2)
    monkeypatch.setattr("dmm_fast.training._recovery._LESS", 1.0)
    smooth = train(tiny(recover=True, average_decay=0.9), data)
    trainer = Trainer(tiny(tmp_path, recover=True, average_decay=0.9), data)
    original, done = SVI.step, 0

    def step(self: SVI, *args: Any) -> float:
        nonlocal done
        loss: float = original(self, *args)
        done += 1
        if done == STEPS_AN_EPOCH + 1:
            trainer.dmm.z_0.data.fill_(math.nan)
            return math.nan
        return loss

    monkeypatch.setattr(SVI, "step", step)
    trainer.run()
    assert done > 4 * STEPS_AN_EPOCH
    averages = trainer.averaging.tensors
    assert all(torch.equal(averages[name], value) for name, value in smooth.named_parameters())


def test_averages_of_replayed_steps_are_those_of_plain_ones(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(data.train), "padded_steps", lambda self, longest: longest)
    config = tiny(num_epochs=4, average_decay=0.9, eval_frequency=2)
    plain = Trainer(config, data)
    plain.run()
    graphed = GraphedTrainer(config, data)
    graphed.run()
    assert graphed.graphs.replays > 2
    for name, average in plain.averaging.tensors.items():
        assert torch.allclose(graphed.averaging.tensors[name], average, atol=1e-5)


@pytest.mark.parametrize("spoil", ["missing", "shape", "unwanted"])
def test_a_checkpoint_with_other_parameters_is_refused(tmp_path: Path, data: Dataset, spoil: str) -> None:
    config = tiny(tmp_path, num_epochs=1, average_decay=0.0 if spoil == "unwanted" else 0.9)
    train(config, data)
    saved = training.load_checkpoint(tmp_path / LAST)
    changed = {
        "missing": {},
        "shape": {**saved.unaveraged, "z_0": torch.zeros(9)},
        "unwanted": {"z_0": torch.zeros(4)},
    }[spoil]
    training.save_checkpoint(tmp_path / LAST, dataclasses.replace(saved, unaveraged=changed))
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(CheckpointError, match=rf"{LAST}: expected unaveraged "):
        train(dataclasses.replace(config, num_epochs=2, resume=True), data)
    assert (tmp_path / LAST).read_bytes() == before
