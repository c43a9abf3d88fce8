"""Measured plans of the scans: a JSON file of timings on one device.

``{"device": name, "plans": [{"scan", "rows", "units", "latents", "tf32", "plan", "us_per_step"}, ..]}``.
``rows`` is the number P B of sequences, ``latents`` is null for rnn_scan, ``tf32`` is true if tensor cores
were allowed, the optional ``bf16`` is true if bf16 was allowed, and ``plan`` is the list of integers that the
compiled op takes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dmm_fast._io import atomic_write
from dmm_fast.check import describe, fail

SCANS = ("rnn_scan", "rnn_scan_backward", "combiner_scan", "combiner_scan_backward")
_MOST_BYTES = 1 << 20
# Lengths of the plan lists of each kind of kernel. rnn_scan: outputs by warps, with exchange in clusters or
# through device memory; bf16; any size. combiner_scan: tensor cores; lane tiles, likewise; any size.
_NUMBERS = {"rnn_scan": (6, 7, 8, 11), "combiner_scan": (10, 11, 12, 19)}
_KEYS = ("scan", "rows", "units", "latents", "tf32", "bf16", "plan", "us_per_step")


class Case(NamedTuple):
    """A scan with the sizes on which its plan depends."""

    scan: str
    rows: int
    units: int
    latents: int | None = None
    tf32: bool = False
    bf16: bool = False


class Measurement(NamedTuple):
    """The measured time of a scan with a plan."""

    case: Case
    plan: tuple[int, ...]
    us_per_step: float


class Measurements(NamedTuple):
    """The contents of a file of measurements."""

    device: str
    plans: tuple[Measurement, ...]

    def fastest(self, device: str, case: Case) -> Measurement | None:
        """The fastest plan for exactly these sizes on a device of this name; None if none was measured."""
        timed = [each for each in self.plans if each.case == case and device == self.device]
        return min(timed, key=lambda each: each.us_per_step, default=None)


def read(path: Path) -> Measurements:
    """Read a file and check its contents.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a valid file of measured plans.
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
    """Add measurements to a file, which is created if missing; they replace earlier ones of the same plans.

    Raises:
        ValueError: the file has measurements of another device, or is not a file of measured plans.
    """
    before = read(path) if path.exists() else Measurements(device, ())
    if before.device != device:
        fail(f"{path}: device", device, before.device)
    latest = {(each.case, each.plan): each for each in (*before.plans, *timed)}
    rows = (
        {**each.case._asdict(), "plan": each.plan, "us_per_step": each.us_per_step}
        for each in latest.values()
    )
    lines = ",\n".join(map(json.dumps, rows))  # one line per plan
    with atomic_write(path) as file:
        file.write(f'{{"device": {json.dumps(device)}, "plans": [\n{lines}\n]}}\n'.encode())


def _measurement(name: str, value: object) -> Measurement:
    row = _object(name, {"bf16": False, **value} if isinstance(value, dict) else value, _KEYS)
    scan, latents, tf32, plan, us = (row[key] for key in ("scan", "latents", "tf32", "plan", "us_per_step"))
    if scan not in SCANS:
        fail(f"{name}.scan", f"one of {', '.join(SCANS)}", describe(scan))
    is_rnn = scan.startswith("rnn")
    for key in ("rows", "units") if is_rnn else ("rows", "units", "latents"):
        if not _is_count(row[key], 1):
            fail(f"{name}.{key}", "a whole number from 1", describe(row[key]))
    if is_rnn and latents is not None:
        fail(f"{name}.latents", f"null for {scan}", describe(latents))
    if not isinstance(tf32, bool):
        fail(f"{name}.tf32", "true or false", describe(tf32))
    in_bf16 = is_rnn and tf32
    if not isinstance(row["bf16"], bool) or (row["bf16"] and not in_bf16):
        expected = "true or false" if in_bf16 else "false for combiner_scan and without tf32"
        fail(f"{name}.bf16", expected, describe(row["bf16"]))
    numbers = _NUMBERS["rnn_scan" if is_rnn else "combiner_scan"]
    if not isinstance(plan, list) or len(plan) not in numbers or not all(_is_count(n, 0) for n in plan):
        expected = f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]} whole numbers from 0"
        fail(f"{name}.plan", expected, describe(plan))
    if not isinstance(us, int | float) or isinstance(us, bool) or not 0 < us < 1e9:
        fail(f"{name}.us_per_step", "a number of microseconds above 0", describe(us))
    return Measurement(
        Case(scan, row["rows"], row["units"], latents, tf32, row["bf16"]), tuple(plan), float(us)
    )


def _object(name: str, value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        fail(name, f"an object with {', '.join(keys)}", describe(value))
    return value


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 2**31
