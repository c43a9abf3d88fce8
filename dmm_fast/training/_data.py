"""The data of a training run: loading, checking against the model, and a fingerprint."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from dmm_fast import data as datasets
from dmm_fast._heads import HEADS
from dmm_fast._values import check_values
from dmm_fast.check import fail, kind
from dmm_fast.data import Dataset, SequenceSet
from dmm_fast.reference import valid_steps
from dmm_fast.training._config import TrainConfig

WIDTHS = ("features", "controls", "covariates")


def load_data(config: TrainConfig) -> Dataset:
    """The data set that ``config.data`` names.

    Raises:
        TypeError: ``config`` is not a :class:`TrainConfig`.
        FileNotFoundError: the file does not exist.
        ValueError: the file holds no data set, or ``num_sequences`` is given with a file.
    """
    kind("config", config, TrainConfig)
    if config.data != "chorales":
        if config.num_sequences is not None:
            fail("num_sequences", "None with a data file", str(config.num_sequences))
        return datasets.load(config.data, split_seed=config.split_seed, **config.table)
    for name, value in config.table.items():
        if value is not None:
            fail(name, "None with the built-in chorales", str(value))
    if config.num_sequences is None:
        return datasets.chorales()
    held_out = max(1, config.num_sequences // 3)
    return datasets.chorales(num_train=config.num_sequences, num_valid=held_out, num_test=held_out)


def check_data(data: Dataset, emission: str) -> None:
    """Check that one model fits all splits and that ``emission`` can produce their values; NaN is missing.

    Raises:
        TypeError: ``data`` is not a :class:`~dmm_fast.data.Dataset`.
        ValueError: the splits differ in their numbers of features, controls or covariates; their dtype is
            not torch's default dtype, which the model has; or a value is outside the support of
            ``emission``.
    """
    kind("data", data, Dataset)
    dtype = torch.get_default_dtype()
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        x = split.sequences
        for what, wanted, width in zip(WIDTHS, widths(data.train), widths(split), strict=True):
            if width != wanted:
                fail(f"data, {name}", f"{wanted} {what}, as train has", str(width))
        if x.dtype != dtype:
            fail(f"data, {name}", f"sequences of {dtype}, as the model is", str(x.dtype))
        observed = valid_steps(split.lengths, x.shape[1])[:, :, None] & ~x.isnan()
        check_values(x.cpu().numpy(), observed.cpu().numpy(), HEADS[emission].values, name=f"data, {name}")


def widths(split: SequenceSet) -> tuple[int, int, int]:
    """The numbers of features, controls and covariates."""
    controls, static = (0 if x is None else x.shape[-1] for x in (split.controls, split.static))
    return split.sequences.shape[-1], controls, static


def fingerprint(data: Dataset) -> str:
    """A data set's name, size and CRC-32, which identify it when a run is resumed.

    Raises:
        TypeError: ``data`` is not a :class:`~dmm_fast.data.Dataset`.
    """
    kind("data", data, Dataset)
    crc = 0
    for split in (data.train, data.valid, data.test):
        for tensor in _tensors(split):
            crc = zlib.crc32(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return f"{data.name}, {len(data.train)} sequences, CRC-32 {crc:08x}"


def _tensors(split: SequenceSet) -> list[Tensor]:
    given = (split.sequences, split.lengths, split.controls, split.static)
    return [tensor for tensor in given if tensor is not None]
