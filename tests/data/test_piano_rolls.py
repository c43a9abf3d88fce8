"""Files of piano rolls: contents and errors."""

import pickle
import sys
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from dmm_fast.data import Dataset, SequenceSet, load, save_npz

NOTES = {
    "train": [[(21, 108), (), (60,)], [[60, 64, 67]]],
    "valid": [[(60, 60)]],
    "test": [[(21,), (22,)]],
}
EXPECTED = {"train": [[[0, 87], [], [39]], [[39, 43, 46]]], "valid": [[[39]]], "test": [[[0], [1]]]}

# How Python 2 pickled numpy's integers: dtype('i8') built once and kept as memo 7, then the class
# of scalars.
PYTHON_2_NUMPY = (
    b"cnumpy.core.multiarray\nscalar\nq\x05cnumpy\ndtype\nq\x06U\x02%sK\x00K\x01\x87R"
    b"(K\x03U\x01%cNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbq\x07"
)


def python_2_pickle(notes: Any, code: bytes = b"i8", order: bytes = b"<") -> bytes:
    """Pickle like Pyro's files: protocol 2, byte strings, numpy scalars."""
    width = int(code[1:])
    body = b"\x80\x02" + PYTHON_2_NUMPY % (code, order) + b"00}("
    for split, sequences in notes.items():
        body += b"U%c%s](" % (len(split), split.encode())
        for steps in sequences:
            body += b"]("
            for step in steps:
                byteorder: Any = "big" if order == b">" else "little"
                raw = [n.to_bytes(width, byteorder, signed=n < 0) for n in step]
                body += b"(" + b"".join(b"h\x05h\x07U%c%s\x86R" % (width, r) for r in raw) + b"t"
            body += b"e"
        body += b"e"
    return body + b"u."


def write(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 2))
    return path


def columns(data: SequenceSet) -> list[list[list[int]]]:
    """The sounding columns of each step of each sequence."""
    assert set(data.sequences.unique().tolist()) <= {0.0, 1.0}
    rows = zip(data.sequences, data.lengths.tolist(), strict=True)
    return [[step.nonzero()[:, 0].tolist() for step in x[:n]] for x, n in rows]


def assert_expected(dataset: Dataset) -> None:
    for split, expected in EXPECTED.items():
        data = getattr(dataset, split)
        assert data.sequences.dtype == torch.float32
        assert data.sequences.shape[2] == 88
        assert columns(data) == expected


def rolls(notes: Any) -> dict[str, Any]:
    out = {}
    for split, sequences in notes.items():
        cells = np.empty((1, len(sequences)), dtype=object)
        for i, steps in enumerate(sequences):
            cells[0, i] = np.zeros((len(steps), 88), dtype=np.uint8)
            for t, step in enumerate(steps):
                cells[0, i][t, [n - 21 for n in step]] = 1
        out[f"{split}data"] = cells
    return out


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(tmp_path: Path, protocol: int) -> None:
    dataset = load(write(tmp_path / "tune.pickle", pickle.dumps(NOTES, protocol)))
    assert dataset.name == "tune"
    assert_expected(dataset)
    assert_expected(load(str(write(tmp_path / "tune.PKL", pickle.dumps(NOTES, protocol)))))


@pytest.mark.parametrize(("code", "order"), [(b"i8", b"<"), (b"i8", b">"), (b"i4", b"<"), (b"u1", b"|")])
def test_pickle_of_numpy_integers(tmp_path: Path, code: bytes, order: bytes) -> None:
    content = python_2_pickle(NOTES, code, order)
    # numpy itself agrees about what this file says.
    reference = pickle.loads(content, encoding="latin1")
    assert {k: [[list(s) for s in q] for q in v] for k, v in reference.items()} == {
        k: [[list(s) for s in q] for q in v] for k, v in NOTES.items()
    }
    assert_expected(load(write(tmp_path / "tune.pickle", content)))


