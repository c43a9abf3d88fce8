"""Sequence sets made from tables: pandas data frames, CSV and Parquet files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm_fast import check
from dmm_fast.data._arrays import from_arrays
from dmm_fast.data._memory import DEFAULT_BYTES, Memory
from dmm_fast.data._sequences import SequenceSet

Columns = Hashable | Sequence[Hashable] | None
"""A column's name, or a list of names."""
TABLES = (".csv", ".parquet")

_BYTES_PER_CELL = 8
_DAY = timedelta(days=1)
_FREQUENCY = "the length of a time step, such as 'D', 'h', '15min' or 'M'"


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        message = f"{module} is not installed, which {purpose} needs: pip install 'dmm-fast[data]'"
        raise ModuleNotFoundError(message, name=module) from error


def from_frame(
    frame: Any,
    id: Hashable = None,
    time: Hashable = None,
    columns: Columns = None,
    controls: Columns = None,
    static: Columns = None,
    *,
    freq: str | None = None,
) -> SequenceSet:
    """A sequence set made from a pandas data frame with one row for each time step.

    Sequence i has the i-th smallest value of ``id``. A column name may also name a level of the index.

    Args:
        frame: the data frame. NaN (or NA) is a missing value.
        id: the column that identifies the sequence of a row; None: all rows are one sequence.
        time: the column of the time, by which rows are sorted; None: rows are in order and without gaps.
            Integers count time steps, relative to the first of each sequence, and a step without a row has
            all values missing. Dates need ``freq``.
        columns: the ``D`` columns of values; None: all columns that are not named otherwise.
        controls: the columns of controls u_t, which must have no NaN and no gaps between steps.
        static: the columns of covariates, each constant over the rows of a sequence.
        freq: the length of a time step if ``time`` has dates, as a pandas period: ``"D"``, ``"h"``,
            ``"15min"``, ``"M"``. A row belongs to the period that contains its date; dates with a time zone
            are assigned to days by local time.

    Raises:
        ImportError: pandas is not installed.
        TypeError: ``frame`` is not a data frame, or a name or a column has the wrong type.
        ValueError: a column is missing or used twice, two rows have the same time, a time is missing or not
            an integer number of steps, or a value is invalid.
    """
    pandas = require("pandas", "from_frame")
    check.kind("frame", frame, pandas.DataFrame)
    if not len(frame):
        check.fail("frame", "at least one row", "none")
    names = _Names(id, time, columns, controls, static)
    frame = names.with_index(frame)
    names.check(frame)
    groups = list(_groups(frame, id))
    memory = Memory(DEFAULT_BYTES)
    values, controlled, facts = [], [], []
    for label, rows in groups:
        where = "" if id is None else f" in sequence {label!r}"
        steps = _steps(pandas, rows, time, freq, where, memory, len(names.values))
        rows = rows.iloc[np.argsort(steps, kind="stable")]
        steps = np.sort(steps)
        T = int(steps[-1]) + 1
        if names.controls and len(rows) < T:
            expected = f"no gaps, since there are controls{where} (give a row, with controls, for each step)"
            first = int(np.setdiff1d(np.arange(T), steps)[0])
            check.fail(
                "time", expected, f"{T - len(rows)} steps without a row, the first of them step {first}"
            )
        table = np.full((T, len(names.values)), np.nan)
        table[steps] = _numeric(rows, names.values)
        values.append(table)
        if names.controls:
            controlled.append(_numeric(rows, names.controls, complete="controls"))
        if names.static:
            facts.append(_constant(_numeric(rows, names.static, complete="static"), names.static, where))
    return from_arrays(values, controls=controlled or None, static=np.stack(facts) if facts else None)


