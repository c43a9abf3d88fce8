"""Parts of the benchmark of quality: settings, the evaluation and the journal."""

import ast
import json
from pathlib import Path

import pytest
import torch

from benchmarks.quality import __main__ as quality
from benchmarks.quality import evaluation
from benchmarks.quality.evaluation import BOUND, NLL, Evaluation, groups
from benchmarks.quality.journal import JOURNAL, Journal
from benchmarks.quality.settings import chosen, parsed
from dmm_fast.data import load
from dmm_fast.infer import evaluate_elbo, evaluate_importance_nll
from dmm_fast.training import TrainConfig, load_dmm
from dmm_fast.training._folder import BEST, LAST
from tests.helpers_quality import call, two_sets


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_sets(tmp_path_factory.mktemp("data"))


# --- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("z_dim=7", 7),
        ("learning_rate=1e-3", 1e-3),
        ("weight_decay=2", 2.0),
        ("augment=both", "both"),
        ("augment=none", None),
        ("mask_input=True", True),
    ],
)
def test_settings_have_the_type_of_the_field(text, value):
    name, found = parsed(text)
    assert (name, found, type(found)) == (text.partition("=")[0], value, type(value))


@pytest.mark.parametrize(
    "text", ["z_dim", "z_dim=x", "z_dim=1.5", "mask_input=1", "seed=1", "preset=aug", "out=x", "none=1"]
)
def test_other_settings_are_refused(data, tmp_path, capsys, text):
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path, data, "--set", text)
    assert "--set: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--set", "emission=x"], "emission: expected one of"), (["--set", "z_dim=0"], "z_dim: expected")],
)
def test_settings_are_checked_before_anything_is_trained(data, tmp_path, capsys, words, told):
    with pytest.raises(SystemExit, match="2"):
        quality.main(["--data", str(data), "--work", str(tmp_path / "work"), *words])
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_check_is_an_assertion():
    # An optimising interpreter skips them.
    for path in Path(quality.__file__).parent.glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.Assert) for node in tree), path


@pytest.mark.parametrize(
    ("epochs", "words", "told"),
    [
        ("5", ["num_epochs=9"], "--epochs: expected to be absent beside --set num_epochs=9, got 5"),
        ("5", ["num_steps=9"], "--epochs: expected to be absent beside --set num_steps=9, got 5"),
        (None, ["num_epochs=5000", "num_steps=9"], "num_steps: expected None beside num_epochs 5000, got 9"),
    ],
)
def test_the_length_of_training_is_given_once(data, tmp_path, capsys, epochs, words, told):
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path, data, "--list", "--set", *words, epochs=epochs)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--particles", "--threads", "--jobs", "--epochs"])
def test_numbers_are_positive(data, tmp_path, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path, data, "--list", option, "0", epochs=None)
    assert f"argument {option}: expected a whole number from 1, got '0'" in capsys.readouterr().err


def test_data_are_checked_too(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path, tmp_path / "none.npz")
    assert "none.npz" in capsys.readouterr().err


def test_the_identity_of_a_run_leaves_out_defaults_data_and_seed():
    def chosen_with(**settings):
        return chosen(TrainConfig.from_preset("aug", **settings))

    assert chosen_with(seed=3, data="x", patience=7) == chosen_with(rnn_dim=600) == chosen_with()
    assert chosen_with(rnn_dim=6)["rnn_dim"] == 6
    assert "num_epochs" not in chosen_with(num_epochs=7)
    # The schedule of the learning rate depends on the number of epochs.
    assert chosen_with(num_epochs=7, lr_schedule="cosine")["num_epochs"] == 7


# --- evaluation -----------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(data, tmp_path):
    assert call(tmp_path, data / "other.npz", epochs="2") == 0
    (path,) = (tmp_path / "work").glob(f"*/{BEST}")
    (path.parent / "evaluation.json").unlink()
    return path


def test_the_figures_are_those_of_the_package(data, checkpoint):
    sequences, dmm = load(data / "other.npz"), load_dmm(checkpoint)
    it = Evaluation(checkpoint, sequences)
    for what, expected in (
        (BOUND, lambda: evaluate_elbo(dmm, shortest_first(sequences.test), 6)),
        (NLL, lambda: evaluate_importance_nll(dmm, shortest_first(sequences.test), 6)),
    ):
        found = it.compute(what, 6, "test")
        torch.manual_seed(evaluation.SEED)
        assert list(found) == pytest.approx(list(expected()), rel=1e-6)
        assert it.result(what, 6, "test") == it.compute(what, 6, "test")
        assert it.result(what, 6, "valid") is it.result(what, 7, "test") is None


