"""Data files that need more memory than allowed are refused before it is allocated."""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from dmm_fast.data import load
from tests.bad_input.tries import little_memory

SPLITS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def little() -> Iterator[None]:
    with little_memory(1 << 30):
        yield


def refused(path: Path, **arguments: Any) -> str:
    with pytest.raises(
        ValueError, match=rf"{path.name}: expected a data set as \{path.suffix}, got"
    ) as caught:
        load(path, **arguments)
    return str(caught.value)


def npy(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"", version: int = 1) -> bytes:
    """An array file whose header claims a shape."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def npz(path: Path, **arrays: bytes) -> Path:
    good = {}
    for split in SPLITS:
        good[f"{split}_sequences"] = npy((3, 2), data=bytes(6))
        good[f"{split}_lengths"] = npy((2,), "<i8", np.array([2, 1]).tobytes())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**good, **arrays}.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_valid_files_are_read(tmp_path: Path) -> None:
    assert load(npz(tmp_path / "a.npz")).valid.lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    "arrays",
    [
        {"valid_sequences": npy((2**40, 88))},
        {"valid_sequences": npy((2**62, 2**62))},
        {"valid_sequences": npy((2**33,), "|O")},
        {"valid_sequences": npy((9,), "|V1000000000")},
        {"valid_lengths": npy((2**40,), "<i8")},
    ],
)
def test_claimed_shapes_are_added_up_before_reading(tmp_path: Path, arrays: dict[str, bytes]) -> None:
    message = refused(npz(tmp_path / "a.npz", **arrays))
    assert f"{next(iter(arrays))}: expected a file that takes at most max_bytes = 8589934592" in message


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    rows = 40_000_000
    path = npz(tmp_path / "a.npz", test_sequences=npy((rows, 1), data=bytes(rows)))
    assert path.stat().st_size < 100_000
    assert "max_bytes = 10000000" in refused(path, max_bytes=10_000_000)


def test_one_long_sequence_among_many_is_refused(tmp_path: Path) -> None:
    # A hundred kilobytes that pad to forty gigabytes.
    lengths = np.array([100_000] + [1] * 100_000)
    rows = npy((200_000, 1), data=bytes(200_000))
    arrays = {"train_sequences": rows, "train_lengths": npy((100_001,), "<i8", lengths.tobytes())}
    assert "max_bytes" in refused(npz(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("shape", [(-1, 2), (3, -2)])
def test_negative_sizes_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert "sizes from 0" in refused(npz(tmp_path / "a.npz", test_sequences=npy(shape)))


def test_headers_without_a_bound_are_refused(tmp_path: Path) -> None:
    content = npy((3, 2), version=2, data=bytes(6))
    assert "format 1.0, got 2.0" in refused(npz(tmp_path / "a.npz", test_sequences=content))


def test_the_bound_is_an_argument(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz")
    load(path, max_bytes=10_000)
    assert "at most max_bytes = 100 bytes" in refused(path, max_bytes=100)
    for wrong in (0, -1, 1.5, True, "1", None):
        with pytest.raises((ValueError, TypeError), match="max_bytes: expected a positive int, got"):
            load(path, max_bytes=wrong)


def write_pickle(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def repeated(times: int, place: bytes = b"h\x00") -> bytes:
    return b"](" + place * times + b"e"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"]r\xff\xff\xff\xff.", "a dict of train"),  # the 4294967295th place of the memo
        (b"]p99999999999\n.", "a dict of train"),
        (b"\x96" + struct.pack("<Q", 2**40) + b".", "refused instruction"),
        (b"\x8d" + struct.pack("<Q", 2**62) + b"x", "EOFError"),
        (b"B" + struct.pack("<I", 2**31) + b"x", "EOFError"),
        (b"\x8b" + struct.pack("<i", -1) + b"x", "negative byte count"),
        (b"\x95" + struct.pack("<Q", 2**62) + b"N.", "a dict of train"),  # a frame's length is not needed
        (b"}((t" + b"\x85" * 20_000 + b"Nu.", "refused keys"),
        (b"}(t" + b"\x85" * 20_000 + b"Ns.", "refused keys"),
        (b"((t" + b"\x85" * 20_000 + b"Nd.", "refused keys"),
        (b"\x8f(Nt\x90.", "refused instruction"),
        (b"](" * 20_000 + b"e" * 20_000 + b".", "a dict of train"),
        (b"V" + b"9" * 1000 + b"\n.", "a dict of train, valid, test, got str"),
        (b"I" + b"9" * 200 + b"\n.", "a dict of train, valid, test, got int"),
        (b"h\x07.", "Memo value not found"),
        (b"e.", "IndexError"),
        (b".", "IndexError"),
        (b"(.", "IndexError"),
        (b"NNa.", "AttributeError"),
        (b"]N\x8c\x01ab.", "AttributeError"),
        (b"cnumpy\ndtype\n(U\x03i99tR.", "notes are integers"),
        (b"cos\nsystem\n.", "refused os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "refused os.system"),
        (b"(cnumpy\ndtype\nU\x02i8o.", "refused instruction"),
        (b"(U\x02i8inumpy\ndtype\n.", "refused instruction"),
        (b"cnumpy\ndtype\n(U\x02i8t\x81.", "refused instruction"),
        (b"cnumpy\ndtype\n(U\x02i8t}\x92.", "refused instruction"),
        (b"\x82\x01.", "refused instruction"),
        (b"\x97.", "refused instruction"),
        (b"N\x98.", "refused instruction"),
    ],
)
def test_crafted_pickles_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refused(write_pickle(tmp_path / "a.pickle", content))


def test_steps_that_are_repeated_are_counted(tmp_path: Path) -> None:
    # A step of ten thousand notes, a sequence of ten thousand such steps, ten thousand such sequences.
    step = b"(" + b"K\x3c" * 10_000 + b"tq\x000"
    sequence = repeated(10_000) + b"q\x010"
    splits = (
        b"}("
        + b"".join(b"U%c%s" % (len(split), split.encode()) + repeated(10_000, b"h\x01") for split in SPLITS)
        + b"u."
    )
    path = write_pickle(tmp_path / "a.pickle", step + sequence + splits)
    assert "train[0]: expected a file that takes" in refused(path, max_bytes=100_000_000)


def test_empty_lists_cost_more_than_their_bytes(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "a.pickle", b"]" * 200_000 + b".")
    assert "max_bytes = 10000000" in refused(path, max_bytes=10_000_000)


def test_all_pickle_protocols_are_read_like_pickle() -> None:
    from dmm_fast.data._memory import Memory
    from dmm_fast.data._pickled import unpickle

    things = [
        {"a": [1.5, True, None, "é€" * 20, 2**70, -3, 300, 70_000, -(2**40), {}, ()]},
        [(1, 2, 3, 4), (1,), (1, 2), (1, 2, 3), [], [[]]],
        ["same"] * 3,
        1e-300,
    ]
    for thing in things:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert unpickle(pickle.dumps(thing, protocol), Memory(1 << 20)) == thing


def matrix(shape: tuple[int, ...], content: bytes, name: bytes = b"traindata", mat_class: int = 1) -> bytes:
    """A variable of a MATLAB file."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    dims = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, element(6, struct.pack("<II", mat_class, 0)) + dims + element(1, name) + content)


