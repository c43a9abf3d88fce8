"""Checkpoints: bitwise equal round trips, and errors for files that are not checkpoints."""

import dataclasses
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmm_fast import DMM, training
from dmm_fast.data import chorales
from dmm_fast.training import Checkpoint, CheckpointError, _checkpoint

SIZES = {"input_dim": 88, "z_dim": 3, "emission_dim": 4, "transition_dim": 5, "rnn_dim": 6}


def make_checkpoint(dmm: DMM) -> Checkpoint:
    optimizer = {
        f"dmm$$${name}": {
            "state": {0: {"step": 7, "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand(2)}},
            "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.96, 0.999), "params": [0], "eps": 1e-8}],
        }
        for name, p in dmm.named_parameters()
    }
    return Checkpoint(
        sizes=SIZES,
        config={"learning_rate": 0.0003, "data": "chorales", "num_sequences": None, "cuda": False},
        data="a set",
        model=dmm.state_dict(),
        optimizer=optimizer,
        rng={"cpu": torch.get_rng_state()},
        epoch=3,
        step=2,
        order=torch.randperm(11),
        epoch_loss=math.nextafter(1e5 / 3, math.inf),
        best=math.pi,
        metrics_bytes=123,
    )


def assert_same(one: Any, other: Any) -> None:
    """Assert that nested values are bitwise equal and of equal types."""
    assert type(one) is type(other) or isinstance(one, dict)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


@pytest.fixture
def dmm() -> DMM:
    return DMM(**SIZES)


@pytest.fixture
def saved(tmp_path: Path, dmm: DMM) -> Path:
    path = tmp_path / "last.safetensors"
    training.save_checkpoint(path, make_checkpoint(dmm))
    return path


def test_round_trip_keeps_every_bit(tmp_path: Path, dmm: DMM) -> None:
    before = make_checkpoint(dmm)
    training.save_checkpoint(tmp_path / "a", before)
    after = training.load_checkpoint(tmp_path / "a")
    for field in dataclasses.fields(Checkpoint):
        assert_same(getattr(before, field.name), getattr(after, field.name))


def test_file_is_readable_by_others(saved: Path, dmm: DMM) -> None:
    tensors = load_file(saved)
    assert torch.equal(tensors["model.combiner.lin_z_to_hidden.bias"],
                       dmm.combiner.lin_z_to_hidden.bias)  # fmt: skip
    assert {"order", "rng.cpu"} <= tensors.keys()
    assert any(name.startswith("optimizer.dmm$$$emitter") for name in tensors)


def test_load_dmm(saved: Path, dmm: DMM) -> None:
    loaded = training.load_dmm(saved)
    assert not loaded.training
    assert_same(dict(dmm.state_dict()), dict(loaded.state_dict()))


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 200, 0.5, 0.99, -1])
def test_truncated_file_is_refused(saved: Path, kept: float) -> None:
    whole = saved.read_bytes()
    size = int(kept * len(whole)) if isinstance(kept, float) else kept % len(whole)
    saved.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match=r"last\.safetensors: expected a whole safetensors"):
        training.load_checkpoint(saved)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.6, 0.9, 0.999])
def test_flipped_bit_is_noticed(saved: Path, place: float) -> None:
    content = bytearray(saved.read_bytes())
    content[int(place * len(content))] ^= 1
    saved.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"last\.safetensors: expected"):
        training.load_checkpoint(saved)


