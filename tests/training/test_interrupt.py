"""Signals that end training between two steps, and those that are ignored."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmm_fast import training
from dmm_fast.training._folder import LAST
from dmm_fast.training._interrupt import StopSignals
from tests.helpers_train import STEPS_AN_EPOCH, small_data, stop_at, tiny

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_recorded_and_its_handler_restored(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOPS]
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in STOPS] == before


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_that_is_ignored_stays_so(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopSignals() as stop:
        signal.raise_signal(number)
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM if number != signal.SIGTERM else signal.SIGHUP)
        assert stop.received is not None
        signal.raise_signal(number)
        assert stop.received != number
    assert signal.getsignal(number) is signal.SIG_IGN


def test_signals_stay_ignored_while_the_process_ends() -> None:
    with StopSignals() as stop:
        stop.ignore()
        signal.raise_signal(signal.SIGTERM)
    assert stop.received is None
    assert all(signal.getsignal(each) is signal.SIG_IGN for each in STOPS)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_passed_on_to_the_instance_around(number: signal.Signals) -> None:
    with StopSignals() as outer:
        with StopSignals():
            pass
        assert outer.received is None
        with StopSignals():
            signal.raise_signal(number)
        assert outer.received == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("epochs", "settings"), [(2, {"num_epochs": 2}), (3, {"patience": 1, "learning_rate": 0.0})], ids=str
)
def test_a_signal_in_the_last_step_finds_the_run_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, settings: dict[str, Any]
) -> None:
    stop_at(monkeypatch, epochs * STEPS_AN_EPOCH, lambda: signal.raise_signal(signal.SIGTERM))
    training.train(tiny(tmp_path, **settings), small_data())
    assert training.load_checkpoint(tmp_path / LAST).epoch == epochs
