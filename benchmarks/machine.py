"""Facts about the machine and the software that a run was measured with."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.timing import load_average


def commit() -> str:
    """The short commit of this checkout, ``-dirty`` when tracked files differ; in a kit, that of its file.

    Where there is neither, ``unknown``.
    """
    described = _output(["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"])
    if described:
        return described
    kept = ROOT / "COMMIT"
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else "unknown"


def meta(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """The metadata of a results file."""
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "quick": quick,
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "driver": _driver() if on_gpu else None,
        "cpu": processor(),
        "cpus": cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load_average(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": _version("pyro-ppl"),
        "jax": _version("jax"),
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
    }


def processor() -> str:
    """The model name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clocks() -> dict[str, str]:
    """Clocks, power and temperature of the first GPU by the field names of nvidia-smi; else empty."""
    fields = (
        *("name", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu"),
        *("power.draw", "power.limit", "pstate", "memory.used", "memory.total"),
    )
    answer = _output(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    if not answer:
        return {}
    return dict(zip(fields, (value.strip() for value in answer.splitlines()[0].split(",")), strict=False))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = _output(query)
    return answer.splitlines()[0] if answer else None


def _output(command: list[str]) -> str | None:
    """The output of a command, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
