"""The stages one after another, each a process that may fail or hang without harm to the others.

Nothing here imports torch: where that fails, it is the error of a stage like any other.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import LISTS, Record, Row, of_kind, read

ROOT = Path(__file__).resolve().parents[2]

# The most seconds that each stage may take where there is time for all of them. Where there is not, a stage
# has the same share of what is left as it has of these; what it leaves over goes to those after it.
STAGES = {
    "machine": 25,
    "build": 150,
    "kernels": 90,
    "tests": 220,
    "sanitizer": 100,
    "errors": 45,
    "derivatives": 30,
    "ceilings": 20,
    "rowwise": 100,
    "scans": 110,
    "steps": 240,
    "quality": 200,
    "profile": 30,
}

# The stage that says where and with what; in a run after another it comes again, and has to say the same.
MACHINE = "machine"
SAME = ("commit", "device", "driver", "torch", "quick")
# A stage ends with this when a unit has hung or broken the device: it is started again after that unit.
START_AGAIN = 75
# Beyond its limit a stage may take this long to notice itself.
GRACE = 5.0
# What a stage can do in less is not worth its start.
LEAST = 3.0


@dataclass(frozen=True)
class Options:
    """What all stages are run with."""

    out: Path
    device: str = "cuda"
    quick: bool = False
    keep_build: bool = False
    commit: str | None = None
    data: Path | None = None
    after: Path | None = None

    @property
    def results(self) -> Path:
        """Where everything is collected."""
        return self.out / "results.json"

    @property
    def log(self) -> Path:
        """What the stages print, in their order."""
        return self.out / "stages.log"


def share(name: str, names: list[str], left: float) -> float:
    """How many of the seconds that are left ``name`` may take when it is the next of ``names``."""
    wanted = sum(STAGES[later] for later in names[names.index(name) :])
    return STAGES[name] * min(1.0, left / wanted)


def run_stages(names: list[str], budget: float, options: Options) -> dict[str, Any]:
    """Run the stages in their order and return the results, which are on the disk after each.

    With ``options.after`` they are added to that run's.

    Raises:
        FileExistsError: the folder holds results already.
        ValueError: the earlier run has had one of these stages, whose rows would be there twice, or was of
            another commit, device, driver or torch.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    if options.results.exists():
        raise FileExistsError(f"out: expected a folder without results.json, got {options.out}")
    results = earlier(options.after)
    done = {stage["name"] for stage in results["stages"]}
    ordered = [name for name in STAGES if name in names]
    twice = done.intersection(ordered) - {MACHINE}
    if twice:
        raise ValueError(f"after: expected a run without {', '.join(sorted(twice))}, got one with it")
    end = time.monotonic() + budget
    for name in ordered:
        limit = share(name, ordered, end - time.monotonic())
        print(f"{name}: up to {limit:.0f} s", flush=True)
        rows, stage = run_stage(name, limit, options)
        merge(results, rows, stage)
        write(results, options.results)
        print(f"  {'ok' if stage['ok'] else 'FAILED'} in {stage['seconds']:.0f} s", flush=True)
        if stage["error"]:
            print("    " + stage["error"].replace("\n", "\n    "), flush=True)
    return results


def earlier(after: Path | None) -> dict[str, Any]:
    """The results to add to: those of the file, or none yet."""
    if after is None:
        return {"suite": "gpu", "meta": {}, **{kind: [] for kind in LISTS}, "stages": []}
    results: dict[str, Any] = json.loads(after.read_text(encoding="utf-8"))
    return results


def run_stage(name: str, limit: float, options: Options) -> tuple[list[Row], Row]:
    """What the stage found, and its own row; it is started anew after a unit that took it down."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        while True:
            left = limit - (time.monotonic() - start)
            done = len(of_kind(read(path), "unit"))
            if left < LEAST:
                ended: str | None = f"no time left, {done} units done"
                break
            ended = _run_process(_command(name, left, done, path, options), left + GRACE, options)
            if ended is None or not _can_go_on(path, done, ended):
                break
        rows = read(path)
    return rows, summary(name, rows, ended, time.monotonic() - start)


def _can_go_on(path: Path, done: int, ended: str) -> bool:
    """Whether a process that ended so has left the stage to another, further than the ``done`` units before.

    One that a signal has ended, a fault of a kernel, say, could not write that its unit failed.
    """
    rows = read(path)
    begun, finished = (of_kind(rows, kind) for kind in ("begun", "unit"))
    if ended.startswith("exit status -") and len(begun) > len(finished):
        Record(path).unit(begun[-1]["unit"], 0.0, ended)
        return True
    return ended.startswith(f"exit status {START_AGAIN}") and len(finished) > done


def summary(name: str, rows: list[Row], ended: str | None, seconds: float) -> Row:
    """The stage's row: it is ok where every unit ended well and everything compared was within its bound."""
    failures = [unit for unit in of_kind(rows, "unit") if unit["error"]]
    bad = [row for row in of_kind(rows, "correctness") if not row["ok"]]
    errors = [ended] if ended else []
    errors += [f"{unit['unit']}: {unit['error'].splitlines()[-1]}" for unit in failures[:3]]
    errors += [f"and {len(failures) - 3} more units"] if len(failures) > 3 else []
    if bad:
        errors.append(f"{len(bad)} beyond their bound, the first {bad[0]['op']} of {bad[0]['backend']}")
    return {
        "name": name,
        "ok": not errors,
        "seconds": round(seconds, 2),
        "error": "\n".join(errors) or None,
        "failures": failures,
        "detail": {key: value for row in of_kind(rows, "detail") for key, value in row.items()},
    }


def merge(results: dict[str, Any], rows: list[Row], stage: Row) -> None:
    """Add a stage to the results, in place of the same of an earlier run."""
    for kind in LISTS:
        results[kind] += of_kind(rows, kind)
    for row in of_kind(rows, "meta"):
        for name in SAME:
            then, now = results["meta"].get(name, row.get(name)), row.get(name)
            if then != now:
                raise ValueError(f"after: expected a run with {name} {now}, as now, got one with {then}")
        results["meta"] |= row
    results["stages"] = [other for other in results["stages"] if other["name"] != stage["name"]]
    results["stages"].append(stage)


def write(results: dict[str, Any], path: Path) -> None:
    """In one go: a reader never sees half of it."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def _command(name: str, left: float, skip: int, path: Path, options: Options) -> list[str]:
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.stage", name]
    command += ["--rows", str(path), "--out", str(options.out.resolve()), "--device", options.device]
    command += ["--seconds", f"{left:.1f}", "--skip", str(skip)]
    command += ["--quick"] * options.quick + ["--keep-build"] * options.keep_build
    command += ["--data", str(options.data.resolve())] if options.data else []
    return command + (["--commit", options.commit] if options.commit else [])


def _run_process(command: list[str], limit: float, options: Options) -> str | None:
    """Run to the end or the limit, with everything it starts. None, or how it ended and its last words."""
    with options.log.open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a child may have outlived it
        process.wait()
    if status == 0:
        return None
    ended = f"no end within {limit:.0f} s" if status is None else f"exit status {status}"
    return "\n".join([ended, *_tail(options.log, begin)])


def _tail(path: Path, begin: int, lines: int = 8) -> list[str]:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace").splitlines()[-lines:]
