"""Data of a training run, refused before anything is written if no model supports them."""

import re
from typing import Any

import pytest
import torch

from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.training import TrainConfig, Trainer, read_metrics
from dmm_fast.training._data import check_data, fingerprint, load_data
from dmm_fast.training._mini_batches import MiniBatches
from dmm_fast.training._runlog import RunLog

LOG: dict[str, Any] = {"tensorboard": False, "progress": False, "total_steps": 1, "first_step": 0,
                       "first_epoch": 0, "metrics_bytes": 0}  # fmt: skip


def splits(test: torch.Tensor) -> Dataset:
    def of(x: torch.Tensor) -> SequenceSet:
        return SequenceSet(x, torch.full((len(x),), x.shape[1]))

    return Dataset("own", of(torch.ones(2, 3, 2)), of(torch.zeros(1, 3, 2)), of(test))


@pytest.mark.parametrize(
    ("test", "emission", "message"),
    [
        (torch.full((1, 3, 2), 0.5), "bernoulli", "0 or 1 wherever it is not masked, "
         "got 0.5 at (0, 0, 0) (emission='gaussian' is for such data)"),
        (torch.full((1, 3, 2), 3.0), "nade", "0 or 1 wherever it is not masked, "
         "got 3.0 at (0, 0, 0) (emission='poisson' or 'negative_binomial' is for such data)"),
        (torch.full((1, 3, 2), torch.inf), "gaussian", "a finite number wherever it is not masked, got inf"),
        (torch.ones(1, 3, 4), "bernoulli", "2 features, as train has, got 4"),
        (torch.ones(1, 3, 2, dtype=torch.float64), "gaussian", "sequences of torch.float32, as the model is"),
    ],
)  # fmt: skip
def test_data_without_a_suitable_model_are_refused(test: torch.Tensor, emission: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"data, test: expected {message}")):
        Trainer(TrainConfig(emission=emission, rnn_dim=2, z_dim=2), splits(test))


def test_splits_have_the_same_controls() -> None:
    plain = SequenceSet(torch.ones(1, 3, 2), torch.tensor([3]))
    controlled = SequenceSet(plain.sequences, plain.lengths, None, torch.ones(1, 3, 4))
    described = SequenceSet(plain.sequences, plain.lengths, None, controlled.controls, torch.ones(1, 2))
    for splits, message in (
        ((plain, plain, controlled), "data, test: expected 0 controls, as train has, got 4"),
        ((controlled, described, controlled), "data, valid: expected 0 covariates, as train has, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            check_data(Dataset("own", *splits), "bernoulli")
    prints = {fingerprint(Dataset("own", x, x, x)) for x in (plain, controlled, described)}
    assert len(prints) == 3


@pytest.mark.parametrize("emission", ["bernoulli", "gaussian"])
def test_missing_values_are_accepted(emission: str) -> None:
    test = torch.ones(1, 3, 2)
    test[0, 1, 1] = torch.nan
    check_data(splits(test), emission)
    assert fingerprint(splits(test)) != fingerprint(splits(torch.ones(1, 3, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_data({}), "config: expected TrainConfig, got dict"),
        (lambda: check_data(3, "bernoulli"), "data: expected Dataset, got int 3"),
        (lambda: fingerprint(None), "data: expected Dataset, got NoneType None"),
        (lambda: read_metrics(3), "path: expected str or Path, got int 3"),
        (lambda: RunLog("out", **LOG), "out: expected Path or NoneType, got str 'out'"),
        (lambda: RunLog(None, **{**LOG, "metrics_bytes": 0.5}), "metrics_bytes: expected int, got float 0.5"),
        (lambda: Trainer("config"), "config: expected TrainConfig, got str"),
        (lambda: Trainer(TrainConfig(), [1]), "data: expected Dataset, got list"),
    ],
)
def test_arguments_of_another_type_are_named(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("steps", [None, 1, 3, 4, 100])
def test_mini_batches_of_segments_are_counted_without_cutting(steps: int | None) -> None:
    train = SequenceSet(torch.zeros(5, 9, 2), torch.tensor([9, 1, 4, 6, 3]))
    batches = MiniBatches(train, 2, steps, pads=False, ranks=None)
    pieces = train if steps is None else train.segments(steps)
    assert batches.num_sequences == len(pieces)
    assert 2 * len(batches) - len(pieces) in (0, 1)
    assert batches.step(torch.arange(len(pieces)), len(batches) - 1).num_time_steps > 0
