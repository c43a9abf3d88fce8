"""SVI steps of each guide, with flows and other recurrent networks: checked, captured, timed."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pyro

from benchmarks.cases import QUICK_SIZES, data_file
from benchmarks.contestants import CAPTURABLE, GRAPHED
from benchmarks.gpu.measure import time_calls
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.stages.steps import tutorial_case
from benchmarks.guides import GUIDES, Run, checked
from benchmarks.precision import multiplied_in
from benchmarks.quality import chosen_data
from benchmarks.replays import compare_replays
from dmm_fast.model import DMM

SUITE = "guides"
RUNS = (*(Run(*guide) for guide in GUIDES), *(Run("st-r", 0, rnn=network) for network in ("lstm", "gru")))
SECONDS = 40.0


def units(stage: Stage) -> Iterator[Unit]:
    """A guide is a unit."""
    for run in RUNS:
        yield Unit(f"guide {run.name}", partial(measure, stage, run), SECONDS)


def measure(stage: Stage, run: Run) -> None:
    """Hold losses and gradients to float64, replays to steps as they come, and time the replays."""
    case = tutorial_case(stage)
    with multiplied_in(case.precision):
        for verdict in checked(run, chosen_data(data_file(stage.data)), case.device):
            stage.record.correctness(verdict.as_dict())
        case = replace(case, sizes={**run.config(1).sizes(88), **(QUICK_SIZES if stage.quick else {})})
        pyro.set_rng_seed(0)
        parameters = DMM(**case.sizes).state_dict()
        verdict = compare_replays(case, CAPTURABLE, GRAPHED, parameters)
        stage.record.correctness(verdict.as_dict() | {"case": f"{case.name}, {run.name}"})
        racer = GRAPHED.setup(case, parameters)
        timed = racer.timed()
        with racer.active():
            samples = time_calls(timed.step, stage.device, seconds=0.1)
    stage.record.case(SUITE, f"{case.name}, {run.name}", GRAPHED.name, samples.as_dict())
