"""Crafted checkpoints with a valid checksum are refused with reasons, without large allocations."""

import dataclasses
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm_fast import DMM, training
from dmm_fast._arguments import INFERENCE, NETWORKS
from dmm_fast.training import Checkpoint, CheckpointError, _checkpoint
from tests.bad_input.tries import little_memory
from tests.helpers_crafted import mutants, read, write, write_raw
from tests.helpers_model import FLOWS, SIZES, small_dmm


def run_of(dmm: DMM, **fields: Any) -> Checkpoint:
    name, parameter = next(iter(dmm.named_parameters()))
    state = {0: {"step": 7, "exp_avg": torch.zeros_like(parameter)}}
    groups = [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]
    run = Checkpoint(
        sizes=dict(SIZES), config={"data": "chorales", "z_dim": 3, "learning_rate": 1e-3}, data="a set",
        model=dmm.state_dict(), optimizer={f"dmm$$${name}": {"state": state, "param_groups": groups}},
        rng={"cpu": torch.get_rng_state()}, epoch=3, step=2, order=torch.randperm(11), epoch_loss=2.5,
        best=1.5, metrics_bytes=12,
    )  # fmt: skip
    return dataclasses.replace(run, **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "crafted.safetensors"


def tensors_differ(guide: str, other: str) -> bool:
    """True if two guides have different tensors; a direction of time alone changes none."""
    return (guide[:2], "lr" in guide) != (other[:2], "lr" in other)


def refused(read_it: Callable[[], object]) -> str:
    """The message of a refusal, which must not allocate much memory."""
    expected = r"crafted\.safetensors: expected .*, got "
    with little_memory(1 << 30), pytest.raises(CheckpointError, match=expected) as caught:
        read_it()
    return str(caught.value)


def document(tree: Any, **header: Any) -> dict[str, Any]:
    return {"version": 1, "kind": "checkpoint", "tree": tree, **header}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "at most 64 levels"),
        ('{"version": 1, "kind": "checkpoint", "tree": ' + '{"list": [' * 400 + "]}" * 400 + "}", "levels"),
        ("{", "document|Expecting"),
        ("[]", "document: expected a JSON object, got list"),
        ("3", "document: expected a JSON object, got int"),
        ("9" * 10_000, "got"),
        ({}, "format version 1, got version None"),
        (document(None, version=[1]), "format version 1"),
        (document(None, kind={"a": 1}), "a dmm_fast checkpoint"),
        ({"version": 1, "kind": "checkpoint"}, "tree: expected dict"),
        (document({"tensor": "nope"}), "the name of a tensor in this file, got 'nope'"),
        (document({"tensor": ["a"]}), "the name of a tensor in this file"),
        (document({"dict": [[[1], 2]]}), "keys that are str or int, got list"),
        (document({"dict": [[None, 2]]}), "keys that are str or int, got NoneType"),
        (document({"dict": [["a", 1], ["a", 2]]}), "each key of a dict once, got 'a'"),
        (document({"dict": [["a"]]}), "pairs of key and value"),
        (document({"dict": {"a": 1}}), "the parts of a dict, got dict"),
        (document({"list": 3}), "the parts of a list, got int"),
        (document({"evil": 1}), "a tensor, dict, tuple or list, got 'evil'"),
        (document({"list": [], "dict": []}), "objects of one entry"),
        (document([1, 2]), "objects of one entry, got list"),
        (document({"dict": [[1, 2], ["a", 3]]}), "expected the fields"),
        (" " * ((1 << 24) + 1), "at most 16777216 characters"),
    ],
)
def test_crafted_documents_are_refused(path: Path, content: Any, reason: str) -> None:
    write(path, content)
    assert reason.split("|")[-1] in refused(lambda: training.load_checkpoint(path))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "null",
        "[" * 50_000,
        '{"a": {}}',
        '{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
    ],
)
def test_crafted_headers_are_refused(path: Path, header: str) -> None:
    write_raw(path, header, bytes(4))
    refused(lambda: training.load_checkpoint(path))


