"""``benchmarks.run`` from the command line to the JSON file, with tiny sizes."""

import json

import pytest
import torch

from benchmarks import cases, errors, run
from benchmarks.baseline import BaselineDMM
from benchmarks.implementations import BASELINE, GPU_PEERS, GRAPHED, IMPLEMENTATIONS, OURS, PEERS
from benchmarks.memory import peak_resident
from benchmarks.pyro_stepper import PyroImplementation
from benchmarks.timing import Ratio, Samples
from dmm_fast import ops


@pytest.fixture
def no_music(monkeypatch, tmp_path):
    """Hide the environment variable and the folder beside the checkout."""
    monkeypatch.delenv(cases.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(cases, "DATA_BESIDE_THE_CHECKOUT", tmp_path / "absent.mat")


def results_in(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.usefixtures("no_music")
def test_quick_run_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "jax_peers", lambda: ((), "there is none"))
    assert run.main(["--suite", "cpu", "--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    results = results_in(tmp_path)
    assert results["suite"] == "cpu"
    meta = results["meta"]
    for name in ("commit", "device", "driver", "torch", "triton", "cuda", "python", "date", "cpu"):
        assert name in meta
    assert (meta["threads"], meta["quick"]) == (1, True)
    assert all(row["ok"] for row in results["correctness"])
    names = [row["impl"] for row in results["cases"]]
    assert names == [c.name for c in IMPLEMENTATIONS] * 2
    for row in results["cases"]:
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        # SequenceELBO keeps gradients, which the hooks of autograd do not see.
        tells = row["impl"] not in {peer.name for peer in PEERS} and "SequenceELBO" not in row["impl"]
        assert (row["extra"].get("saved_for_backward_bytes", 0) > 0) == tells
        assert row["extra"]["threads"] == 1
        assert row["extra"]["checked_on"] == [row["case"]]
        assert (row["extra"]["peak_resident_bytes"] is None) == (peak_resident(lambda: None) is None)
        assert set(row["extra"]["speed_up"]) == {"tutorial", "tutorial mended"}
        of_same_loss = row["impl"] in ("dmm_fast", "dmm_fast, SequenceELBO")
        peers = {peer.name for peer in PEERS} if of_same_loss else set()
        assert set(row["extra"]["against_peers"]) == peers
    if ops.info()["backends"]["cpp"]:
        assert {row["backend"] for row in results["errors"]} == {"cpp"}
        assert all(row["ok"] for row in results["errors"])
        assert results["errors_about"]["sizes"]["T"] == errors.QUICK.T
    else:
        assert "errors" not in results
    # Without a data file, the case is named after the built-in chorales.
    assert "JSB" not in json.dumps(results["cases"])
    assert results["cases"][-1]["case"].startswith("built-in chorales")
    printed = capsys.readouterr().out
    assert printed.startswith("JAX is skipped: there is none\n")
    assert "written: " in printed


def test_speed_ups_over_peers_are_of_the_same_loss():
    ours, analytic, in_few, analytic_in_few = OURS
    names = {c.name: Samples((4.0, 9.0)) for c in (BASELINE, *PEERS)}
    samples = names | {c.name: Samples((2.0, 3.0)) for c in OURS}
    for implementation in (ours, in_few):
        ratios = run.against_peers(implementation, samples)
        assert ratios == {peer.name: Ratio(2.5, 2.0, 3.0) for peer in PEERS}
    for implementation in (analytic, analytic_in_few):
        assert run.against_peers(implementation, samples) == {}
    assert run.against_peers(BASELINE, samples) == {}
    assert run.against_peers(ours, {ours.name: samples[ours.name]}) == {}


def test_a_replayed_step_is_compared_with_the_peers_of_a_gpu():
    samples = {c.name: Samples((4.0, 9.0)) for c in GPU_PEERS} | {GRAPHED.name: Samples((2.0, 3.0))}
    assert list(run.against_peers(GRAPHED, samples)) == [peer.name for peer in GPU_PEERS]


@pytest.mark.usefixtures("no_music")
def test_quick_scaling_end_to_end(tmp_path):
    out = ["--threads", "1", "--out", str(tmp_path)]
    assert run.main(["--suite", "cpu-scaling", "--quick", *out]) == 0
    results = results_in(tmp_path)
    assert results["errors"] == []
    axes = {axis for row in results["cases"] for axis in row["extra"]["along"]}
    assert axes == {"B", "T", "threads"}
    # Every timed case was checked in the same run, itself or by its smaller cases.
    checked = {(row["case"].rpartition(", batch")[0], row["backend"]) for row in results["correctness"]}
    for row in results["cases"]:
        assert {(case, row["impl"]) for case in row["extra"]["checked_on"]} <= checked
    (skipped,) = results["not_run"]
    assert skipped["impl"] == "tutorial"
    mine = [row for row in results["cases"] if row["case"] == skipped["case"]]
    assert [row["impl"] for row in mine] == ["tutorial mended", "PyTorch, hand-written backward", "dmm_fast"]
    assert all(set(row["extra"]["speed_up"]) == {"tutorial mended"} for row in mine)


@pytest.mark.usefixtures("no_music")
def test_an_op_beyond_its_bound_fails_the_run(tmp_path, monkeypatch, capsys):
    bad = errors.ErrorRow("rnn_scan: value", "cpp", "B=3, T=5, full", 1e-3, 1e-6, False, 1e-7)
    monkeypatch.setattr(errors, "measure", lambda *args: [bad])
    assert run.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 1
    results = results_in(tmp_path)
    assert results["errors"] == [bad.as_dict()]
    assert all(row["ok"] for row in results["correctness"])
    assert "BAD rnn_scan: value" in capsys.readouterr().out


def test_without_the_backend_errors_are_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(errors, "measure", lambda *args: [])
    assert run.measure_errors(("cpp",), torch.device("cpu"), errors.QUICK) == {}
    assert "not measured, cpp computes none here" in capsys.readouterr().err


@pytest.mark.usefixtures("no_music")
def test_a_wrong_implementation_is_not_timed(tmp_path, monkeypatch, capsys):
    class Wrong(BaselineDMM):
        def model(self, *args):
            super().model(*args[:4], 1.0)

    wrong = PyroImplementation("wrong", lambda sizes: Wrong(**sizes), BASELINE.optimizer)
    monkeypatch.setattr(run, "IMPLEMENTATIONS", (*IMPLEMENTATIONS[:2], wrong))
    assert run.main(["--quick", "--threads", "1", "--out", str(tmp_path)]) == 1
    results = results_in(tmp_path)
    assert results["cases"] == []
    assert {row["backend"] for row in results["correctness"] if not row["ok"]} == {"wrong"}
    printed = capsys.readouterr()
    assert "not timed" in printed.err
    assert "times faster" not in printed.out


def test_never_overwrites_an_old_file(tmp_path):
    results = {"suite": "cpu", "meta": {"date": "2026-01-02T03:04:05+00:00", "commit": "abc"}}
    path = run.write(results, tmp_path / "new")
    assert path.name == "cpu-20260102T030405-abc.json"
    with pytest.raises(FileExistsError):
        run.write(results, tmp_path / "new")


@pytest.mark.usefixtures("no_music")
def test_data_file_is_searched_in_order(tmp_path, monkeypatch):
    assert cases.data_file(None) is None
    beside = tmp_path / "beside.mat"
    beside.touch()
    monkeypatch.setattr(cases, "DATA_BESIDE_THE_CHECKOUT", beside)
    assert cases.data_file(None) == beside
    named = tmp_path / cases.JSB_FILE
    named.touch()
    monkeypatch.setenv(cases.DATA_VARIABLE, str(tmp_path))
    assert cases.data_file(None) == named
    asked = tmp_path / "asked.mat"
    asked.touch()
    assert cases.data_file(asked) == asked
    # A missing file is an error, not a reason to use other data.
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        cases.data_file(tmp_path / "absent.npz")
    named.unlink()
    with pytest.raises(FileNotFoundError, match=cases.JSB_FILE):
        cases.data_file(None)


def test_an_epoch_has_every_chorale_once():
    epoch = cases.jsb_epoch(None, rounds=1, quick=False)
    assert [len(b.mini_batch) for b in epoch.batches] == [20] * 11 + [9]
    assert epoch.checked == (0, 11)
    described = epoch.describe()
    assert described["svi_steps"] == 12
    assert 0.3 < described["valid_fraction"] < 1
    lengths = torch.cat([b.mini_batch_seq_lengths for b in epoch.batches])
    assert described["time_steps"] == int(lengths.sum())
