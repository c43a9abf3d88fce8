"""Data of a training run: what the settings name, whether the model can be trained on it, which it is."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from dmm_fast import data as datasets
from dmm_fast.check import fail, kind
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.training._config import TrainConfig


def load_data(config: TrainConfig) -> Dataset:
    """The data set that ``config.data`` names.

    Raises:
        TypeError: ``config`` is something else.
        FileNotFoundError: there is no such file.
        ValueError: the file holds no data set, or ``num_sequences`` is given with a file.
    """
    kind("config", config, TrainConfig)
    if config.data != "chorales":
        if config.num_sequences is not None:
            fail("num_sequences", "None with a data file", str(config.num_sequences))
        return datasets.load(config.data)
    if config.num_sequences is None:
        return datasets.chorales()
    held_out = max(1, config.num_sequences // 3)
    return datasets.chorales(num_train=config.num_sequences, num_valid=held_out, num_test=held_out)


def check_data(data: Dataset, emission: str) -> None:
    """Check that all splits fit one model, and that it can emit what they hold; NaN is a missing value.

    Raises:
        TypeError: ``data`` is no data set.
        ValueError: splits differ in their features, are not of torch's default dtype as the model is, or
            hold what ``emission`` never gives.
    """
    kind("data", data, Dataset)
    D, dtype = data.train.sequences.shape[-1], torch.get_default_dtype()
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        x = split.sequences
        if x.shape[-1] != D:
            fail(f"data, {name}", f"{D} features, as train has", str(x.shape[-1]))
        if x.dtype != dtype:
            fail(f"data, {name}", f"sequences of {dtype}, as the model is", str(x.dtype))
        if emission == "bernoulli":
            expected = "zeros and ones (for real values: --emission gaussian)"
            _refuse(f"data, {name}", expected, x, (x != 0) & (x != 1) & ~x.isnan())
        else:
            _refuse(f"data, {name}", "finite numbers", x, x.isinf())


def _refuse(name: str, expected: str, x: Tensor, bad: Tensor) -> None:
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        fail(name, expected, f"{x[place].item():g} at (sequence, step, feature) {place}")


def fingerprint(data: Dataset) -> str:
    """A data set's name, sizes and CRC-32, to tell it from another.

    Raises:
        TypeError: ``data`` is no data set.
    """
    kind("data", data, Dataset)
    crc = 0
    for split in (data.train, data.valid, data.test):
        for tensor in _tensors(split):
            crc = zlib.crc32(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return f"{data.name}, {len(data.train)} sequences, CRC-32 {crc:08x}"


def _tensors(split: SequenceSet) -> list[Tensor]:
    return [split.sequences, split.lengths]