def test_header_larger_than_the_file_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    refused(lambda: training.load_checkpoint(path))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("epoch", -1, "epoch: expected an int from 0, got -1"),
        ("epoch", True, "epoch of type int, got bool"),
        ("step", 2**80, "step: expected an int from 0, got one that is too large"),
        ("metrics_bytes", -5, "metrics_bytes: expected an int from 0"),
        ("waited", -1, "waited: expected an int from 0, got -1"),
        ("unaveraged", {"z_0": 1}, "unaveraged: expected tensors by their names"),
        ("epoch_loss", float("nan"), "epoch_loss: expected a finite number, got float nan"),
        ("best", float("inf"), "best: expected a finite number, got float inf"),
        ("order", torch.tensor([0, 1, 1]), "order: expected a permutation"),
        ("order", torch.tensor([1, 2, 3]), "order: expected a permutation"),
        ("order", torch.tensor([1.0, 0.0]), "order: expected a permutation"),
        ("order", torch.tensor([[0, 1]]), "order: expected a permutation"),
        ("order", None, "order: expected a permutation in the middle of an epoch"),
        ("rng", {}, "rng: expected 'cpu'"),
        ("rng", {"cpu": 3}, "rng.cpu: expected uint8"),
        ("rng", {"cpu": torch.zeros(5056)}, "rng.cpu: expected uint8"),
        ("rng", {"cpu": torch.zeros(7, dtype=torch.uint8)}, "rng.cpu: expected a state of torch's generator"),
        ("rng", {"cpu": torch.full((5056,), 255, dtype=torch.uint8)}, "rng.cpu: expected a state of"),
        ("config", {"data": [1]}, "config: expected names and their JSON values"),
        ("sizes", {3: 3}, "sizes: expected names and their JSON values"),
        ("model", {"z_0": 1}, "model: expected tensors by their names"),
        ("optimizer", {"a": 1}, "optimizer: expected a state and param_groups"),
        ("optimizer", {"a": {"state": {}, "param_groups": [3]}}, "optimizer: expected a state and"),
    ],
)  # fmt: skip
def test_fields_with_wrong_values_are_refused(path: Path, field: str, value: Any, reason: str) -> None:
    training.save_checkpoint(path, run_of(small_dmm(), **{field: value}))
    assert reason in refused(lambda: training.load_checkpoint(path))


@pytest.mark.parametrize(
    "sizes",
    [
        {"rnn_dim": 10**7},
        {**SIZES, "rnn_dim": 2**62},
        {**SIZES, "emission_dim": 10**6},
        {**SIZES, "num_layers": 10**9},
        {**SIZES, "num_layers": 2},
        {**SIZES, "num_layers": 0},
        {**SIZES, "num_iafs": 10**9},
        {**SIZES, "num_iafs": 1, "iaf_dim": 10**9},
        {**SIZES, "num_iafs": "1"},
        {**SIZES, "z_dim": "3"},
        {**SIZES, "z_dim": True},
        {**SIZES, "z_dim": 3.0},
        {**SIZES, "emission": "poison"},
        {**SIZES, "emission": "gaussian"},
        {**SIZES, "inference": "st"},
        {**SIZES, "inference": None},
        {**SIZES, "inference": "st-lr"},
        {**SIZES, "inference": "mf-l"},
        {**SIZES, "rnn": "RELU"},
        {**SIZES, "rnn": 3},
        {**SIZES, "rnn": "gru"},
        {**SIZES, "rnn": "lstm", "rnn_dim": 10**7},
        {**SIZES, "use_cuda": True},
        {**SIZES, "strange": 1},
        {"z_dim": 0},
    ],
    ids=str,
)
def test_sizes_are_compared_with_the_tensors_before_allocation(path: Path, sizes: Any) -> None:
    training.save_checkpoint(path, run_of(small_dmm(), sizes=sizes))
    refused(lambda: training.load_dmm(path))