def test_pickle_of_todays_numpy_integers(tmp_path: Path) -> None:
    notes = {k: [[[np.int64(n) for n in s] for s in q] for q in v] for k, v in NOTES.items()}
    assert_expected(load(write(tmp_path / "tune.pickle", pickle.dumps(notes, 4))))


def test_mat(tmp_path: Path) -> None:
    savemat(tmp_path / "tune.mat", rolls(NOTES))
    assert_expected(load(tmp_path / "tune.mat"))


def test_npz_round_trip(tmp_path: Path) -> None:
    dataset = load(write(tmp_path / "tune.pickle", NOTES))
    save_npz(dataset, tmp_path / "tune.npz")
    assert_expected(load(tmp_path / "tune.npz"))
    with np.load(tmp_path / "tune.npz") as data:
        assert data["train_sequences"].dtype == np.uint8
        assert data["train_sequences"].shape == (4, 88)
        assert data["train_lengths"].tolist() == [3, 1]
        assert len(data.files) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tune.npz", "tune.pickle"]


def test_npz_keeps_real_and_missing_values(tmp_path: Path) -> None:
    x = torch.tensor([[[1.5], [float("nan")]], [[-3.0], [0.0]]])
    real = SequenceSet(x, torch.tensor([2, 1]))
    # 2 is an integer that uint8 holds, NaN is none.
    missing = SequenceSet(torch.tensor([[[2.0], [float("nan")]]]), torch.tensor([2]))
    save_npz(Dataset("d", real, missing, real), tmp_path / "d.npz")
    loaded = load(tmp_path / "d.npz")
    for split, data in (("train", real), ("valid", missing), ("test", real)):
        got = getattr(loaded, split)
        torch.testing.assert_close(got.sequences, data.sequences, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got.lengths, data.lengths)


