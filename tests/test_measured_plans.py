"""Measured plans: their files and their choice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmm_fast.cuda import measured
from dmm_fast.cuda.devices import H100, KNOWN
from dmm_fast.cuda.measured import Case, Measurement
from dmm_fast.cuda.plan import (
    Plan,
    combiner_plan,
    combiner_plans,
    rnn_plan,
    rnn_plans,
    scan_plans,
    use_measured,
)

TUTORIAL = (20, 600, 100)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "measured.json"
    use_measured(None)


def timed(scan: str, choose: Callable[[Plan], bool], us: float) -> Measurement:
    """A measurement of the default plan at the tutorial's size."""
    backward = scan.endswith("_backward")
    if scan.startswith("rnn"):
        case, plans = Case(scan, 20, 600), rnn_plans(20, 600, backward=backward)
    else:
        case, plans = Case(scan, *TUTORIAL), combiner_plans(*TUTORIAL, backward=backward)
    fitting = (plan for plan in plans if plan.shared_bytes <= H100.shared_bytes and choose(plan))
    return Measurement(case, tuple(next(fitting).numbers), us)


def of(*shape: int) -> Callable[[Plan], bool]:
    return lambda plan: plan[:3] == shape


def all_scans() -> list[Measurement]:
    shapes = [(1.5, (4, 2, 8)), (1.25, (2, 1, 4)), (1.75, (3, 3, 16))]
    return [timed(scan, of(*shape), us) for scan in measured.SCANS for us, shape in shapes]


def test_measurements_are_read_back_unchanged(path: Path) -> None:
    first, *rest = all_scans()
    measured.add(path, H100.name, [first])
    measured.add(path, H100.name, rest)
    assert measured.read(path) == (H100.name, (first, *rest))
    faster = first._replace(us_per_step=0.5)
    measured.add(path, H100.name, [faster])
    assert measured.read(path).plans == (faster, *rest)
    with pytest.raises(ValueError, match=r"measured.json: device: expected another GPU, got NVIDIA H100"):
        measured.add(path, "another GPU", [first])


def test_the_fastest_measured_plan_is_chosen_and_forgotten(path: Path) -> None:
    estimated = scan_plans(*TUTORIAL)
    assert all(plan.us_per_step is None for plan in estimated.values())
    measured.add(path, H100.name, all_scans())
    use_measured(path)
    for plan in scan_plans(*TUTORIAL).values():
        assert (plan[:3], plan.us_per_step) == ((2, 1, 4), 1.25)
        assert plan.clusters == 10
    use_measured(None)
    assert scan_plans(*TUTORIAL) == estimated


@pytest.mark.parametrize(
    "plan_of",
    [
        lambda: rnn_plan(19, 600),
        lambda: rnn_plan(20, 601),
        lambda: rnn_plan(20, 600, tf32=True),
        lambda: rnn_plan(20, 600, tf32=True, bf16=True),
        lambda: rnn_plan(20, 600, H100._replace(name="another GPU")),
        lambda: rnn_plan(20, 600, KNOWN["a100"]),
        lambda: rnn_plan(20, 600, backward=True),
        lambda: combiner_plan(20, 600, 99),
    ],
)
def test_everything_else_is_estimated(plan_of: Callable[[], Plan], path: Path) -> None:
    measured.add(path, H100.name, [each for each in all_scans() if each.case.scan != "rnn_scan_backward"])
    estimated = plan_of()
    use_measured(path)
    assert plan_of() == estimated
    assert plan_of().us_per_step is None


def test_a_measured_plan_that_cannot_run_is_refused(path: Path) -> None:
    mine = timed("rnn_scan", lambda plan: of(3, 3, 16)(plan) and plan.tilings[0].in_registers == 8, 1.0)
    measured.add(path, H100.name, [mine])
    use_measured(path)
    for device in (
        H100._replace(clusters=(132, 66, 33, 15, 0)),
        H100._replace(shared_bytes=35_000),
    ):
        with pytest.raises(
            ValueError,
            match=r"^measured plan of rnn_scan, 20 rows, H = 600: expected one that fits the device",
        ):
            rnn_plan(20, 600, device)
    registers = 8  # the index of the tiling's in_registers in the list
    no_kernel = mine._replace(plan=(*mine.plan[:registers], 5, *mine.plan[registers + 1 :]), us_per_step=0.5)
    measured.add(path, H100.name, [no_kernel])
    use_measured(path)
    with pytest.raises(ValueError, match=r"and has a kernel, got \[3, 3, 16, 600, 38, 10, 19, 8, 5"):
        rnn_plan(20, 600)