def read_table(
    path: str | Path,
    id: Hashable = None,
    time: Hashable = None,
    columns: Columns = None,
    controls: Columns = None,
    static: Columns = None,
    *,
    freq: str | None = None,
    max_bytes: int = DEFAULT_BYTES,
) -> SequenceSet:
    """Read sequences from a ``.csv`` file with a header line, or from a ``.parquet`` file.

    Args:
        path: the file.
        id: the column of the sequence; this and the following arguments are those of :func:`from_frame`.
        time: the column of the time.
        columns: the columns of values.
        controls: the columns of controls.
        static: the columns of covariates.
        freq: the length of a time step. With it the times of a ``.csv`` are parsed as dates; use ISO 8601,
            since in other formats pandas guesses which number is the month.
        max_bytes: largest amount of memory that the file may take.

    Raises:
        ImportError: pandas, or for Parquet pyarrow, is not installed.
        OSError: the file cannot be opened.
        TypeError: an argument has the wrong type.
        ValueError: the file is not a table of this format, or its contents are invalid; the message names the
            file.
    """
    path = check.path("path", path)
    memory = Memory(check.int_between("max_bytes", max_bytes, 1))
    readers: dict[str, Callable[[Path, Memory], Any]] = {".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        check.fail("path", f"a file ending in {' or '.join(readers)}", str(path))
    with path.open("rb"):  # for the operating system's own error if that fails
        pass
    try:
        frame = reader(path, memory)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # for broken files the libraries raise errors of almost any type
        got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path}: expected a table as {path.suffix.lower()}, got {got}") from error
    try:
        if freq is not None and isinstance(time, str) and path.suffix.lower() == ".csv":
            frame = _with_dates(frame, time)
        return from_frame(frame, id, time, columns, controls, static, freq=freq)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_csv(path: Path, memory: Memory) -> Any:
    memory.take("file", path.stat().st_size)
    pandas = require("pandas", f"reading {path.name}")
    with warnings.catch_warnings():
        # Otherwise pandas takes the first of too many cells as an index, which shifts all names by one.
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        return pandas.read_csv(path, compression=None, index_col=False)


def _read_parquet(path: Path, memory: Memory) -> Any:
    pandas = require("pandas", f"reading {path.name}")
    parquet = require("pyarrow", f"reading {path.name}") and import_module("pyarrow.parquet")
    facts = parquet.read_metadata(path)
    # A constant column takes almost no space in the file, so the size of the file tells little.
    memory.take("file", facts.num_rows * facts.num_columns * _BYTES_PER_CELL)
    return pandas.read_parquet(path, engine="pyarrow")


def _with_dates(frame: Any, time: str) -> Any:
    """``frame`` with the column ``time`` converted to dates."""
    if time not in frame.columns or frame[time].dtype.kind in "buif":
        return frame
    try:
        return frame.assign(**{time: require("pandas", "reading dates").to_datetime(frame[time])})
    except (ValueError, TypeError, OverflowError) as error:
        check.fail("time", f"dates in column {time!r}", " ".join(str(error).split())[:120])


class _Names:
    """The column names by their use."""

    def __init__(
        self, id: Hashable, time: Hashable, columns: Columns, controls: Columns, static: Columns
    ) -> None:
        self.single = [_name(kind, name) for kind, name in (("id", id), ("time", time)) if name is not None]
        self._columns = None if columns is None else _names("columns", columns)
        self.controls = [] if controls is None else _names("controls", controls)
        self.static = [] if static is None else _names("static", static)
        self.values: list[Hashable] = []

    @property
    def _named(self) -> list[Hashable]:
        return [*self.single, *(self._columns or []), *self.controls, *self.static]

    def with_index(self, frame: Any) -> Any:
        """``frame`` with the named levels of its index as columns."""
        levels = [n for n in self._named if n not in frame.columns and n in frame.index.names]
        return frame.reset_index(level=levels) if levels else frame

    def check(self, frame: Any) -> None:
        """Check that each name belongs to exactly one column, and find the columns of values."""
        known = list(frame.columns)
        for name in self._named:
            if known.count(name) != 1:
                got = f"one of {known}"[:120] if name not in known else f"{known.count(name)} of that name"
                check.fail("frame", f"a column {name!r}", got)
            if self._named.count(name) > 1:
                check.fail("frame", f"one use of the column {name!r}", "several")
        if self._columns is not None:
            self.values = self._columns
        else:
            self.values = [name for name in known if name not in self._named]
        if not self.values:
            check.fail("columns", "at least one column of values", "none")
        if len(set(self.values)) < len(self.values):
            check.fail("frame", "columns with distinct names", f"{self.values}"[:120])


def _names(kind: str, given: Columns) -> list[Hashable]:
    names = list(given) if isinstance(given, list | tuple) else [given]
    if not names:
        check.fail(kind, "at least one name of a column, or None", "none")
    return [_name(kind, name) for name in names]


def _name(kind: str, name: object) -> Hashable:
    if not isinstance(name, str | int) or isinstance(name, bool):
        check.fail(kind, "the name of a column, a str or an int", check.describe(name), TypeError)
    return name


def _groups(frame: Any, id: Hashable) -> Iterator[tuple[Any, Any]]:
    """The rows of each sequence, with its ``id``."""
    if id is None:
        yield None, frame
        return
    if frame[id].isna().any():
        check.fail("id", f"a value in each row of column {id!r}", "none in some")
    try:
        yield from frame.groupby(id, sort=True, observed=True)
    except TypeError as error:  # for unhashable values
        check.fail("id", f"values of column {id!r} that can be grouped", str(error)[:80], TypeError)


