"""The library with its CUDA kernels, and what it says of itself."""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.commands import run
from benchmarks.gpu.stage import Stage, Unit

INFO = "import json, dmm_fast; print('info: ' + json.dumps(dmm_fast.info()))"


def units(stage: Stage) -> Iterator[Unit]:
    """Build unless told to keep a library that loads; then ask it, in a process of its own."""
    yield Unit("setup.py build_ext", lambda: build(stage), seconds=600)
    yield Unit("dmm_fast.info()", lambda: stage.record.detail(info=info(stage)))


def build(stage: Stage) -> None:
    """Compile everything anew: files that have travelled may all bear one date."""
    if stage.keep_build and stage.device in info(stage)["loaded_for"]:
        stage.record.detail(build="kept")
        return
    start = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    # A GPU wants the CUDA kernels: without them the build has failed.
    needed = {"DMM_FAST_CUDA": "1"} if stage.device == "cuda" else {}
    ended = run(command, stage.left(), env={**os.environ, **needed})
    if ended.status != 0:
        raise RuntimeError(f"setup.py: {ended.describe()}")
    stage.record.detail(build="built", build_seconds=round(time.monotonic() - start, 1))


def info(stage: Stage) -> dict[str, Any]:
    """``dmm_fast.info()`` of a fresh process, and for which devices a compiled library computes."""
    ended = run([sys.executable, "-c", INFO], min(60.0, stage.left()), echo=False)
    lines = [line for line in ended.output.splitlines() if line.startswith("info: ")]
    if not lines:
        raise RuntimeError(f"dmm_fast.info(): {ended.describe()}")
    found = json.loads(lines[-1].removeprefix("info: "))
    loaded = {"cpu": found["instruction_set"], "cuda": found["cuda_architectures"]}
    return found | {"loaded_for": [device for device, what in loaded.items() if what]}
