"""Where the time of one of our SVI steps goes; the last stage, as a profiler slows what follows."""

from collections.abc import Iterator
from functools import partial

from benchmarks.contestants import CAPTURABLE, GRAPHED, OURS
from benchmarks.gpu.profile import profiled
from benchmarks.gpu.race import starting_parameters
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.stages.steps import tutorial_case
from benchmarks.precision import multiplied_in
from benchmarks.racer import Contestant

TRACE = "step.json.gz"


def units(stage: Stage) -> Iterator[Unit]:
    """From a graph, the timeline kept whole; and as it comes, where a profiler is surer of itself."""
    for contestant in (GRAPHED, CAPTURABLE, OURS[0]):
        yield Unit(contestant.name, partial(profile_step, stage, contestant), 60.0)


def profile_step(stage: Stage, contestant: Contestant) -> None:
    """Its kernels."""
    case = tutorial_case(stage)
    trace = stage.out / TRACE if contestant is GRAPHED else None
    with multiplied_in(case.precision):
        racer = contestant.setup(case, starting_parameters(case))
        timed = racer.timed()
        with racer.active():
            found = profiled(timed.step, stage.device, trace)
    stage.record.add("profiles", {"case": case.name, "impl": contestant.name, **found})
