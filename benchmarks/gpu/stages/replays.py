"""Steps replayed from a CUDA graph are compared with steps as they come, and both are profiled."""

from collections.abc import Iterator
from functools import partial

from benchmarks.contestants import CAPTURABLE, GRAPHED, starting_parameters
from benchmarks.gpu.profile import profiled
from benchmarks.gpu.stage import ProcessSpentError, Stage, Unit
from benchmarks.gpu.stages.steps import replay_units, tutorial_case
from benchmarks.precision import multiplied_in
from benchmarks.racer import Contestant

TRACE = "step.json.gz"


def units(stage: Stage) -> Iterator[Unit]:
    """The comparisons; then a profile of a graph, its timeline kept, and of the same step as it comes."""
    yield from replay_units(stage)
    for contestant in (GRAPHED, CAPTURABLE):
        yield Unit(f"profile of {contestant.name}", partial(profile_step, stage, contestant), 60.0)
    yield Unit("a process without a profiler", partial(leave_profiler, stage))


def profile_step(stage: Stage, contestant: Contestant) -> None:
    """Record the kernels of a step."""
    case = tutorial_case(stage)
    trace = stage.out / TRACE if contestant is GRAPHED else None
    with multiplied_in(case.precision):
        racer = contestant.setup(case, starting_parameters(case.sizes))
        timed = racer.timed()
        with racer.active():
            found = profiled(timed.step, stage.device, trace)
    stage.record.add("profiles", {"case": case.name, "impl": contestant.name, **found})


def leave_profiler(stage: Stage) -> None:
    """End this process: a profiler that has once been active slows down every later launch on a GPU."""
    if stage.device == "cuda":
        raise ProcessSpentError
