"""Recovery from a NaN loss: an earlier state with half the learning rate, also in resumed runs."""

import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import SVI

from dmm_fast import training
from dmm_fast.data import Dataset
from dmm_fast.training import NonFiniteLossError, Trainer, TrainingInterrupted, _trainer, read_metrics, train
from dmm_fast.training._folder import LAST
from dmm_fast.training._runlog import METRICS
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


@pytest.fixture(autouse=True)
def kept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trainer, "_STEPS_AHEAD", 2)


def spoil_losses(monkeypatch: pytest.MonkeyPatch, above: float, after: int = 2) -> None:
    """From step ``after`` on the loss is NaN while the learning rate is above ``above``."""
    original = SVI.step

    def step(self: SVI, *args: Any) -> float:
        loss: float = original(self, *args)
        optimizer = next(iter(self.optim.optim_objs.values()))
        (state,) = optimizer.state.values()
        is_spoilt = state["step"] > after and optimizer.param_groups[0]["lr"] > above
        return math.nan if is_spoilt else loss

    monkeypatch.setattr(SVI, "step", step)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7, 12])
def test_the_restored_state_had_a_finite_loss(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    # States are kept before steps 0 and 2 of each epoch, and count as good once their loss is finite.
    starts = [e * STEPS_AN_EPOCH + s for e in range(4) for s in (0, 2)]
    trainer = Trainer(tiny(recover=True), data)
    stop_at(monkeypatch, step, lambda: math.nan)
    if step == 1:
        with pytest.raises(NonFiniteLossError, match="got nan in epoch 0, step 0"):
            trainer.run()
        return
    trainer.run()
    failed = step - 1
    epoch, within = divmod(max(start for start in starts if start < failed), STEPS_AN_EPOCH)
    (line,) = [record.message for record in caplog.records if "at half" in record.message]
    was = divmod(failed, STEPS_AN_EPOCH)
    assert line == (
        f"loss: got nan in epoch {was[0]}, step {was[1]}: back to epoch {epoch}, step {within} "
        "at half the learning rate (1 of at most 10 times)"
    )
    (rate,) = {group["lr"] for o in trainer.optimizer.optim_objs.values() for group in o.param_groups}
    assert rate == pytest.approx(0.5 * 0.01 * 0.99996 ** (4 * STEPS_AN_EPOCH), rel=1e-9)
    counts = {state["state"][0]["step"] for state in trainer.optimizer.get_state().values()}
    assert counts == {4 * STEPS_AN_EPOCH}


def test_a_state_is_restored_bitwise_in_place(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an unchanged rate, a run with a recovery equals one without."""
    monkeypatch.setattr("dmm_fast.training._recovery._LESS", 1.0)
    train(tiny(tmp_path / "smooth", recover=True), data)
    trainer = Trainer(tiny(tmp_path / "rough", recover=True), data)
    memory = [parameter.data_ptr() for parameter in trainer.dmm.parameters()]
    # The first step of the second epoch: the earlier state is in the first, whose line is written.
    stop_at(monkeypatch, STEPS_AN_EPOCH + 1, lambda: math.inf)
    trainer.run()
    assert memory == [parameter.data_ptr() for parameter in trainer.dmm.parameters()]
    smooth, rough = (training.load_checkpoint(tmp_path / name / LAST) for name in ("smooth", "rough"))
    assert (tmp_path / "smooth" / METRICS).read_bytes() == (tmp_path / "rough" / METRICS).read_bytes()
    assert all(torch.equal(value, rough.model[name]) for name, value in smooth.model.items())
    assert (smooth.recovery["times"], rough.recovery["times"]) == (0, 1)


@pytest.mark.parametrize(
    ("broken_at", "schedule"), [(1, "constant"), (2, "cosine"), (4, "constant"), (9, "cosine")]
)
def test_a_resumed_run_recovers_like_an_uninterrupted_one(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, broken_at: int, schedule: str
) -> None:
    config = tiny(tmp_path / "unbroken", recover=True, lr_schedule=schedule, num_epochs=3)
    with monkeypatch.context() as patch:
        spoil_losses(patch, above=0.004)
        train(config, data)
    assert training.load_checkpoint(tmp_path / "unbroken" / LAST).recovery["times"] == 2
    broken = dataclasses.replace(config, out=tmp_path / "broken")
    with monkeypatch.context() as patch:
        spoil_losses(patch, above=0.004)
        # Repeated steps count as well.
        stop_at(patch, broken_at, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(TrainingInterrupted):
            train(broken, data)
    with monkeypatch.context() as patch:
        spoil_losses(patch, above=0.004)
        train(dataclasses.replace(broken, resume=True), data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")


def test_training_ends_after_ten_recoveries(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil_losses(monkeypatch, above=0.0)
    with pytest.raises(NonFiniteLossError, match=r"got nan in epoch 0, step 2; .* A lower learning rate"):
        train(tiny(tmp_path, recover=True), data)
    assert sum("at half the learning rate" in record.message for record in caplog.records) == 10
    assert training.load_checkpoint(tmp_path / LAST).recovery["times"] == 10


def test_recovery_with_graphs(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays continue from the restored state, with rates and counts as tensors."""
    trainer = GraphedTrainer(tiny(tmp_path, recover=True, num_epochs=6), data)
    trainer._steps_ahead = 2
    original, done = trainer.svi.step, []

    def step(*args: Any) -> Any:
        loss = original(*args)
        done.append(loss)
        return loss * math.nan if len(done) == 3 * STEPS_AN_EPOCH + 2 else loss

    monkeypatch.setattr(trainer.svi, "step", step)
    trainer.run()
    assert (trainer.graphs.runs, trainer.graphs.captures) == (2, 2)
    states = trainer.optimizer.get_state().values()
    assert {int(state["state"][0]["step"]) for state in states} == {6 * STEPS_AN_EPOCH}
    expected = 0.5 * 0.01 * 0.99996 ** (6 * STEPS_AN_EPOCH)
    for state in states:
        assert float(state["param_groups"][0]["lr"]) == pytest.approx(expected, rel=1e-9)
    assert [line["epoch"] for line in read_metrics(tmp_path / METRICS)] == list(range(6))