def test_large_products_of_valid_sizes_are_refused(path: Path) -> None:
    # Each size is that of a small tensor in the file; their product is eight terabytes.
    many = 10**6
    sizes = {"input_dim": many, "z_dim": 1, "emission_dim": many, "transition_dim": 1, "rnn_dim": 1}
    model = {
        "emitter.lin_z_to_hidden.weight": torch.zeros(many, 1),
        "rnn.weight_ih_l0": torch.zeros(1, many),
        "rnn.weight_hh_l0": torch.zeros(1, 1),
        "z_0": torch.zeros(1),
        "h_0": torch.zeros(1, 1, 1),
    }
    training.save_checkpoint(path, run_of(small_dmm(), sizes=sizes, model=model))
    assert "as the sizes say" in refused(lambda: training.load_dmm(path))


@pytest.mark.parametrize(
    ("guide", "other"),
    [(one, other) for one in INFERENCE for other in INFERENCE if tensors_differ(one, other)],
)
def test_tensors_of_another_guide_are_refused(path: Path, guide: str, other: str) -> None:
    run = run_of(small_dmm(inference=guide), sizes={**SIZES, "inference": other})
    training.save_checkpoint(path, run)
    message = refused(lambda: training.load_dmm(path))
    assert re.search("model.(h_0|z_q_0): expected shape|Unexpected key.*z_q_0", message)


def test_many_missing_layers_are_refused_quickly(path: Path) -> None:
    dmm, many = small_dmm(rnn="lstm"), 8_000
    model = dmm.state_dict() | {f"rnn.weight_hh_l{n}": torch.zeros(1) for n in range(2, many)}
    run = run_of(dmm, sizes={**SIZES, "rnn": "lstm", "num_layers": many}, model=model)
    training.save_checkpoint(path, run)
    begun = time.process_time()
    assert "model.rnn.weight_ih_l1: expected shape" in refused(lambda: training.load_dmm(path))
    assert time.process_time() - begun < 4  # torch takes 10 seconds to make so many, growing quadratically


@pytest.mark.parametrize(
    "kind",
    [
        {},
        FLOWS,
        {"num_layers": 2},
        {"emission": "gaussian"},
        *({"inference": guide} for guide in INFERENCE[1:]),
        *({"rnn": rnn, "num_layers": 3} for rnn in NETWORKS),
        {"inference": "st-lr", "rnn": "lstm", "num_layers": 2},
        {"inference": "mf-l", "rnn": "gru", **FLOWS},
    ],
    ids=str,
)
def test_saved_checkpoints_are_loaded(path: Path, kind: dict[str, Any]) -> None:
    dmm = small_dmm(**kind)
    training.save_checkpoint(path, run_of(dmm, sizes={**SIZES, **kind}))
    loaded = training.load_dmm(path)
    assert (loaded.inference, type(loaded.rnn)) == (dmm.inference, type(dmm.rnn))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in dmm.state_dict().items())
    assert _checkpoint.train_config(path, training.load_checkpoint(path).config).z_dim == 3


