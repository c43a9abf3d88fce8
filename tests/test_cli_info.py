"""The command ``dmm-fast info``: backends, plans of the scans on a GPU, and their paths."""

import json
from pathlib import Path

import pytest
import torch

from dmm_fast import _commands, _extension
from dmm_fast.cli import main
from dmm_fast.cuda.devices import H100, KNOWN
from dmm_fast.cuda.measured import Case, Measurement, add
from dmm_fast.cuda.paths import LAST_RESORT, SCANS, path
from dmm_fast.cuda.plan import rnn_plans, scan_plans
from tests.test_cli import complaint

PLAN = ["info", "--plan", "20", "129", "600", "100"]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__


def test_info_shows_the_plans_of_the_scans(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--plan", "20", "129", "600", "100"]) == 0
    said = capsys.readouterr().out
    for scan, plan in scan_plans(20, 600, 100).items():
        assert f"{scan:28}{plan}" in said
    assert main(["info", "--plan", "20", "129", "600", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exchanges_one_after_another"] == 4 * 129


def test_info_makes_no_plans_without_the_compiled_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_extension, "missing", "left out on purpose")
    message = complaint(capsys, "info", "--plan", "20", "129", "600", "100")
    assert (
        "--plan: expected the compiled library, which lists the kernels, got left out on purpose" in message
    )


def test_info_shows_which_plans_were_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sizes = tmp_path / "measured.json", ["20", "129", "600", "100"]
    plan = next(plan for plan in rnn_plans(20, 600) if plan[:3] == (2, 1, 8))
    timed = Measurement(Case("rnn_scan", 20, 600), tuple(plan.numbers), 1.234)
    add(path, H100.name, [timed])
    assert main(["info", "--plan", *sizes, "--measured", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    reasons = facts["chosen_by"]
    assert reasons.pop("rnn_scan") == f"measurement on {H100.name}, 1.23 us per step"
    assert set(reasons.values()) == {"estimate: the measured plans are for other sizes"}
    assert facts["plans"]["rnn_scan"] == str(plan)
    assert main(["info", "--plan", *sizes, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen_by"]["rnn_scan"] == "estimate"
    path.write_text(path.read_text().replace(H100.name, "another GPU"))
    assert main(["info", "--plan", *sizes, "--measured", str(path), "--json"]) == 0
    reason = f"estimate: the measured plans are for another GPU, not for {H100.name}"
    assert set(json.loads(capsys.readouterr().out)["chosen_by"].values()) == {reason}
    path.write_text("{}")
    message = complaint(capsys, "info", "--plan", *sizes, "--measured", str(path))
    assert "measured.json: expected an object with device, plans, got dict {}" in message


@pytest.mark.parametrize("name", ["a100", "RTX4090", "b200"])
def test_info_plans_for_another_gpu(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--gpu", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    device = KNOWN[name.lower()]
    plans = scan_plans(20, 600, 100, device)
    assert facts["device"] == device.name
    assert facts["limits"]["multiprocessors"] == device.multiprocessors
    for scan, plan in plans.items():
        assert facts["plans"][scan] == str(plan)
        assert facts["paths"][scan] == path(scan, 20, 600, 100, device)
        assert facts["estimated_us_per_step"][scan] == pytest.approx(device.us(plan.step_cycles), abs=0.005)
    assert main([*PLAN, "--gpu", name]) == 0
    assert f"{'  rnn_scan':30}{path('rnn_scan', 20, 600, 100, device)}" in capsys.readouterr().out


def test_info_reports_if_no_plan_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--plan", "20", "129", "40000", "100", "--gpu", "l4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["plans"]["rnn_scan"] is None
    assert "triton" in facts["paths"]["rnn_scan"]
    assert "because no plan fits: rnn_scan with H = 40000" in facts["paths"]["rnn_scan"]
    assert facts["estimated_us_per_step"] == {}


def test_info_shows_the_path_of_the_scans(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scans() -> dict[str, str]:
        assert main(["info", "--json"]) == 0
        found: dict[str, str] = json.loads(capsys.readouterr().out)["scans"]
        return found

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scans() == {"on a GPU": "no GPU is available; --plan B T H Z --gpu NAME plans for another one"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(_commands.devices, "cuda_device", lambda index: KNOWN["rtx3090"])
    ways = {scan: path(scan, 20, 600, 100, KNOWN["rtx3090"]) for scan in SCANS}
    assert scans() == ways | {"last resort": LAST_RESORT}
    monkeypatch.setattr(_extension, "cuda_architectures", lambda: "")
    why = "triton: because the library was built without CUDA kernels"
    assert scans() == dict.fromkeys(SCANS, why) | {"last resort": LAST_RESORT}
