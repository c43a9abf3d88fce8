"""Polyphonic music, synthetic sets, and batches of sequences."""

from dmm_fast.data._chorales import chorales
from dmm_fast.data._download import download
from dmm_fast.data._linear_gaussian import LinearGaussianSet, linear_gaussian
from dmm_fast.data._piano_rolls import load, save_npz
from dmm_fast.data._sequences import Batch, Dataset, SequenceSet, get_mini_batch, reverse_sequences

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
