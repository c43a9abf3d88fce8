"""Loading of data sets from files of any supported format."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dmm_fast import check
from dmm_fast.data._arrays import split
from dmm_fast.data._frames import TABLES, Columns, read_table
from dmm_fast.data._memory import DEFAULT_BYTES, Memory
from dmm_fast.data._midi_files import read_midi_folder
from dmm_fast.data._npz import read_npy, read_npz
from dmm_fast.data._piano_rolls import SPLITS, read_mat, read_pickle
from dmm_fast.data._sequences import Dataset, SequenceSet

_Read = Mapping[str, SequenceSet] | SequenceSet

READERS: dict[str, Callable[[BinaryIO, Memory], _Read]] = {
    ".mat": read_mat,
    ".pickle": read_pickle,
    ".pkl": read_pickle,
    ".npz": read_npz,
    ".npy": read_npy,
}


def load(
    path: str | Path,
    *,
    max_bytes: int = DEFAULT_BYTES,
    split_seed: int = 0,
    id: Hashable = None,
    time: Hashable = None,
    columns: Columns = None,
    controls: Columns = None,
    static: Columns = None,
    freq: str | None = None,
) -> Dataset:
    """Read a data set; its name is the file name without the suffix.

    - ``.mat``, MATLAB v5: ``traindata``, ``validdata``, ``testdata``, each an object array of shape
      ``[1, N]`` of piano rolls ``[T, 88]`` of 0 and 1; column 0 is MIDI note 21.
    - ``.pickle`` or ``.pkl``, as downloaded by :func:`dmm_fast.data.download` (not the tensors that
      Pyro caches): a dict of ``train``, ``valid`` and ``test``, each a list of sequences; a
      sequence is a list of time steps, a time step a tuple or list of MIDI notes 21 .. 108.
    - ``.npz``, as written by :func:`save_npz`: for each split ``<split>_sequences``, uint8 or float32
      ``[sum of T, D]``, the concatenated sequences, and ``<split>_lengths``, int64 ``[N]``; optionally
      ``<split>_controls`` ``[sum of T, U]`` and ``<split>_static`` ``[N, S]``. Or, of any real dtype,
      ``sequences``, ``[N, T, D]`` or, with ``lengths``, ``[sum of T, D]``, and optionally ``controls`` and
      ``static``.
    - ``.npy``: one array ``[N, T, D]`` of any real dtype.
    - ``.csv`` and ``.parquet``: see :func:`read_table`.
    - a folder of MIDI files, or a folder with subfolders ``train``, ``valid`` and ``test`` of them: see
      :func:`read_midi_folder`.

    Data without three splits are divided by :func:`split`. Nothing in a file is executed: ``.pickle`` files
    are read by an unpickler restricted to containers and integers, and arrays are read without pickle.

    Args:
        path: the file, or the folder.
        max_bytes: largest amount of memory that the data may take, padding included; it is checked before
            the memory is allocated, since a small file can require a lot.
        split_seed: seed of :func:`split`.
        id: the column of the sequence, as in :func:`read_table`; this and the following arguments must be
            None unless the file is a table.
        time: the column of the time.
        columns: the columns of values.
        controls: the columns of controls.
        static: the columns of covariates.
        freq: the length of a time step, if times are dates.

    Raises:
        ImportError: a library is not installed: scipy for ``.mat``, or those that :func:`read_table` and
            :func:`read_midi_folder` need.
        OSError: the file cannot be opened.
        TypeError: an argument has the wrong type.
        ValueError: the file does not have this format, or takes more memory; the message names the file and
            what was expected.
    """
    path = check.path("path", path)
    max_bytes = check.int_between("max_bytes", max_bytes, 1)
    split_seed = check.int_between("split_seed", split_seed, 0)
    suffix = path.suffix.lower()
    table: dict[str, Any] = {
        "id": id,
        "time": time,
        "columns": columns,
        "controls": controls,
        "static": static,
        "freq": freq,
    }
    found: _Read
    if suffix in TABLES:
        found = read_table(path, max_bytes=max_bytes, **table)
    else:
        for name, value in table.items():
            if value is not None:
                check.fail(name, f"None unless path is a table ({', '.join(TABLES)})", check.describe(value))
        if path.is_dir():
            found = _read_folder(path, max_bytes)
        elif suffix in READERS:
            with path.open("rb") as file, _naming(path, suffix):
                found = READERS[suffix](file, Memory(max_bytes))
        else:
            known = ", ".join((*READERS, *TABLES))
            check.fail("path", f"a file ending in {known}, or a folder of MIDI files", str(path))
    if not isinstance(found, SequenceSet):
        return Dataset(path.stem, **found)
    with _naming(path, suffix or "a folder"):
        return split(found, seed=split_seed, name=path.stem)


def _read_folder(path: Path, max_bytes: int) -> _Read:
    if all((path / name).is_dir() for name in SPLITS):
        return {name: read_midi_folder(path / name, max_bytes=max_bytes) for name in SPLITS}
    return read_midi_folder(path, max_bytes=max_bytes)


@contextmanager
def _naming(path: Path, kind: str) -> Iterator[None]:
    """Turn any error of a reader on a malformed file into a ValueError that names the file."""
    try:
        yield
    except ImportError:  # a missing library is not an error of the file
        raise
    except Exception as error:  # the readers raise errors of almost any type
        raise ValueError(f"{path}: expected a data set as {kind}, got {_say(error)}") from error


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
