"""Plans of the scans that were timed on a GPU: a JSON file of one device.

``{"device": name, "plans": [{"scan", "rows", "units", "latents", "tf32", "plan", "us_per_step"}, ..]}``.
``rows`` are P B sequences, ``latents`` is null for rnn_scan, ``tf32`` says whether tensor cores were allowed,
and ``plan`` is the list of numbers that the compiled op takes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dmm_fast._io import atomic_write
from dmm_fast.check import describe, fail

SCANS = ("rnn_scan", "rnn_scan_backward", "combiner_scan", "combiner_scan_backward")
_MOST_BYTES = 1 << 20
_KEYS = ("scan", "rows", "units", "latents", "tf32", "plan", "us_per_step")


class Case(NamedTuple):
    """A scan and the sizes on which its plan depends."""

    scan: str
    rows: int
    units: int
    latents: int | None = None
    tf32: bool = False


class Measurement(NamedTuple):
    """The time that a scan took with a plan."""

    case: Case
    plan: tuple[int, ...]
    us_per_step: float


class Measurements(NamedTuple):
    """The content of a file."""

    device: str
    plans: tuple[Measurement, ...]

    def fastest(self, device: str, case: Case) -> Measurement | None:
        """The fastest plan for exactly these sizes on a device of that name; None where none was timed."""
        timed = [each for each in self.plans if each.case == case and device == self.device]
        return min(timed, key=lambda each: each.us_per_step, default=None)


def read(path: Path) -> Measurements:
    """Read a file and check all of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a file of measured plans.
    """
    name = str(path)
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        fail(name, f"at most {_MOST_BYTES} bytes", "more")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        fail(name, "a JSON file", str(error))
    found = _object(name, found, ("device", "plans"))
    if not isinstance(found["device"], str) or not found["device"]:
        fail(f"{name}: device", "the name of a GPU", describe(found["device"]))
    if not isinstance(found["plans"], list):
        fail(f"{name}: plans", "a list", describe(found["plans"]))
    plans = (_measurement(f"{name}: plans[{i}]", each) for i, each in enumerate(found["plans"]))
    return Measurements(found["device"], tuple(plans))


def add(path: Path, device: str, timed: Iterable[Measurement]) -> None:
    """Add measurements to a file, or begin one; a later measurement replaces an earlier one of the same plan.

    Raises:
        ValueError: the file is of another device, or not a file of measured plans.
    """
    before = read(path) if path.exists() else Measurements(device, ())
    if before.device != device:
        fail(f"{path}: device", device, before.device)
    latest = {(each.case, each.plan): each for each in (*before.plans, *timed)}
    rows = (
        {**each.case._asdict(), "plan": each.plan, "us_per_step": each.us_per_step}
        for each in latest.values()
    )
    lines = ",\n".join(map(json.dumps, rows))  # a line for each plan
    with atomic_write(path) as file:
        file.write(f'{{"device": {json.dumps(device)}, "plans": [\n{lines}\n]}}\n'.encode())


def _measurement(name: str, value: object) -> Measurement:
    row = _object(name, value, _KEYS)
    scan, latents, tf32, plan, us = (row[key] for key in ("scan", "latents", "tf32", "plan", "us_per_step"))
    if scan not in SCANS:
        fail(f"{name}.scan", f"one of {', '.join(SCANS)}", describe(scan))
    is_rnn = scan.startswith("rnn")
    for key in ("rows", "units") if is_rnn else ("rows", "units", "latents"):
        if not _is_count(row[key], 1):
            fail(f"{name}.{key}", "a whole number from 1", describe(row[key]))
    if is_rnn and latents is not None:
        fail(f"{name}.latents", f"null for {scan}", describe(latents))
    if not isinstance(tf32, bool) or (tf32 and not is_rnn):
        fail(f"{name}.tf32", "true or false" if is_rnn else f"false for {scan}", describe(tf32))
    numbers = (6, 11) if is_rnn else (11, 19)  # of the scans whose weights stay in registers, or of any size
    if not isinstance(plan, list) or len(plan) not in numbers or not all(_is_count(n, 0) for n in plan):
        fail(f"{name}.plan", f"{' or '.join(map(str, numbers))} whole numbers from 0", describe(plan))
    if not isinstance(us, int | float) or isinstance(us, bool) or not 0 < us < 1e9:
        fail(f"{name}.us_per_step", "a number of microseconds above 0", describe(us))
    return Measurement(Case(scan, row["rows"], row["units"], latents, tf32), tuple(plan), float(us))


def _object(name: str, value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        fail(name, f"an object with {', '.join(keys)}", describe(value))
    return value


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 2**31
