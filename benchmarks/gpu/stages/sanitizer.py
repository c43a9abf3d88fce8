"""compute-sanitizer over a short list of calls of every op: wrong memory, races, wrong barriers."""

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.commands import LAST_WORDS, run
from benchmarks.gpu.stage import Stage, Unit

TOOLS = ("memcheck", "racecheck", "synccheck")
NOT_FOUND = "compute-sanitizer: not found on PATH, beside nvcc or in a CUDA toolkit"
SHOWN = 20
# After this many the program has been seen to be wrong.
PRINT_LIMIT = 50


def units(stage: Stage) -> Iterator[Unit]:
    """A unit for each tool, with an equal part of what is left; one that says why where there is none."""
    program = find()
    if program is None or stage.device != "cuda":
        why = NOT_FOUND if program is None else "compute-sanitizer: watches GPUs alone"
        yield Unit("compute-sanitizer", lambda: stage.record.detail(sanitizer=why))
        return
    for number, tool in enumerate(TOOLS):
        yield Unit(tool, partial(check, stage, program, tool, len(TOOLS) - number), float("inf"))


def find() -> str | None:
    """The program: on PATH, beside the nvcc there, or in a toolkit at a usual place."""
    on_path = shutil.which("compute-sanitizer")
    if on_path:
        return on_path
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and str(Path(nvcc).resolve().parents[1]), "/usr/local/cuda"]
    for home in filter(None, homes):
        for place in ("bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer"):
            if (Path(home) / place).is_file():
                return str(Path(home) / place)
    return None


def check(stage: Stage, program: str, tool: str, parts: int) -> None:
    """Run one tool, keep what it prints beside the results, and raise unless it found nothing.

    Memory is not cached: between two tensors of one block of the cache nothing would be out of bounds.
    """
    command = [program, "--tool", tool, "--print-limit", str(PRINT_LIMIT)]
    command += ["--target-processes", "application-only"]
    command += [sys.executable, "-m", "benchmarks.gpu.exercise", "--device", stage.device]
    seconds = max(stage.left() - LAST_WORDS, 1.0) / parts
    ended = run(command, seconds, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, echo=False)
    with (stage.out / "sanitizer.log").open("a", encoding="utf-8") as log:
        log.write(f"--- {tool}\n{ended.output}\n")
    found = parse(ended.output)
    stage.record.detail(**{tool: found})
    if ended.status != 0 or found["errors"] != 0:
        raise RuntimeError(f"{tool}: {found['errors']} errors, {ended.describe(4)}")


def parse(output: str) -> dict[str, Any]:
    """What a tool found: ``errors`` is None where it has printed no summary.

    Hazards that racecheck calls warnings are counted apart: they may be meant.
    """
    errors: int | None = None
    warnings = 0
    summary = re.search(r"^=+ ERROR SUMMARY: (\d+) error", output, re.MULTILINE)
    if summary:
        errors = int(summary[1])
    hazards = re.search(
        r"^=+ RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)",
        output,
        re.MULTILINE,
    )
    if hazards:
        errors, warnings = (errors or 0) + int(hazards[1]), int(hazards[2])
    headings = re.findall(r"^========= (?! )(.+)$", output, re.MULTILINE)
    told = Counter(h for h in headings if "SUMMARY" not in h and not h.startswith("COMPUTE-SANITIZER"))
    places = Counter(re.findall(r"^=+ +(?:.* )?at (?:0x[0-9a-f]+ in )?([\w:]+)[(+<]", output, re.MULTILINE))
    exercised = re.findall(r"^exercised (.+)$", output, re.MULTILINE)
    return {
        "errors": errors,
        "warnings": warnings,
        "reports": dict(told.most_common(SHOWN)),
        "kernels": dict(places.most_common(SHOWN)),
        "exercised": len(exercised),
    }