def mat(path: Path, *variables: bytes) -> Path:
    path.write_bytes(b"MATLAB".ljust(124) + b"\x00\x01IM" + b"".join(variables))
    return path


def compressed(variable: bytes) -> bytes:
    data = zlib.compress(variable)
    return struct.pack("<II", 15, len(data)) + data


def nested(depth: int) -> bytes:
    """A cell array in a cell array and so on."""
    empty = matrix((1, 1), b"", b"")
    tags = [struct.pack("<II", 14, len(empty) * n - 8) for n in range(depth, 0, -1)]
    return b"".join(tag + empty[8:] for tag in tags)


CELL = matrix((1, 88), struct.pack("<II", 2, 88) + bytes(88), b"", 9)


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        (matrix((1, 2**30), CELL), "1073741824 cells as its dimensions say"),
        (matrix((2**31 - 1, 2**31 - 1), CELL), "cells as its dimensions say"),
        (matrix((1, -1), CELL), "-1 cells as its dimensions say"),
        (matrix((1,) * 40, CELL), "got ValueError"),
        (matrix((), CELL), "an object array of shape (1, N), got object of shape ()"),
        (matrix((1, 2), CELL), "2 cells as its dimensions say, got 1"),
        (matrix((1, 1), CELL + CELL), "1 cells as its dimensions say, got 2"),
        (matrix((1, 1), matrix((2**20, 2**20), b"", b"", 9)), "real numbers, got elements of types []"),
        (
            matrix((1, 1), matrix((2**20, 2**20), struct.pack("<II", 9, 8) + bytes(8), b"", 6)),
            "cannot reshape",
        ),
        (matrix((1, 1), matrix((1, 1), CELL, b"")), "real numbers, got MATLAB class 1"),
        (matrix((1, 1), matrix((1, 4), struct.pack("<II", 4, 8) + b"a" * 8, b"", 4)), "got MATLAB class 4"),
        (matrix((1, 1), matrix((1, 88), struct.pack("<II", 1000, 88) + bytes(88), b"", 9)), "types [1000]"),
        (
            matrix((1, 1), matrix((1, 88), CELL[-96:] + CELL, b"", 9)),
            "real numbers, got elements of types [2, 14]",
        ),
        (matrix((1, 1), matrix((1, 2**30), struct.pack("<II", 4, 0), b"", 4)), "got MATLAB class 4"),
        (matrix((1, 2**30), struct.pack("<HHiII", 5, 4, 32, 1, 0), mat_class=2), "got MATLAB class 2"),
        (matrix((1, 1), CELL, mat_class=0x0806), "got MATLAB class 6, complex"),
        (matrix((1, 1), nested(50_000)), "got MATLAB class 1"),
        (matrix((1, 1), CELL)[:-40], "whole elements"),
        (struct.pack("<II", 14, 2**31) + bytes(8), "whole elements, got one of 2147483648 bytes"),
        (struct.pack("<II", 15, 5) + b"\x00" * 5, "got"),
        (compressed(matrix((1, 1), CELL)[:-8]), "as its tag says"),
        (compressed(matrix((1, 1), CELL) + bytes(8)), "as its tag says"),
        (compressed(matrix((1, 1), CELL))[:-1] + b"x", "incorrect data check"),
        (struct.pack("<II", 99, 0), "variables, got an element of type 99"),
    ],
)
def test_crafted_matlab_files_are_refused(tmp_path: Path, variable: bytes, reason: str) -> None:
    assert reason in refused(mat(tmp_path / "a.mat", variable))