def _steps(
    pandas: ModuleType, rows: Any, time: Hashable, freq: str | None, where: str, memory: Memory, D: int
) -> NDArray[np.int64]:
    """The time step of each row, relative to the first one."""
    if time is None:
        if freq is not None:
            check.fail("freq", "None without time", check.describe(freq))
        return np.arange(len(rows))
    times = rows[time]
    if times.isna().any():
        check.fail("time", f"a value in each row of column {time!r}{where}", "none in some")
    if pandas.api.types.is_datetime64_any_dtype(times.dtype):
        ticks = _periods(times, freq)
    else:
        if freq is not None:
            check.fail("freq", f"None where column {time!r} holds no dates", check.describe(freq))
        ticks = _whole(times, f"whole numbers of time steps, or dates and freq, in column {time!r}{where}")
    unique, counts = np.unique(ticks, return_counts=True)
    if counts.max() > 1:
        twice = f"several at step {unique[counts.argmax()] - unique[0]} of the sequence"
        check.fail("time", f"one row per time step{where}", twice)
    # Python integers do not overflow; the memory for the gaps is checked before it is allocated.
    memory.take("time", (int(unique[-1]) - int(unique[0]) + 1) * D * _BYTES_PER_CELL)
    return ticks - unique[0]


def _whole(times: Any, expected: str) -> NDArray[np.int64]:
    if times.dtype.kind not in "iuf":
        check.fail("time", expected, f"{times.dtype}")
    numbers = times.to_numpy()
    if numbers.dtype.kind == "f":
        # Beyond 2 ** 53 not every integer is a float.
        fractional = ~(np.abs(numbers) < 2.0**53) | (numbers != np.floor(numbers))
        if fractional.any():
            check.fail("time", expected, f"{numbers[fractional.argmax()]}")
    elif numbers.max() > np.iinfo(np.int64).max // 2 or numbers.min() < np.iinfo(np.int64).min // 2:
        check.fail("time", expected, "numbers that are too large")
    return numbers.astype(np.int64)


def _periods(times: Any, freq: str | None) -> NDArray[np.int64]:
    """The index of the period of length ``freq`` that contains each date."""
    if freq is None:
        check.fail("freq", f"{_FREQUENCY}, since times are dates", "None")
    check.kind("freq", freq, str)
    try:
        # Days follow local time; hours are counted by elapsed time across changes of daylight saving time.
        if times.dt.tz is not None:
            first = times.dt.tz_localize(None).iloc[:1].dt.to_period(freq).iloc[0]
            is_long = (first + 1).start_time - first.start_time >= _DAY
            by_clock = times.dt.tz_localize(None)
            elapsed = times.dt.tz_convert("UTC").dt.tz_localize(None)
            # Hours start at the full hours of the first date's local time, whose offset may be half an hour.
            times = by_clock if is_long else elapsed + (by_clock.iloc[0] - elapsed.iloc[0])
        periods = times.dt.to_period(freq)
        length = int(periods.dt.freq.n)
        ordinals = periods.astype("int64").to_numpy()
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        check.fail("freq", _FREQUENCY, f"{freq!r} ({' '.join(str(error).split())[:80]})")
    # pandas numbers periods of several units by the unit, so the ordinals are divided by the length.
    return np.floor_divide(ordinals - ordinals.min(), length)


def _numeric(rows: Any, names: Sequence[Hashable], complete: str | None = None) -> NDArray[np.float64]:
    """Columns as numbers ``[rows, names]``; ``complete`` names an argument that must not contain NaN."""
    out = np.empty((len(rows), len(names)))
    for i, name in enumerate(names):
        column = rows[name]
        if column.dtype.kind not in "buif":
            check.fail(complete or "columns", f"numbers in column {name!r}", f"{column.dtype}")
        out[:, i] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if complete is not None and np.isnan(out[:, i]).any():
            check.fail(complete, f"a number in each row of column {name!r}", "NaN in some")
    return out


def _constant(table: NDArray[np.float64], names: Sequence[Hashable], where: str) -> NDArray[np.float64]:
    """The single row that all rows of a table are equal to."""
    varies = (table != table[0]).any(axis=0)
    if varies.any():
        check.fail("static", f"one value of column {names[int(varies.argmax())]!r}{where}", "several")
    return table[0]
