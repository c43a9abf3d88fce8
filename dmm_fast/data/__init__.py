"""Data sets: your own data, polyphonic music and synthetic sets, and mini-batches of sequences."""

from dmm_fast.data._arrays import from_arrays, split
from dmm_fast.data._batches import Batch, ControlledBatch, get_mini_batch, reverse_sequences
from dmm_fast.data._chorales import chorales
from dmm_fast.data._download import download
from dmm_fast.data._frames import from_frame, read_table
from dmm_fast.data._linear_gaussian import LinearGaussianSet, linear_gaussian
from dmm_fast.data._load import load
from dmm_fast.data._midi_files import read_midi_folder
from dmm_fast.data._npz import save_npz
from dmm_fast.data._sequences import Dataset, SequenceSet

__all__ = [
    "Batch",
    "ControlledBatch",
    "Dataset",
    "LinearGaussianSet",
    "SequenceSet",
    "chorales",
    "download",
    "from_arrays",
    "from_frame",
    "get_mini_batch",
    "linear_gaussian",
    "load",
    "read_midi_folder",
    "read_table",
    "reverse_sequences",
    "save_npz",
    "split",
]