def test_other_files_are_refused(tmp_path: Path, dmm: DMM) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("a file that is something else")
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, plain)
    optimizer = tmp_path / "optimizer.safetensors"
    training.save_optimizer(optimizer, {})
    for path, reason in (
        (text, "foreign"),
        (plain, "another kind of safetensors file"),
        (optimizer, "a dmm_fast optimizer"),
    ):
        with pytest.raises(CheckpointError, match=f"{path.name}: expected .* got .*{reason}"):
            training.load_checkpoint(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        training.load_checkpoint(tmp_path / "nowhere")


class Payload:
    """An object that a hostile pickle could contain."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_nothing_is_unpickled(tmp_path: Path, dmm: DMM, how: str) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    if how == "torch":
        torch.save(Payload(trace), path)
    else:
        path.write_bytes(pickle.dumps(Payload(trace)))
    for read in (
        lambda: training.load_checkpoint(path),
        lambda: training.load_model(path, dmm),
        lambda: training.load_optimizer(path),
    ):
        with pytest.raises(CheckpointError, match=r"torch\.save.*save_file.*save_optimizer"):
            read()
    assert not trace.exists()


def test_other_version_is_refused(tmp_path: Path, dmm: DMM, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "future"
    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint, "VERSION", 2)
        training.save_checkpoint(path, make_checkpoint(dmm))
    with pytest.raises(CheckpointError, match="future: expected format version 1, got version 2"):
        training.load_checkpoint(path)


@pytest.mark.parametrize(("field", "value"), [("epoch", "3"), ("order", [1]), ("best", 1)])
def test_fields_of_other_types_are_refused(tmp_path: Path, dmm: DMM, field: str, value: Any) -> None:
    wrong = dataclasses.replace(make_checkpoint(dmm), **{field: value})
    training.save_checkpoint(tmp_path / "a", wrong)
    with pytest.raises(CheckpointError, match=f"expected {field} of type"):
        training.load_checkpoint(tmp_path / "a")


def test_other_sizes_are_refused(saved: Path) -> None:
    other = DMM(**{**SIZES, "rnn_dim": 9})
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"last\.safetensors: expected h_0 of shape \(1, 1, 9\), "
        r"got \(1, 1, 6\)",
    ):
        training.load_model(saved, other)
    assert_same(before, dict(other.state_dict()))


def test_other_names_are_refused(tmp_path: Path, dmm: DMM) -> None:
    state = dict(dmm.state_dict())
    state["stranger"] = state.pop("z_0")
    with pytest.raises(CheckpointError, match="z_0"):
        _checkpoint.load_state(tmp_path / "a", dmm, state)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failed_save_leaves_the_earlier_file(
    saved: Path, dmm: DMM, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = saved.read_bytes()

    def no_space(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, no_space)
        with pytest.raises(OSError, match="No space left"):
            training.save_checkpoint(saved, dataclasses.replace(make_checkpoint(dmm), epoch=4))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_unsavable_value_is_named_and_nothing_is_written(saved: Path, dmm: DMM) -> None:
    before = saved.read_bytes()
    wrong = dataclasses.replace(make_checkpoint(dmm), config={"out": Path("x")})
    with pytest.raises(TypeError, match=r"config\.out: expected .* got PosixPath"):
        training.save_checkpoint(saved, wrong)
    assert saved.read_bytes() == before


def test_plain_model_has_the_names_of_the_example_and_loads(tmp_path: Path, dmm: DMM) -> None:
    training.save_model(tmp_path / "m", dmm)
    assert {"z_0", "z_q_0", "h_0", "rnn.weight_ih_l0", "trans.lin_sig.bias"} <= load_file(
        tmp_path / "m"
    ).keys()
    other = DMM(**SIZES)
    training.load_model(tmp_path / "m", other)
    assert_same(dict(dmm.state_dict()), dict(other.state_dict()))


def test_pyro_optimizer_state_converts_as_documented_in_the_message(tmp_path: Path, dmm: DMM) -> None:
    optimizer = pyro.optim.ClippedAdam({"lr": 1e-3, "betas": (0.9, 0.99)})
    batch = chorales(2, 1, 1, num_steps=(8, 9)).train.batch(torch.arange(2))
    SVI(dmm.model, dmm.guide, optimizer, Trace_ELBO()).step(*batch)
    optimizer.save(str(tmp_path / "old"))
    training.save_optimizer(tmp_path / "new", torch.load(tmp_path / "old", weights_only=True))
    assert_same(optimizer.get_state(), training.load_optimizer(tmp_path / "new"))


def test_document_is_json_with_exact_floats(saved: Path) -> None:
    # Read without this package: the length of the header, the header, its metadata.
    content = saved.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    document = json.loads(header["__metadata__"]["dmm_fast"])
    fields = dict(document["tree"]["dict"])
    assert document["version"] == 1
    assert fields["epoch_loss"] == math.nextafter(1e5 / 3, math.inf)
