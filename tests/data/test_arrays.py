"""Sets made of arrays and lists, and their split into training, validation and test sets."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmm_fast.data import Dataset, from_arrays, load, split

NAN = float("nan")


def test_one_array_and_a_list_of_arrays_are_alike() -> None:
    whole = np.arange(24).reshape(2, 3, 4)
    for arrays in (whole, torch.from_numpy(whole), list(whole), whole.tolist(), tuple(torch.tensor(whole))):
        made = from_arrays(arrays)
        assert made.sequences.dtype == torch.float32
        assert made.sequences.tolist() == whole.tolist()
        assert made.lengths.tolist() == [3, 3]
        assert made.mask is None


def test_sequences_of_one_feature_and_of_different_lengths() -> None:
    made = from_arrays([[1, 2.5], np.array([3, NAN, 4]), torch.tensor([True])], dtype=torch.float64)
    assert made.sequences.dtype == torch.float64
    assert made.lengths.tolist() == [2, 3, 1]
    assert made.sequences.nan_to_num(-1)[:, :, 0].tolist() == [[1, 2.5, 0], [3, -1, 4], [1, 0, 0]]
    assert made.mask is not None
    assert made.mask[:, :, 0].tolist() == [[True, True, False], [True, False, True], [True, False, False]]


def test_numpy_masked_values_are_missing() -> None:
    masked = np.ma.array([[1], [-999]], mask=[[0], [1]])
    made = from_arrays([masked, [[5.0]]])
    assert made.mask is not None
    assert made.mask.flatten().tolist() == [True, False, True, False]
    assert from_arrays(np.ma.array(np.ones((1, 2, 1)), mask=[[[1], [0]]])).mask is not None


def test_controls_and_static() -> None:
    made = from_arrays([[1, 2], [3]], controls=[[[5, 6], [7, 8]], [[9, 10]]], static=[0.5, 1.5])
    assert made.controls is not None
    assert made.controls.tolist() == [[[5, 6], [7, 8]], [[9, 10], [0, 0]]]
    assert made.static is not None
    assert made.static.tolist() == [[0.5], [1.5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrays": np.zeros((2, 3))}, r"arrays: expected an array \[N, T, D\], or a list .*, got one of"),
        ({"arrays": np.zeros((2, 0, 3))}, "arrays: expected .* not empty"),
        ({"arrays": "abc"}, "arrays: expected an array .*, got str 'abc'"),
        ({"arrays": 3}, "arrays: expected an array .*, got int 3"),
        ({"arrays": []}, "arrays: expected at least one sequence, got none"),
        ({"arrays": [[1], []]}, r"arrays\[1\]: expected shape \[T, D\] or \[T\] with D = 1"),
        ({"arrays": [[[1, 2]], [[1]]]}, r"arrays\[1\]: expected .* with D = 2, as arrays\[0\] has"),
        ({"arrays": [1, 2]}, r"arrays\[0\]: expected shape \[T, D\] or \[T\], not empty, got shape \(\)"),
        ({"arrays": [[[1, 2], [1]]]}, r"arrays\[0\]: expected an array of real numbers, got lists of"),
        ({"arrays": [["a"]]}, r"arrays\[0\]: expected an array of real numbers, got list of <U1"),
        ({"arrays": [[1j]]}, r"arrays\[0\]: expected an array of real numbers"),
        ({"arrays": [[1e39]]}, r"arrays\[0\]: expected finite numbers in torch.float32, or NaN"),
        ({"arrays": [[1]], "dtype": torch.float16}, "dtype: expected torch.float32 or torch.float64"),
        ({"arrays": [[1]], "controls": [[1], [2]]}, "controls: expected 1 sequences, as arrays has, got 2"),
        ({"arrays": [[1]], "controls": [[1, 2]]}, r"controls\[0\]: expected 1 time steps, as arrays"),
        ({"arrays": [[1]], "controls": [[NAN]]}, "controls: expected finite numbers within each sequence"),
        ({"arrays": [[1]], "static": [1, 2]}, r"static: expected shape \(1, S\) or \(1,\), got"),
    ],
)  # fmt: skip
def test_invalid_sets_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        from_arrays(**arguments)


def test_a_split_has_every_sequence_once() -> None:
    lengths = list(range(1, 24))
    data = from_arrays(
        [np.full((n, 1), n) for n in lengths], controls=[[n] * n for n in lengths], static=lengths
    )
    before = torch.get_rng_state()
    made = split(data, seed=3, name="mine")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(made, Dataset)
    assert made.name == "mine"
    parts = (made.train, made.valid, made.test)
    assert [len(part) for part in parts] == [19, 2, 2]
    seen = [part.lengths.tolist() for part in parts]
    assert sorted(chain.from_iterable(seen)) == lengths
    assert all(part == sorted(part) for part in seen)
    for part in parts:
        assert part.sequences.shape[1] == int(part.lengths.max())
        assert part.controls is not None
        assert part.static is not None
        assert torch.equal(part.controls[:, 0, 0], part.lengths.float())
        assert torch.equal(part.static[:, 0], part.lengths.float())
    again, other = split(data, seed=3), split(data, seed=4)
    assert torch.equal(again.test.lengths, made.test.lengths)
    assert not torch.equal(other.train.lengths, made.train.lengths)


@pytest.mark.parametrize(
    ("N", "arguments", "message"),
    [
        (2, {}, r"data: expected at least 3 sequences, .*\(cut a long one into several\), got 2"),
        (4, {"fractions": (0.1, 0.45, 0.45)}, "data: expected enough sequences to train on beside 2 and 2"),
        (5, {"fractions": (0.5, 0.5)}, "fractions: expected three positive numbers whose sum is 1"),
        (5, {"fractions": (0.5, 0.5, 0)}, "fractions: expected three positive numbers"),
        (5, {"fractions": (0.5, 0.5, 0.5)}, "fractions: expected three positive numbers"),
        (5, {"fractions": 0.8}, "fractions: expected three positive numbers"),
        (5, {"seed": -1}, "seed: expected an int from 0"),
        (5, {"name": 3}, "name: expected str"),
    ],
)
def test_indivisible_sets_are_refused(N: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        split(from_arrays([[1.0]] * N), **arguments)


ROWS = np.arange(20.0).reshape(10, 2)
PARTS = np.array([3, 1, 4, 2])


@pytest.mark.parametrize("form", ["rows", "padded", "whole"])
def test_files_without_splits_are_divided(tmp_path: Path, form: str) -> None:
    padded = np.full((4, 4, 2), NAN)
    for i, part in enumerate(np.split(ROWS, PARTS.cumsum()[:-1])):
        padded[i, : len(part)] = part
    entries: dict[str, Any] = {
        "rows": {"sequences": ROWS, "lengths": PARTS, "controls": ROWS[:, :1]},
        "padded": {"sequences": padded, "lengths": PARTS, "controls": padded[:, :, :1]},
        "whole": {"sequences": np.arange(32).reshape(4, 4, 2), "static": np.arange(8).reshape(4, 2)},
    }[form]
    np.savez(tmp_path / "own.npz", **entries)
    made = load(tmp_path / "own.npz", split_seed=1)
    assert made.name == "own"
    assert [len(made.train), len(made.valid), len(made.test)] == [2, 1, 1]
    assert (made.train.controls is None) == (form == "whole")
    assert (made.train.static is None) == (form != "whole")
    total = sum(float(part.sequences.nansum()) for part in (made.train, made.valid, made.test))
    assert total == np.nansum(entries["sequences"])


def test_an_array_file_is_divided(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.arange(40, dtype=np.uint8).reshape(5, 4, 2))
    assert load(tmp_path / "own.npy").train.sequences.shape == (3, 4, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", {"sequences": ROWS}, r"sequences: expected shape \[N, T, D\], or .* an entry"),
        ("a.npz", {"sequences": ROWS, "lengths": PARTS[:2]}, "lengths: expected a sum of 10"),
        ("a.npz", {"sequences": ROWS[None], "lengths": np.array([11])}, "lengths: expected 1 lengths up"),
        ("a.npz", {"sequences": ROWS[None], "labels": ROWS}, "file: expected sequences and .* got 'labels'"),
        ("a.npz", {"sequences": np.array([None])}, "allow_pickle=False"),
        ("a.npz", {"sequences": ROWS[None]}, "at least 3 sequences"),
        ("a.npz", {"sequences": ROWS[:, None], "controls": ROWS[:, None] + np.inf}, r"controls\[\d\]"),
        ("a.npy", ROWS, r"arrays: expected an array \[N, T, D\]"),
        ("a.npy", np.array([{}]), "allow_pickle=False"),
        ("a.npy", np.array([[["a"]]]), "arrays: expected an array of real numbers"),
    ],
)  # fmt: skip
def test_files_of_another_form_are_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: expected a data set as {path.suffix}")


@pytest.mark.parametrize("name", ["id", "time", "columns", "controls", "static", "freq"])
def test_columns_are_refused_for_arrays(tmp_path: Path, name: str) -> None:
    arguments: dict[str, Any] = {name: "x"}
    with pytest.raises(ValueError, match=f"^{name}: expected None unless path is a table"):
        load(tmp_path / "own.npz", **arguments)