def test_a_compressed_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    size = 30_000_000
    bomb = matrix(
        (1, 1), matrix((size // 88, 88), struct.pack("<II", 2, size // 88 * 88) + bytes(size), b"", 9)
    )
    path = mat(tmp_path / "a.mat", compressed(bomb))
    assert path.stat().st_size < 100_000
    # Refused by the size of the file, before its contents are parsed.
    assert "file: expected a file that takes at most max_bytes" in refused(path, max_bytes=1_000_000)


def test_empty_cells_cost_more_than_their_bytes(tmp_path: Path) -> None:
    path = mat(tmp_path / "a.mat", matrix((1, 100_000), struct.pack("<II", 14, 0) * 100_000))
    assert "traindata: expected a file that takes at most" in refused(path, max_bytes=10_000_000)


def test_other_variables_are_skipped(tmp_path: Path) -> None:
    bomb = matrix((30_000_000, 1), struct.pack("<II", 2, 30_000_000) + bytes(30_000_000), b"other", 9)
    cells = [matrix((1, 1), CELL, f"{split}data".encode()) for split in SPLITS]
    path = mat(tmp_path / "a.mat", compressed(bomb), *cells, matrix((2, 2), b"", b"strange", 17))
    assert load(path, max_bytes=1_000_000).train.sequences.shape == (1, 1, 88)


@pytest.mark.parametrize("dtype", ["u1", "f8", "f4", "i4", "?"])
@pytest.mark.parametrize("compression", [False, True])
def test_matlab_files_of_scipy_are_read(tmp_path: Path, dtype: str, compression: bool) -> None:
    rng = np.random.default_rng(0)
    cells = np.empty((1, 3), dtype=object)
    for i, steps in enumerate((1, 5, 3)):
        cells[0, i] = (rng.random((steps, 88)) < 0.2).astype(dtype)
    savemat(tmp_path / "a.mat", {f"{s}data": cells for s in SPLITS}, do_compression=compression)
    loaded = load(tmp_path / "a.mat").valid
    assert loaded.lengths.tolist() == [1, 5, 3]
    for row, cell in zip(loaded.sequences, cells[0], strict=True):
        assert np.array_equal(row[: len(cell)].numpy(), cell)


def test_the_header_does_not_select_another_reader(tmp_path: Path) -> None:
    cells = [matrix((1, 1), CELL, f"{split}data".encode()) for split in SPLITS]
    path = mat(tmp_path / "a.mat", *cells)
    path.write_bytes(bytes(4) + path.read_bytes()[4:])  # a zero among these is for scipy an older version
    assert load(path).train.sequences.shape == (1, 1, 88)


def test_other_versions_of_matlab_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 7.3".ljust(124) + b"\x00\x02IM" + bytes(64))
    assert "a MATLAB v5 file, got version" in refused(path)
    savemat(path, {"traindata": np.zeros((2, 200))}, format="4")
    assert "a MATLAB v5 file" in refused(path)


def test_a_file_object_is_needed_for_notes() -> None:
    from dmm_fast.data._piano_rolls import read_notes

    with pytest.raises(TypeError, match="file: expected a file open for reading bytes"):
        read_notes(io.StringIO("text"))  # type: ignore[arg-type]
