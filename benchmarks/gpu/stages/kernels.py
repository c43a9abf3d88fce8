"""Warm-up compile: every op and SVI step once at the tutorial's sizes, in many processes."""

from collections.abc import Iterator
from functools import partial

from benchmarks.draws import Sizes
from benchmarks.gpu.call_ops import SMALL, op_jobs
from benchmarks.gpu.pool import Job, run_all
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.stages import guides
from benchmarks.gpu.stages.steps import tutorial_case
from benchmarks.guides import Run
from benchmarks.implementations import CAPTURABLE, GRAPHED, OURS, starting_parameters
from benchmarks.precision import multiplied_in
from benchmarks.stepper import Implementation

STEPPING: tuple[Implementation, ...] = (*OURS, CAPTURABLE, GRAPHED)


def units(stage: Stage) -> Iterator[Unit]:
    """A single unit, which compiles everything."""
    yield Unit("compile", lambda: compile_all(stage), seconds=float("inf"))


def compile_all(stage: Stage) -> None:
    """Run all jobs, except for kernels that failed the smoke test; raise if a job fails."""
    if errors := [ended.error for ended in run_all(stage, jobs(stage)) if ended.error]:
        raise RuntimeError("\n".join(errors))


def jobs(stage: Stage) -> list[Job]:
    """Jobs of the ops, then of the steps, most of whose kernels are compiled by then.

    A quick run has only those of the ops.
    """
    failed = {f"{row['op']}, {row['backend']}" for row in stage.record.failed_kernels()}
    sizes = SMALL if stage.quick else Sizes()
    of_ops = [job for job in op_jobs(stage.device, sizes) if job.name not in failed]
    return of_ops if stage.quick else [*of_ops, *step_jobs(stage)]


def step_jobs(stage: Stage) -> Iterator[Job]:
    """Jobs of the steps, those with flows, which have the most kernels, first."""
    for run in sorted(guides.RUNS, key=lambda run: run.flows, reverse=True):
        yield Job(f"guide {run.name}", partial(step_with_guide, stage, run))
    for implementation in STEPPING:
        yield Job(f"step of {implementation.name}", partial(step_of, stage, implementation))


def step_of(stage: Stage, implementation: Implementation) -> None:
    """Take an eager step."""
    case = tutorial_case(stage)
    with multiplied_in(case.precision):
        stepper = implementation.setup(case, starting_parameters(case.sizes))
        with stepper.active():
            stepper.run()


def step_with_guide(stage: Stage, run: Run) -> None:
    """Take the eager steps that the stage of guides compares."""
    case = guides.case_of(stage, run)
    with multiplied_in(case.precision):
        guides.check_results(stage, run, case)
        for implementation in (CAPTURABLE, GRAPHED):
            stepper = implementation.setup(case, guides.parameters_of(case))
            with stepper.active():
                stepper.run()