def test_random_numbers_do_not_depend_on_the_comparison_of_sizes(path: Path) -> None:
    training.save_checkpoint(path, run_of(small_dmm()))
    torch.manual_seed(3)
    DMM(**SIZES)
    expected = torch.rand(1)
    torch.manual_seed(3)
    training.load_dmm(path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.long(), "as torch.float32, got torch.int64"),
        (lambda t: t.to(torch.float8_e4m3fn), "as torch.float32, got torch.float8_e4m3fn"),
        (lambda t: t[None], "of shape"),
    ],
)
def test_parameters_of_other_kinds_are_refused(
    path: Path, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    dmm = small_dmm()
    training.save_checkpoint(path, run_of(dmm))
    document, tensors = read(path)
    name = "model.emitter.lin_z_to_hidden.weight"
    write(path, document, {**tensors, name: change(tensors[name])})
    before = {key: tensor.clone() for key, tensor in dmm.state_dict().items()}
    assert reason in refused(lambda: training.load_model(path, dmm))
    assert all(torch.equal(before[key], tensor) for key, tensor in dmm.state_dict().items())


def test_order_of_a_flow_that_is_no_permutation_is_refused(path: Path) -> None:
    dmm = small_dmm(**FLOWS)
    model = {**dmm.state_dict(), "iafs_modules.0.arn.permutation": torch.tensor([0, 1, 10**6])}
    training.save_checkpoint(path, run_of(dmm, sizes={**SIZES, **FLOWS}, model=model))
    assert "as a permutation" in refused(lambda: training.load_dmm(path))


@pytest.mark.parametrize(
    "units",
    [
        {"x_loc": torch.zeros(5)},
        {"x_loc": torch.zeros(10**6), "x_scale": torch.ones(5)},
        {"x_loc": torch.zeros(5), "x_scale": torch.zeros(5)},
        {"x_loc": torch.full((5,), torch.nan), "x_scale": torch.ones(5)},
        {"x_loc": torch.zeros(5), "x_scale": torch.ones(5, dtype=torch.int64)},
    ],
)
def test_units_that_do_not_fit_are_refused(path: Path, units: dict[str, Tensor]) -> None:
    dmm = small_dmm(emission="gaussian")
    run = run_of(dmm, sizes={**SIZES, "emission": "gaussian"}, model={**dmm.state_dict(), **units})
    training.save_checkpoint(path, run)
    assert "x_" in refused(lambda: training.load_dmm(path))


def test_units_are_loaded(path: Path) -> None:
    dmm = small_dmm(emission="gaussian")
    dmm.standardize(torch.randn(4, 6, 5))
    run = run_of(dmm, sizes={**SIZES, "emission": "gaussian"}, model=dmm.state_dict())
    training.save_checkpoint(path, run)
    assert torch.equal(training.load_dmm(path).state_dict()["x_scale"], dmm.state_dict()["x_scale"])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"strange": 1}, "config: expected names of settings, got 'strange'"),
        ({"z_dim": "3"}, "config.z_dim: expected int, got str '3'"),
        ({"z_dim": True}, "config.z_dim: expected int, got bool"),
        ({"learning_rate": "fast"}, "config.learning_rate: expected float"),
        ({"cuda": 1}, "config.cuda: expected bool"),
        ({"num_sequences": 1.5}, "config.num_sequences: expected int | None"),
        ({"out": "runs"}, "config.out: expected"),
        ({"elbo": "strange"}, "elbo: expected one of"),
        ({"inference": "strange"}, "inference: expected one of st-r, st-l"),
        ({"inference": None}, "config.inference: expected str, got NoneType"),
        ({"rnn": "LSTM"}, "rnn: expected one of relu, tanh, lstm, gru, got LSTM"),
        ({"mini_batch_size": 0}, "mini_batch_size: expected"),
    ],
)
def test_settings_of_other_kinds_are_refused(path: Path, config: Any, reason: str) -> None:
    training.save_checkpoint(path, run_of(small_dmm(), config=config))
    saved = training.load_checkpoint(path)
    assert reason in refused(lambda: _checkpoint.train_config(path, saved.config))


def test_float_settings_may_be_whole_numbers(path: Path) -> None:
    assert _checkpoint.train_config(path, {"clip_norm": 10}).clip_norm == 10


def test_two_tensors_of_one_name_are_not_saved(path: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.a\.1: expected one tensor of this name"):
        training.save_optimizer(path, {"a": {1: torch.zeros(2), "1": torch.ones(2)}})
    assert not path.exists()


@pytest.mark.parametrize(
    "tensor", [torch.eye(2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.complex64)]
)
def test_unsupported_tensors_are_not_saved(path: Path, tensor: Tensor) -> None:
    with pytest.raises(TypeError, match=r"optimizer\.a: expected .*, got "):
        training.save_optimizer(path, {"a": tensor})


def refusal(read_it: Callable[[], object]) -> str | None:
    try:
        read_it()
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(2))
def test_mutants_are_loaded_or_refused(path: Path, seed: int) -> None:
    dmm = small_dmm()
    good = path.with_name("good")
    training.save_checkpoint(good, run_of(dmm))
    refusals = []
    for document, tensors in mutants(good, 100, seed):
        write(path, document, tensors)
        refusals += [
            refusal(lambda: _checkpoint.train_config(path, training.load_checkpoint(path).config)),
            refusal(lambda: training.load_dmm(path)),
            refusal(lambda: training.load_optimizer(path)),
            refusal(lambda: training.load_model(path, dmm)),
        ]
    assert all("crafted.safetensors: expected" in message for message in refusals if message)
    assert 20 < refusals.count(None) < 300, "mutants that are all alike test nothing"
