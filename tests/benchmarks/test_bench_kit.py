"""The kit for a GPU machine without access to a package index."""

import os
import subprocess
import sys

import pytest

import dmm_fast
from benchmarks import exchange_floor, kit, machine
from dmm_fast.data import chorales, save_npz


@pytest.fixture
def with_kernels(monkeypatch):
    info = dmm_fast.info()
    monkeypatch.setattr(dmm_fast, "info", lambda: info | {"missing": {}})
    monkeypatch.setattr(exchange_floor, "ensure", lambda: None)


def small_data(folder):
    data = folder / "songs.npz"
    save_npz(chorales(num_train=5, num_valid=1, num_test=1), data)
    return data


def test_a_kit_has_everything_its_command_needs(with_kernels, tmp_path):
    data = small_data(tmp_path)
    out = tmp_path / "kit"
    more = tmp_path / "more.npz"
    more.write_bytes(data.read_bytes())
    for _ in range(2):  # over an old one
        assert kit.main(["--out", str(out), "--data", str(data), "--sets", str(more)]) == 0
    assert (out / "COMMIT").read_text().strip()
    assert (out / "songs.npz").is_file()
    assert list((out / "dmm_fast").glob("_C*.so"))
    needed = {"pyro", "pyroapi", "tqdm", "opt_einsum", "safetensors"}
    assert needed <= {path.name for path in (out / "packages").iterdir()}
    assert not list(out.rglob("__pycache__"))
    # Pyro's packages are hidden in this environment, so those of the kit are used.
    program = (
        "import pyro, benchmarks, dmm_fast; print(pyro.__file__, benchmarks.__file__, dmm_fast.__file__)"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@"\nexec {sys.executable} -c "{program}"\n')
    python.chmod(0o755)
    command = ["sh", str(out / "run.sh"), "first", "results", "--device", "cpu"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    asked, found = ended.stdout.splitlines()
    commit = (out / "COMMIT").read_text().strip()
    wanted = f"--preset first --out {tmp_path}/results --commit {commit} --data songs.npz --device cpu"
    assert asked == f"-m benchmarks.gpu {wanted}"
    assert all(path.startswith(str(out)) for path in found.split())
    command = ["sh", str(out / "run.sh"), "quality", "results", "--presets", "tuned"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True
    )
    wanted = f"--cuda --out {tmp_path}/results --work {tmp_path}/results/work"
    both = "--data sets/more.npz --data songs.npz"
    assert ended.stdout.splitlines()[0] == f"-m benchmarks.quality {wanted} {both} --presets tuned"


def test_a_kit_without_the_floor_prints_a_warning(with_kernels, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(exchange_floor, "ensure", lambda: "_floor.so is not built: no nvcc")
    assert kit.main(["--out", str(tmp_path / "kit"), "--data", str(small_data(tmp_path))]) == 0
    told = "The kit will not measure the floors of the scans' exchanges: _floor.so is not built: no nvcc.\n"
    assert capsys.readouterr().err == told


def refused(capsys, *arguments):
    with pytest.raises(SystemExit):
        kit.main(list(arguments))
    return capsys.readouterr().err


def test_without_kernels_there_is_no_kit(monkeypatch, tmp_path, capsys):
    info = dmm_fast.info() | {"missing": {"cuda": "no nvcc"}}
    monkeypatch.setattr(dmm_fast, "info", lambda: info)
    told = refused(capsys, "--out", str(tmp_path / "kit"))
    assert "the library: expected one with CUDA kernels, got none: no nvcc" in told
    assert not (tmp_path / "kit").exists()


def test_another_folder_is_not_replaced(with_kernels, tmp_path, capsys):
    (tmp_path / "precious").touch()
    assert "--out: expected no folder or an old kit" in refused(capsys, "--out", str(tmp_path))
    assert (tmp_path / "precious").is_file()


@pytest.mark.parametrize("name", ["nowhere", "garbage.mat"])
def test_unreadable_data_is_an_error(with_kernels, tmp_path, capsys, name):
    (tmp_path / "garbage.mat").write_bytes(b"garbage")
    out = tmp_path / "kit"
    for option in ("--data", "--sets"):
        assert f"{option}: " in refused(capsys, "--out", str(out), option, str(tmp_path / name))
    assert not out.exists()


@pytest.mark.parametrize("arguments", [[], ["first"]])
def test_the_command_of_a_kit_prints_its_usage(tmp_path, arguments):
    (tmp_path / "run.sh").write_text(kit.RUN)
    ended = subprocess.run(["sh", "run.sh", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "usage: sh run.sh first|second|quality DIR" in ended.stderr


def test_outside_a_checkout_the_commit_is_that_of_the_kit(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == "unknown"
    (tmp_path / "COMMIT").write_text("0123abcd\n")
    assert machine.commit() == "0123abcd"