ABSENT = object()


def a_file(**changes: Any) -> dict[str, Any]:
    """A valid file of one plan with changed fields; ``ABSENT`` removes one."""
    row = {
        "scan": "combiner_scan",
        "rows": 20,
        "units": 600,
        "latents": 100,
        "tf32": False,
        "plan": [1] * 19,
        "us_per_step": 2.5,
    }
    row = {key: value for key, value in (row | changes).items() if value is not ABSENT}
    return {"device": "a GPU", "plans": [row]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": expected a JSON file, got Expecting value"),
        ("\0\xff", ": expected a JSON file"),
        ("[" * 100_000, ": expected a JSON file"),
        ("1" * 5000, ": expected a JSON file"),
        (" " * (1 << 20) + "{}", ": expected at most 1048576 bytes, got more"),
        ([], ": expected an object with device, plans, got list"),
        ({"device": "a GPU"}, ": expected an object with device, plans, got dict"),
        ({"device": "", "plans": []}, ": device: expected the name of a GPU, got str ''"),
        ({"device": 1, "plans": []}, ": device: expected the name of a GPU, got int 1"),
        ({"device": "a GPU", "plans": {}}, ": plans: expected a list, got dict"),
        ({"device": "a GPU", "plans": [1]}, r": plans\[0\]: expected an object with scan, .*, got int 1"),
        (a_file(rows=ABSENT), r": plans\[0\]: expected an object with scan"),
        (a_file(more=1), r": plans\[0\]: expected an object with scan"),
        (a_file(scan="rnn"), r"\.scan: expected one of rnn_scan, rnn_scan_backward, .*, got str 'rnn'"),
        (a_file(scan=[]), r"\.scan: expected one of"),
        (a_file(rows=0), r"\.rows: expected a whole number from 1, got int 0"),
        (a_file(rows=True), r"\.rows: expected a whole number"),
        (a_file(units=600.0), r"\.units: expected a whole number"),
        (a_file(units=10**30), r"\.units: expected a whole number"),
        (a_file(latents=None), r"\.latents: expected a whole number from 1, got NoneType None"),
        (a_file(scan="rnn_scan", plan=[1] * 11), r"\.latents: expected null for rnn_scan, got int 100"),
        (a_file(tf32=0), r"\.tf32: expected true or false, got int 0"),
        (a_file(scan="rnn_scan", latents=None, tf32="no"), r"\.tf32: expected true or false, got str 'no'"),
        (a_file(bf16=True), r"\.bf16: expected false for combiner_scan and without tf32, got bool True"),
        (a_file(tf32=True, bf16=True), r"\.bf16: expected false for combiner_scan and without tf32, got"),
        (a_file(scan="rnn_scan", latents=None, tf32=True, bf16=1), r"\.bf16: expected true or false, got"),
        (a_file(plan=[1] * 13), r"\.plan: expected 10, 11, 12 or 19 whole numbers from 0, got list"),
        (a_file(scan="rnn_scan", latents=None, plan=[1] * 10), r"\.plan: expected 6, 7, 8 or 11 whole"),
        (a_file(plan=[1] * 18 + [-1]), r"\.plan: expected 10, 11, 12 or 19 whole numbers"),
        (a_file(plan=None), r"\.plan: expected 10, 11, 12 or 19 whole numbers"),
        (a_file(us_per_step=0), r"\.us_per_step: expected a number of microseconds above 0, got int 0"),
        (a_file(us_per_step=float("nan")), r"\.us_per_step: expected .*, got float nan"),
        (a_file(us_per_step=float("inf")), r"\.us_per_step: expected .*, got float inf"),
        (a_file(us_per_step=10**400), r"\.us_per_step: expected"),
        (a_file(us_per_step="fast"), r"\.us_per_step: expected"),
    ],
)
def test_malformed_files_are_refused(content: Any, message: str, path: Path) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"measured\.json.*{message}"):
        use_measured(path)


def test_a_valid_file_is_accepted_and_a_missing_one_refused(path: Path) -> None:
    path.write_text(json.dumps(a_file()))
    assert measured.read(path).plans == (Measurement(Case("combiner_scan", *TUTORIAL), (1,) * 19, 2.5),)
    with pytest.raises(FileNotFoundError):
        use_measured(path.with_name("none"))