def shortest_first(sequences):
    order = sequences.lengths.argsort(stable=True)
    return type(sequences)(sequences.sequences[order], sequences.lengths[order])


def test_an_evaluation_goes_on_where_it_was_stopped(data, checkpoint, monkeypatch):
    sequences = load(data / "other.npz")
    monkeypatch.setattr(evaluation, "ROWS", {"cpu": 64})  # a sequence at a time
    monkeypatch.setattr(evaluation, "FEWEST_DRAWS", 6)
    drawn = []
    importance_nll = evaluation.importance_nll
    monkeypatch.setattr(
        evaluation, "importance_nll", lambda *given: drawn.append(given[3]) or importance_nll(*given)
    )
    whole = Evaluation(checkpoint, sequences).compute(NLL, 6, "test")
    assert len(drawn) == 3
    assert all(chunk < 10 for chunk in drawn)
    (checkpoint.parent / "evaluation.json").unlink()
    for sessions in range(1, 4):
        answers = iter([False, True])
        found = Evaluation(checkpoint, sequences).compute(NLL, 6, "test", lambda a=answers: next(a))
        assert (found is None) == (sessions < 3)
    assert found == whole
    assert len(drawn) == 6
    # The figures of other parameters do not count.
    checkpoint.write_bytes((checkpoint.parent / LAST).read_bytes() + b"")
    (checkpoint.parent / "evaluation.json").write_text("[")
    assert Evaluation(checkpoint, sequences).result(NLL, 6, "test") is None


@pytest.mark.parametrize(
    "nats", [None, [], {"nll of test, 6 draws": ["1.0"] * 3}, {"nll of test, 6 draws": 1}]
)
def test_a_damaged_file_of_figures_is_as_good_as_none(data, checkpoint, nats):
    sequences = load(data / "other.npz")
    whole = Evaluation(checkpoint, sequences).compute(NLL, 6, "test")
    path = checkpoint.parent / "evaluation.json"
    written = json.loads(path.read_text())
    changed = {name: value for name, value in written.items() if name != "nats"}
    path.write_text(json.dumps(changed if nats is None else {**changed, "nats": nats}))
    it = Evaluation(checkpoint, sequences)
    assert it.result(NLL, 6, "test") is None
    assert it.compute(NLL, 6, "test") == whole


def test_groups_hold_each_sequence_once_and_few_steps():
    lengths = torch.tensor([5, 100, 3, 7, 7, 1, 30])
    found = list(groups(lengths, 21))
    assert sorted(torch.cat(found).tolist()) == list(range(7))
    assert [len(group) * int(lengths[group].max()) for group in found] == [15, 14, 30, 100]


# --- the journal ----------------------------------------------------------------------------------------


def test_the_journal_drops_what_is_repeated_and_keeps_the_time(tmp_path):
    it = Journal(tmp_path)
    it.add(2, 1.0, meta={"device": "one"})
    it.add(4, 2.0)
    it.add(6, 3.0)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"steps": 8, "sec')  # killed
    it = Journal(tmp_path)
    assert (it.steps, it.seconds, it.ended) == (6, 3.0, "unfinished")
    it.go_back(5)
    assert (it.steps, it.seconds) == (Journal(tmp_path).steps, Journal(tmp_path).seconds) == (4, 2.0)
    it.add(6, 2.5, meta={"device": "two"})
    it.add(8, 3.5, ended="patience", limits=[9, 2])
    it.add(8, 3.5, meta={"device": "none"}, ended="all epochs")  # nothing was left to do
    it = Journal(tmp_path)
    assert [(line["steps"], line["seconds"]) for line in it.lines] == [(2, 1.0), (4, 2.0), (6, 2.5), (8, 3.5)]
    assert [m["device"] for m in it.machines] == ["one", "two", "none"]
    assert [it.seconds_at(steps) for steps in (2, 3, 6, 9)] == [1.0, 2.0, 2.5, 3.5]
    it.add(5, 4.0)  # after a loss that was not finite
    assert [line["steps"] for line in it.lines] == [2, 4, 5]


def test_a_damaged_journal_is_refused(tmp_path):
    (tmp_path / JOURNAL).write_text('{"steps": "many", "seconds": 1}\n')
    with pytest.raises(ValueError, match="line 1: expected a JSON object with steps and seconds"):
        Journal(tmp_path)
