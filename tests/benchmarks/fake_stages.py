"""Stages that fail in different ways, run by the runner like real ones."""

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.gpu import runner
from benchmarks.gpu import stage as stage_module
from benchmarks.gpu.stage import ProcessSpentError, Unit


def check_result(ok):
    return {
        "op": "f",
        "backend": "b",
        "case": "c",
        "max_rel_error": 0.5,
        "bound": 1.0 if ok else 0.1,
        "ok": ok,
    }


def fails(stage):
    yield Unit("first", lambda: stage.record.case("s", "c", "first", {"median_ms": 1.0}))
    yield Unit("bad", lambda: 1 / 0)
    yield Unit("last", lambda: stage.record.case("s", "c", "last", {"median_ms": 1.0}))


def hangs(stage):
    yield Unit("first", lambda: stage.record.case("s", "c", "first", {"median_ms": 1.0}))
    yield Unit("bad", lambda: time.sleep(600), seconds=1.0)
    yield Unit("last", lambda: stage.record.case("s", "c", "last", {"median_ms": 1.0}))


def breaks(stage):
    """The device of this process is unusable after the second unit."""
    object.__setattr__(stage, "device", "cuda")
    stage_module.settle = lambda: None
    stage_module.device_works = lambda: False
    yield from fails(stage)


def needs_another(stage):
    def unfit():
        stage.record.detail(first=os.getpid())
        raise ProcessSpentError

    yield Unit("first", unfit)
    yield Unit("last", lambda: stage.record.detail(last=os.getpid()))


def shares(stage):
    yield Unit("only", lambda: stage.record.detail(process=os.getpid()))


def shares_too(stage):
    yield from shares(stage)


def cannot_be_listed(stage):
    raise ImportError("no such library")
    yield


def ends_badly(stage):
    sys.stdout.write("about to end\n")
    sys.stdout.flush()
    os._exit(3)
    yield


def dies(stage):
    yield Unit("first", lambda: stage.record.case("s", "c", "first", {"median_ms": 1.0}))
    yield Unit("bad", lambda: os.abort())
    yield Unit("last", lambda: stage.record.case("s", "c", "last", {"median_ms": 1.0}))


def never_begins(stage):
    print("about to hang", flush=True)
    time.sleep(600)
    yield


def runs_out(stage):
    yield Unit("first", lambda: stage.record.case("s", "c", "first", {"median_ms": 1.0}))
    yield Unit("long", lambda: time.sleep(600), seconds=300)
    yield Unit("last", lambda: None)


def overruns(stage):
    def needed():
        time.sleep(4.0)  # longer than the second of the stage and the 2.5 seconds of grace
        stage.record.case("s", "c", "needed", {"median_ms": 1.0})

    yield Unit("needed", needed, 20.0, overrun=True)
    yield Unit("last", lambda: None)


def disagrees(stage):
    yield Unit("right", lambda: stage.record.correctness(check_result(True)))
    yield Unit("wrong", lambda: stage.record.correctness(check_result(False)))


def leaves_a_hang(stage):
    """A kernel records a hang during the second unit."""
    object.__setattr__(stage, "device", "cuda")
    found = iter([None, RuntimeError("block 3 timed out"), None, None])

    def settle():
        error = next(found)
        if error:
            raise error

    stage_module.settle = settle
    yield from (Unit(name, lambda: None) for name in ("first", "second", "third"))


def slow_to_import(stage):
    yield Unit("only", lambda: stage.record.detail(left=stage.left()))


def reads_results(stage):
    def read():
        results = json.loads((stage.out / "results.json").read_text())
        stage.record.detail(there=[row["impl"] for row in results["cases"]])

    yield Unit("first", lambda: stage.record.case("s", "c", "first", {"median_ms": 1.0}))
    yield Unit("last", read)


def compiles(stage):
    cache = Path(os.environ["TRITON_CACHE_DIR"])
    stage.record.detail(cached=[path.name for path in cache.iterdir()])

    def compile_kernel():
        (cache / "key").mkdir()
        for suffix in ("cubin", "ptx"):
            (cache / "key" / f"kernel.{suffix}").touch()

    yield Unit("kernel", compile_kernel)


def well(stage):
    yield Unit("meta", lambda: stage.record.add("meta", {"commit": "abc"}))
    yield Unit("all", lambda: stage.record.detail(seen=[stage.device, stage.quick, stage.left() > 0]))


if __name__ == "__main__":
    sys.modules["benchmarks.gpu.stages.fake"] = sys.modules[__name__]
    for name in list(globals()):
        runner.STAGES.setdefault(name, (f"fake.{name}", 25.0))
    sys.exit(stage_module.main(sys.argv[1:]))