def test_save_npz_refuses_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(b"old")
    good = SequenceSet(torch.zeros(1, 1, 1), torch.tensor([1]))
    inexact = SequenceSet(torch.full((1, 1, 1), 0.1, dtype=torch.float64), torch.tensor([1]))
    with pytest.raises(ValueError, match="test: expected values that float32 holds exactly"):
        save_npz(Dataset("d", good, good, inexact), path)
    with pytest.raises(ValueError, match=r"path: expected a file ending in .npz"):
        save_npz(Dataset("d", good, good, good), tmp_path / "d.mat")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_npz_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "d.npz"
    path.write_bytes(b"old")
    good = SequenceSet(torch.zeros(1, 1, 1), torch.tensor([1]))
    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_npz(Dataset("d", good, good, good), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class Touch:
    """An object whose unpickling would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickle_executes_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = write(tmp_path / "bad.pickle", pickle.dumps({"train": Touch(trace)}))
    with pytest.raises(ValueError, match=r"bad.pickle: expected a data set as .pickle.*refused"):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Fraction(1, 2)),
        pickle.dumps(np.zeros(3)),
        pickle.dumps(torch.zeros(3)),
        pickle.dumps(np.float64(60)),
        b"cbuiltins\neval\n(U\x011tR.",
        b"cos\nsystem\n(U\x04truetR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.__init__\x93.",
        b"Psome id\n.",
        b"U\x07some idQ.",
        b"\x82\x01.",
        # State for the stand-ins of numpy's classes, and a scalar that does not match its type.
        b"cnumpy\ndtype\n}U\x05widthK\x63sb.",
        b"cnumpy.core.multiarray\nscalar\n}U\x01aK\x01sb.",
        b"cnumpy.core.multiarray\nscalar\n(K\x01U\x01atR.",
        python_2_pickle(NOTES).replace(
            b"U\x08" + (60).to_bytes(8, "little"), b"U\x04" + (60).to_bytes(4, "little")
        ),
        python_2_pickle(NOTES).replace(b"i8", b"f8"),
        python_2_pickle(NOTES).replace(b"U\x01<", b"U\x01x"),
    ],
)
def test_pickle_refuses(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "bad.pickle", content)
    with pytest.raises(ValueError, match=r"bad.pickle: expected a data set as .pickle") as caught:
        load(path)
    assert caught.value.__cause__ is not None


def test_refused_state_leaves_the_unpickler_unchanged(tmp_path: Path) -> None:
    slots = b"cnumpy.core.multiarray\nscalar\nN}U\x07__new__K\x01s\x86b."
    with pytest.raises(ValueError, match=r"bad.pickle"):
        load(write(tmp_path / "bad.pickle", slots))
    assert_expected(load(write(tmp_path / "tune.pickle", python_2_pickle(NOTES))))


def replaced(split: str, value: Any) -> dict[str, Any]:
    return {**NOTES, split: value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "a dict of train, valid, test, got list"),
        ({"train": [], "test": []}, "train: expected at least one|an entry 'valid'"),
        (replaced("valid", None), "valid: expected a list, got NoneType"),
        (replaced("valid", []), "valid: expected at least one sequence, got none"),
        (replaced("valid", [[(60,)], []]), r"valid\[1\]: expected at least one time step"),
        (replaced("valid", [{60: 61}]), r"valid\[0\]: expected a list, got dict"),
        (replaced("valid", [[60]]), r"valid\[0\]: expected a list or tuple of notes"),
        (replaced("valid", [["note"]]), r"valid\[0\]: expected a list or tuple of notes"),
        (replaced("valid", [[(60.0,)]]), r"valid\[0\]: expected whole numbers as notes"),
        (replaced("valid", [[(True,)]]), r"valid\[0\]: expected whole numbers as notes"),
        (replaced("test", [[(60,), (20,)]]), r"test\[0\]: expected MIDI notes 21 to 108, got 20"),
        (replaced("test", [[(109,)]]), r"test\[0\]: expected MIDI notes 21 to 108, got 109"),
        (replaced("test", [[(2**70,)]]), r"test\[0\]: expected MIDI notes 21 to 108"),
    ],
)
def test_pickle_contents_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(write(tmp_path / "bad.pickle", content))
    assert "bad.pickle" in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception)


@pytest.mark.parametrize(("code", "note"), [(b"i8", -1), (b"i1", -128), (b"u1", 200)])
def test_pickled_numpy_notes_out_of_range(tmp_path: Path, code: bytes, note: int) -> None:
    content = python_2_pickle(replaced("test", [[(note,)]]), code)
    with pytest.raises(ValueError, match=rf"test\[0\]: expected MIDI notes 21 to 108, got {note}"):
        load(write(tmp_path / "bad.pickle", content))


def with_cell(roll: Any) -> dict[str, Any]:
    data = rolls(NOTES)
    data["validdata"][0, 0] = roll
    return data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"traindata": np.zeros((1, 2))}, "traindata: expected an object array"),
        ({"other": np.zeros(3)}, "an entry 'traindata'"),
        ({**rolls(NOTES), "testdata": np.empty((1, 0), dtype=object)}, "testdata: expected"),
        (with_cell(np.zeros((3, 87), dtype=np.uint8)), r"validdata\[0\]\[0\]: .* \[T, 88\]"),
        (with_cell(np.full((3, 88), 2, dtype=np.uint8)), "a piano roll of 0 and 1, got other"),
        (with_cell(np.full((3, 88), np.nan)), "a piano roll of 0 and 1, got other"),
        (with_cell(np.zeros((0, 88), dtype=np.uint8)), "at least one time step|piano roll"),
    ],
)
def test_mat_contents_refused(tmp_path: Path, content: Any, message: str) -> None:
    savemat(tmp_path / "bad.mat", content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "bad.mat")
    assert "bad.mat" in str(caught.value)


def arrays(**changes: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for split in ("train", "valid", "test"):
        out[f"{split}_sequences"] = np.zeros((3, 2), dtype=np.uint8)
        out[f"{split}_lengths"] = np.array([2, 1])
    return {**out, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid_sequences": np.zeros((3, 2), dtype=np.int64)}, "valid_sequences: expected uint8"),
        ({"valid_sequences": np.zeros(3, dtype=np.uint8)}, "valid_sequences: expected uint8"),
        ({"valid_lengths": np.array([2, 2])}, "valid_lengths: expected a sum of 3"),
        ({"valid_lengths": np.array([4, -1])}, "each at least 1"),
        ({"valid_lengths": np.array([3, 0])}, "each at least 1"),
        ({"valid_lengths": np.array([2.0, 1.0])}, "valid_lengths: expected int64"),
        ({"valid_lengths": np.array([2**62] * 4 + [2, 1])}, "expected a sum of 3"),
        ({"valid_lengths": np.array([[1], None], dtype=object)}, "pickle"),
        (
            {
                "test_sequences": np.zeros((0, 2), dtype=np.uint8),
                "test_lengths": np.zeros(0, dtype=np.int64),
            },
            "test_sequences: expected at least one sequence",
        ),
    ],
)
def test_npz_contents_refused(tmp_path: Path, changes: Any, message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "bad.npz")
    assert "bad.npz" in str(caught.value)


def test_npz_missing_entry(tmp_path: Path) -> None:
    content = arrays()
    del content["test_lengths"]
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(ValueError, match=r"bad.npz.* an entry 'test_lengths', got only"):
        load(tmp_path / "bad.npz")


@pytest.mark.parametrize("suffix", [".mat", ".pickle", ".npz"])
@pytest.mark.parametrize("damage", ["empty", "half", "garbage"])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"bad{suffix}"
    savemat(tmp_path / "good.mat", rolls(NOTES), do_compression=True)
    write(tmp_path / "good.pickle", NOTES)
    np.savez_compressed(tmp_path / "good.npz", **arrays())
    whole = (tmp_path / f"good{suffix}").read_bytes()
    load(tmp_path / f"good{suffix}")
    content = {"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"\x93garbage " * 40}
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match=rf"bad\{suffix}: expected a data set as \{suffix}"):
        load(path)


def test_npz_of_another_kind(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as file:
        file.writestr("train_sequences.txt", "hello")
    with pytest.raises(ValueError, match=r"bad.npz"):
        load(tmp_path / "bad.npz")


def test_path_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a file ending in .mat, .pickle"):
        load(tmp_path / "notes.mid")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


def test_without_scipy_the_error_names_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savemat(tmp_path / "tune.mat", rolls(NOTES))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"scipy\.io"):
        load(tmp_path / "tune.mat")


JSB = ((229, 13807, 129), (76, 4602, 144), (77, 4725, 160))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("JSB_Chorales.mat", JSB),
        ("jsb_chorales.pickle", JSB),
        ("Nottingham.mat", ((694, 176561, 1788), (173, 45513, 1473), (170, 44463, 1793))),
    ],
)
def test_real_files(data_dir: Path, name: str, expected: Any) -> None:
    if not (data_dir / name).is_file():
        pytest.skip(f"needs {name} in {data_dir}; set DMM_FAST_DATA to a directory that has it")
    dataset = load(data_dir / name)
    splits = (dataset.train, dataset.valid, dataset.test)
    assert tuple((len(s), s.num_time_steps, s.sequences.shape[1]) for s in splits) == expected
    if "jsb" in name.lower():
        # A C major chord opens the first chorale.
        assert (dataset.train.sequences[0, 0].nonzero()[:, 0] + 21).tolist() == [60, 72, 79, 88]


def test_real_pickle_is_the_real_mat(data_dir: Path) -> None:
    paths = [data_dir / "JSB_Chorales.mat", data_dir / "jsb_chorales.pickle"]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"needs both JSB files in {data_dir}; set DMM_FAST_DATA to where they are")
    mat, notes = map(load, paths)
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(mat, split).sequences, getattr(notes, split).sequences)
        assert torch.equal(getattr(mat, split).lengths, getattr(notes, split).lengths)
