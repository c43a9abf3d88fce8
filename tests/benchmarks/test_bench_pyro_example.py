"""The runner of Pyro's example, tested with a small script of the same structure."""

import argparse
import logging
import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import pyro_example
from benchmarks.baseline import BaselineDMM
from dmm_fast.data import Dataset, SequenceSet, save_npz

SCRIPT = """
import logging

import pyro.contrib.examples.polyphonic_data_loader as poly
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam

from benchmarks.baseline import BaselineDMM


class DMM(BaselineDMM):
    def __init__(self, **options):
        super().__init__(z_dim=4, emission_dim=4, transition_dim=4, rnn_dim=8, mended=True)


def main(args):
    logging.basicConfig(level=logging.DEBUG, filename=args.log, filemode="w")
    train = poly.load_data(poly.JSB_CHORALES)["train"]
    dmm = DMM(use_cuda=args.cuda)
    svi = SVI(dmm.model, dmm.guide, ClippedAdam({"lr": args.learning_rate}), Trace_ELBO())
    for _ in range(args.num_epochs):
        order = torch.randperm(len(train["sequences"]))
        lengths = train["sequence_lengths"]
        batch = poly.get_mini_batch(order, train["sequences"], lengths, cuda=args.cuda)
        logging.info(svi.step(*batch, args.minimum_annealing_factor))
        svi.evaluate_loss(*batch)
"""


class Small(BaselineDMM):
    def __init__(self, **options):
        super().__init__(z_dim=4, emission_dim=4, transition_dim=4, rnn_dim=8)


class Different(Small):
    def guide(self, *args):
        super().guide(*args[:4], 1.0)


@pytest.fixture
def files(tmp_path) -> list[str]:
    script = tmp_path / "dmm.py"
    script.write_text(SCRIPT)
    lengths = torch.tensor([3, 5, 2, 4])
    rolls = (torch.rand(4, 5, 88) < 0.1).float()
    rolls *= (torch.arange(5) < lengths.unsqueeze(1)).unsqueeze(-1)
    split = SequenceSet(rolls, lengths)
    save_npz(Dataset("tiny", split, split, split), tmp_path / "tiny.npz")
    return ["--example", str(script), "--data", str(tmp_path / "tiny.npz"), "--num-epochs", "3"]


def test_the_same_model_gives_the_same_losses(files, monkeypatch, capsys):
    monkeypatch.setitem(pyro_example.REPLACEMENTS, "dmm_fast", Small)
    handlers = logging.getLogger().handlers[:]
    assert pyro_example.main(files) == 0
    out = capsys.readouterr().out
    assert "largest of the first 3" in out
    assert "times faster" in out
    assert logging.getLogger().handlers == handlers


def test_another_model_is_detected(files, monkeypatch, capsys):
    monkeypatch.setitem(pyro_example.REPLACEMENTS, "dmm_fast", Different)
    assert pyro_example.main([*files, "--steps", "2"]) == 1
    assert "largest of the first 2" in capsys.readouterr().out


def test_loader_is_imported_without_its_side_effects(monkeypatch):
    for name in (pyro_example.LOADER, "pyro.contrib.examples.util"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    loader = pyro_example.import_loader()
    assert pyro_example.import_loader() is loader
    assert hasattr(loader, "get_mini_batch")
    # The folder it would have made beside itself was a temporary one.
    assert not Path(loader.base_path).is_relative_to(Path(loader.__file__).parent)
    assert not Path(loader.base_path).exists()
    stand_in = sys.modules.get("torchvision")
    assert stand_in is None or stand_in.__spec__ is not None


def test_data_have_the_structure_of_the_loader(files):
    data = pyro_example.as_pyro_has_it(Path(files[3]))
    assert list(data) == ["train", "valid", "test"]
    assert data["train"]["sequences"].shape == (4, 5, 88)
    assert data["train"]["sequences"].dtype == torch.float32
    assert data["test"]["sequence_lengths"].tolist() == [3, 5, 2, 4]


def test_relative_differences():
    assert pyro_example.relative_differences([2.0, -4.0], [2.5, -4.0]) == [0.25, 0.0]
    assert pyro_example.relative_differences([2.0], [math.nan]) == [math.inf]
    with pytest.raises(ValueError, match="got 2 and 1"):
        pyro_example.relative_differences([1.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="got 0 and 0"):
        pyro_example.relative_differences([], [])


def test_files_other_than_the_example_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected Pyro's examples"):
        pyro_example.import_example(tmp_path / "absent.py")
    other = tmp_path / "other.py"
    other.write_text("DMM = SVI = None\n")
    with pytest.raises(ValueError, match="without main"):
        pyro_example.import_example(other)


def test_options_have_every_name_the_example_reads(tmp_path):
    asked = argparse.Namespace(num_epochs=2, mini_batch_size=5, num_iafs=0)
    options = pyro_example.example_options(asked, tmp_path / "log")
    assert (options.num_epochs, options.mini_batch_size, options.log) == (
        2,
        5,
        str(tmp_path / "log"),
    )
