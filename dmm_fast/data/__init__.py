"""Polyphonic music, synthetic sets, and batches of sequences."""

from dmm_fast.data.chorales import chorales
from dmm_fast.data.download import download
from dmm_fast.data.linear_gaussian import LinearGaussianSet, linear_gaussian
from dmm_fast.data.music import load, save_npz
from dmm_fast.data.sequences import (
    Batch,
    Dataset,
    SequenceSet,
    get_mini_batch,
    reverse_sequences,
)

__all__ = [
    "Batch",
    "Dataset",
    "LinearGaussianSet",
    "SequenceSet",
    "chorales",
    "download",
    "get_mini_batch",
    "linear_gaussian",
    "load",
    "reverse_sequences",
    "save_npz",
]
