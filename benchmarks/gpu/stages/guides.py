"""Checks and replay times of SVI steps of each guide, also with flows and other recurrent networks."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pyro
from torch import Tensor

from benchmarks.cases import QUICK_SIZES, Case, beginnings, data_file
from benchmarks.correctness import CheckResult
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.stages.steps import tutorial_case
from benchmarks.guides import GUIDES, Run, checked
from benchmarks.implementations import CAPTURABLE, GRAPHED
from benchmarks.precision import multiplied_in
from benchmarks.quality.to_target import chosen_data
from benchmarks.replays import compare_replays
from dmm_fast.data import Dataset
from dmm_fast.model import DMM

SUITE = "guides"
RUNS = (*(Run(*guide) for guide in GUIDES), *(Run("st-r", 0, rnn=network) for network in ("lstm", "gru")))
SECONDS = 40.0


def units(stage: Stage) -> Iterator[Unit]:
    """A unit for each guide; two of them, one with flows, in a quick run."""
    for run in RUNS[1::6] if stage.quick else RUNS:
        yield Unit(f"guide {run.name}", partial(measure, stage, run), SECONDS)


def measure(stage: Stage, run: Run) -> None:
    """Compare losses and gradients with float64, and replays with eager steps; then time the replays."""
    case = case_of(stage, run)
    with multiplied_in(case.precision):
        for result in check_results(stage, run, case):
            stage.record.correctness(result.as_dict())
        parameters = parameters_of(case)
        stage.record.correctness(compare_replays(case, CAPTURABLE, GRAPHED, parameters).as_dict())
        stepper = GRAPHED.setup(case, parameters)
        timed = stepper.timed()
        with stepper.active():
            samples = time_calls(timed.step, stage.device, seconds=0.1)
    stage.record.case(SUITE, case.name, GRAPHED.name, samples.as_dict(), guide=run.name)


def case_of(stage: Stage, run: Run) -> Case:
    """The case of a step at the tutorial's size with this guide."""
    case, quick = tutorial_case(stage), QUICK_SIZES if stage.quick else {}
    return replace(case, name=f"{case.name}, {run.name}", sizes={**run.config(1).sizes(88), **quick})


def parameters_of(case: Case) -> dict[str, Tensor]:
    """The initial parameters of all steppers of a case."""
    pyro.set_rng_seed(0)
    parameters: dict[str, Tensor] = DMM(**case.sizes).state_dict()
    return parameters


def check_results(stage: Stage, run: Run, case: Case) -> list[CheckResult]:
    """Compare loss and gradients on chorales with float64."""
    data = chosen_data(data_file(stage.data))
    if stage.quick:
        data = Dataset(data.name, *map(beginnings, (data.train, data.valid, data.test)))
    return checked(run, data, case.device, QUICK_SIZES if stage.quick else {})
