"""Sets made of data frames, CSV and Parquet: order, gaps, dates, covariates, and errors."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dmm_fast.cli import main
from dmm_fast.data import SequenceSet, from_frame, load, read_table

NAN = float("nan")
FRAME = pd.DataFrame(
    {
        "who": ["b", "a", "b", "a", "a"],
        "t": [5, 4, 3, 0, 1],
        "x": [1.0, 5.0, 2.0, NAN, 4.0],
        "n": pd.array([1, 5, None, 3, 4], dtype="Int64"),
        "age": [30, 40, 30, 40, 40],
    }
)
EXPECTED = [[[NAN, 3], [4, 4], [NAN, NAN], [NAN, NAN], [5, 5]],
            [[2, NAN], [NAN, NAN], [1, 1], [0, 0], [0, 0]]]  # fmt: skip
DENSE = pd.DataFrame({"who": [0, 0, 1, 1], "t": [1, 0, 7, 8], "x": [1.0, 0, 2, 3], "u": [2, 1, 3, 4]})


def assert_expected(made: SequenceSet) -> None:
    assert torch.equal(made.sequences.nan_to_num(-1), torch.tensor(EXPECTED).nan_to_num(-1))
    assert made.lengths.tolist() == [5, 3]
    assert made.static is not None
    assert made.static.tolist() == [[40], [30]]
    assert made.controls is None


def dated(start: str, step: str, frame: pd.DataFrame = FRAME) -> pd.DataFrame:
    return frame.assign(t=pd.Timestamp(start) + frame["t"].to_numpy() * pd.Timedelta(step))


def test_rows_are_sorted_and_gaps_are_missing() -> None:
    assert_expected(from_frame(FRAME, "who", "t", static="age"))
    assert_expected(from_frame(FRAME.set_index(["who", "t"]), "who", "t", ["x", "n"], static=["age"]))
    # In a float column, as CSV has it where some are missing elsewhere.
    assert_expected(from_frame(FRAME.assign(t=FRAME["t"] * 1.0), "who", "t", ["x", "n"], static=["age"]))


def test_without_id_and_time_rows_are_one_sequence() -> None:
    made = from_frame(FRAME, columns="x")
    assert made.sequences.nan_to_num(-1)[0, :, 0].tolist() == [1, 5, 2, -1, 4]
    assert made.mask is not None


def test_controls() -> None:
    made = from_frame(DENSE, id="who", time="t", controls="u")
    assert made.controls is not None
    assert made.controls[:, :, 0].tolist() == [[1, 2], [3, 4]]
    assert made.sequences[:, :, 0].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=r"time: expected no gaps, since there are controls.*got 1 steps"):
        from_frame(DENSE.assign(t=[2, 0, 7, 8]), "who", "t", controls="u")


@pytest.mark.parametrize(
    ("start", "step", "freq"),
    [
        ("2024-02-27", "1D", "D"),
        ("2024-02-27 23:05", "1h", "h"),
        ("2024-02-27 23:07", "15min", "15min"),
        ("2024-02-27 23:07", "7D", "W"),
        ("1969-12-30", "1D", "D"),
    ],
)
def test_dates(start: str, step: str, freq: str) -> None:
    assert_expected(from_frame(dated(start, step), "who", "t", static="age", freq=freq))
    late = dated(start, step).assign(t=lambda f: f["t"].dt.tz_localize("Asia/Tokyo"))
    assert_expected(from_frame(late, "who", "t", static="age", freq=freq))


@pytest.mark.parametrize("start", ["2026-03-27 01:30", "2026-10-23 01:30"])
@pytest.mark.parametrize("freq", ["h", "D"])
def test_daylight_saving_makes_no_gaps(start: str, freq: str) -> None:
    times = pd.date_range(start, periods=100, freq=freq, tz="Europe/Berlin")
    made = from_frame(pd.DataFrame({"t": times, "x": np.arange(100.0)}), time="t", freq=freq)
    assert made.sequences[0, :, 0].tolist() == list(range(100))


def test_hours_in_time_zones_of_half_hours() -> None:
    times = pd.to_datetime(["2024-01-01 00:50", "2024-01-01 01:10", "2024-01-01 02:10"])
    for zone in (None, "Asia/Kolkata"):
        frame = pd.DataFrame({"t": times.tz_localize(zone), "x": [1.0, 2.0, 3.0]})
        assert from_frame(frame, time="t", freq="h").sequences.flatten().tolist() == [1, 2, 3]


def test_cells_beyond_the_names_do_not_shift_the_others(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x,y\n1,10,5,\n1,11,6,\n")
    assert read_table(path, "id").sequences.tolist() == [[[10, 5], [11, 6]]]
    path.write_text("x,y\n0,2,9\n1,4,9\n")
    with pytest.raises(ValueError, match=r"t\.csv: expected a table as \.csv, got ParserWarning"):
        read_table(path)


def test_months_are_steps_of_different_lengths() -> None:
    months = pd.to_datetime(["2024-01-31", "2024-02-29", "2024-04-01"])
    made = from_frame(pd.DataFrame({"x": [1.0, 2, 3]}, index=months.rename("month")), time="month", freq="M")
    assert made.sequences.nan_to_num(-1)[0, :, 0].tolist() == [1, 2, -1, 3]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    for name, frame in (("plain", FRAME), ("dated", dated("2024-02-27", "1D"))):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        freq = None if name == "plain" else "D"
        assert_expected(read_table(path, "who", "t", static="age", freq=freq))


def test_tables_are_divided(tmp_path: Path) -> None:
    frame = pd.concat([DENSE.assign(who=DENSE["who"] + 2 * i) for i in range(3)])
    frame.to_csv(tmp_path / "own.csv", index=False)
    made = load(tmp_path / "own.csv", id="who", time="t", columns="x", controls=["u"])
    assert [len(made.train), len(made.valid), len(made.test)] == [4, 1, 1]
    assert made.test.controls is not None


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (FRAME[:0], {}, "frame: expected at least one row, got none"),
    ([1], {}, "frame: expected DataFrame, got list"),
    (FRAME, {}, "columns: expected numbers in column 'who', got"),
    (FRAME, {"id": "what"}, r"frame: expected a column 'what', got one of \['who'"),
    (FRAME, {"id": "who", "columns": ["x", "who"]}, "frame: expected one use of the column 'who'"),
    (FRAME, {"id": "who", "columns": []}, "columns: expected at least one name of a column, or None"),
    (FRAME, {"id": 1.5}, "id: expected the name of a column, a str or an int, got float 1.5"),
    (FRAME, {"id": "who", "time": "age"}, "time: expected one row per time step in sequence 'a', got"),
    (FRAME, {"id": "who", "time": "x"}, "time: expected a value in each row of column 'x'.*, got"),
    (FRAME.assign(t=FRAME["t"] + 0.5), {"id": "who", "time": "t"}, "time: expected whole numbers .*, got "),
    (FRAME.assign(t=FRAME["t"] * 10**12), {"id": "who", "time": "t"}, "time: .*max_bytes"),
    (FRAME.assign(t=list("abcde")), {"id": "who", "time": "t"}, "time: expected whole numbers .* dates"),
    (dated("2024-01-01", "1D"), {"id": "who", "time": "t"}, "freq: expected the length .*, got None"),
    (dated("2024-01-01", "1D"), {"id": "who", "time": "t", "freq": "fortnight"}, "freq: .*, got 'fortnight'"),
    (dated("2024-01-01", "1D"), {"id": "who", "time": "t", "freq": "M"}, "time: expected one row per time"),
    (FRAME, {"id": "who", "time": "t", "freq": "D"}, "freq: expected None where column 't' holds no dates"),
    (FRAME, {"id": "who", "freq": "D"}, "freq: expected None without time"),
    (FRAME, {"id": "t", "static": "who"}, "static: expected numbers in column 'who'"),
    (FRAME, {"columns": "x", "static": "age"}, "static: expected one value of column 'age', got several"),
    (FRAME, {"columns": "n", "controls": "x"}, "controls: expected a number in each row of column 'x'"),
    (FRAME.assign(x=np.inf), {"columns": "x"}, r"arrays\[0\]: expected finite numbers"),
    (FRAME.assign(who=None), {"id": "who", "columns": "x"}, "id: expected a value in each row"),
    (pd.concat([FRAME, FRAME], axis=1), {"id": "who"}, "frame: expected a column 'who', got 2 of that name"),
    (FRAME[["who"]], {"id": "who"}, "columns: expected at least one column of values, got none"),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "arguments", "message"), BAD)
def test_invalid_sequences_are_refused(frame: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        from_frame(frame, **arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "expected a table as .csv, got EmptyDataError"),
        ("a.csv", b"\xff\xfe\x00", "expected a table as .csv"),
        ("a.csv", b'x\n"1', "expected a table as .csv, got ParserError"),
        ("a.csv", b"x\n1\n", "frame: expected a column 't'"),
        ("a.csv", b"x,t\n1,2024-13-45\n", "time: expected dates in column 't', got"),
        ("a.parquet", b"PAR1 and more", "expected a table as .parquet, got Arrow"),
        ("a.xlsx", b"", "path: expected a file ending in .csv or .parquet"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path, time="t", freq="D")
    assert str(path) in str(caught.value)


def test_a_table_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"x": np.zeros(100_000)}).to_parquet(path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="at most max_bytes = 10000 bytes"):
        read_table(path, max_bytes=10_000)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("module", "file"), [("pandas", "a.csv"), ("pyarrow", "a.parquet"), ("mido", "midi")]
)
def test_a_missing_library_is_named_with_the_extra(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    file: str,
) -> None:
    path = tmp_path / file
    if module == "mido":
        path.mkdir()
        (path / "a.mid").touch()
    else:
        path.touch()
    monkeypatch.setitem(sys.modules, module, None)
    expected = f"{module} is not installed, which reading .* needs: pip install 'dmm-fast\\[data\\]'"
    with pytest.raises(ImportError, match=expected):
        load(path)
    assert main(["train", "--data", str(path), "--out", str(tmp_path / "out"), "-l", ""]) == 2
    assert "pip install 'dmm-fast[data]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
