"""Every op and SVI step once at the tutorial's sizes, in many processes: later stages compile nothing."""

from collections.abc import Iterator
from functools import partial

from benchmarks.contestants import CAPTURABLE, GRAPHED, OURS, starting_parameters
from benchmarks.draws import Sizes
from benchmarks.gpu.exercise import SMALL, op_jobs
from benchmarks.gpu.pool import Job, run_all
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.stages import guides
from benchmarks.gpu.stages.steps import tutorial_case
from benchmarks.guides import Run
from benchmarks.precision import multiplied_in
from benchmarks.racer import Contestant

STEPPING: tuple[Contestant, ...] = (*OURS, CAPTURABLE, GRAPHED)


def units(stage: Stage) -> Iterator[Unit]:
    """All of them at once."""
    yield Unit("compile", lambda: compile_all(stage), seconds=float("inf"))


def compile_all(stage: Stage) -> None:
    """Leave out the kernels that failed the smoke test; raise where a job fails here."""
    if errors := [ended.error for ended in run_all(stage, jobs(stage)) if ended.error]:
        raise RuntimeError("\n".join(errors))


def jobs(stage: Stage) -> list[Job]:
    """The ops, then the steps: these find most of their kernels compiled when they begin.

    A quick run has the ops alone.
    """
    failed = {f"{row['op']}, {row['backend']}" for row in stage.record.failed_kernels()}
    sizes = SMALL if stage.quick else Sizes()
    of_ops = [job for job in op_jobs(stage.device, sizes) if job.name not in failed]
    return of_ops if stage.quick else [*of_ops, *step_jobs(stage)]


def step_jobs(stage: Stage) -> Iterator[Job]:
    """Steps with flows first, which launch the most; a guide's as its stage takes them."""
    for run in sorted(guides.RUNS, key=lambda run: run.flows, reverse=True):
        yield Job(f"guide {run.name}", partial(step_with_guide, stage, run))
    for contestant in STEPPING:
        yield Job(f"step of {contestant.name}", partial(step_of, stage, contestant))


def step_of(stage: Stage, contestant: Contestant) -> None:
    """A step as it comes."""
    case = tutorial_case(stage)
    with multiplied_in(case.precision):
        racer = contestant.setup(case, starting_parameters(case.sizes))
        with racer.active():
            racer.run()


def step_with_guide(stage: Stage, run: Run) -> None:
    """The steps of a guide that are compared, each as it comes."""
    case = guides.case_of(stage, run)
    with multiplied_in(case.precision):
        guides.verdicts(stage, run, case)
        for contestant in (CAPTURABLE, GRAPHED):
            racer = contestant.setup(case, guides.parameters_of(case))
            with racer.active():
                racer.run()
