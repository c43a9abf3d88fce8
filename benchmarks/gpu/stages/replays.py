"""Comparison of steps replayed from a CUDA graph with eager steps, and profiles of both."""

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.profile import profiled
from benchmarks.gpu.stage import ProcessSpentError, Stage, Unit
from benchmarks.gpu.stages.steps import replay_units, tutorial_case
from benchmarks.implementations import CAPTURABLE, GRAPHED, starting_parameters
from benchmarks.precision import multiplied_in
from benchmarks.stepper import Implementation

TRACE = "step.json.gz"


def units(stage: Stage) -> Iterator[Unit]:
    """The comparisons; then profiles of a replayed step, with its timeline, and of the same eager step."""
    yield from replay_units(stage)
    for implementation in (GRAPHED, CAPTURABLE):
        yield Unit(f"profile of {implementation.name}", partial(profile_step, stage, implementation), 60.0)
    yield Unit("a process without a profiler", partial(leave_profiler, stage))


def profile_step(stage: Stage, implementation: Implementation) -> None:
    """Record the profile of a step."""
    case = tutorial_case(stage)
    trace = stage.out / TRACE if implementation is GRAPHED else None
    with multiplied_in(case.precision):
        stepper = implementation.setup(case, starting_parameters(case.sizes))
        timed = stepper.timed()
        with stepper.active():
            found = profiled(timed.step, stage.device, trace)
    stage.record.add("profiles", {"case": case.name, "impl": implementation.name, **found})


def leave_profiler(stage: Stage) -> None:
    """End this process, as a profiler that was once active slows down every later launch on a GPU."""
    if stage.device == "cuda":
        raise ProcessSpentError
