"""A sweep of tiles: each Triton launch of an SVI step timed alone, with other tiles than the chosen ones.

The step is taken once with every launch noted; what is timed is a launch from a graph, again and again on
the same numbers, so that its operands are in the L2 cache as they mostly are in a step.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks.cases import Case
from benchmarks.contestants import OURS, starting_parameters
from benchmarks.gpu.measure import time_graph
from benchmarks.gpu.record import whole_traceback
from benchmarks.gpu.stage import Stage, Unit
from benchmarks.gpu.stages.kernels import MOST_PROCESSES
from benchmarks.gpu.stages.steps import tutorial_case
from benchmarks.machine import cpu_count
from benchmarks.precision import multiplied_in
from dmm_fast.triton import tuning
from dmm_fast.triton.tuning import Tiles

SUITE = "tiles"
WHOLE_ROWS = (
    *(Tiles(16, 128, inputs, warps, 3) for inputs in (16, 32) for warps in (4, 8)),
    Tiles(16, 128, 64, 4, 2),
    Tiles(16, 64, 32, 4, 3),
    Tiles(16, 64, 32, 8, 3),
    Tiles(32, 128, 32, 8, 3),
)
COLUMNS = (
    *(Tiles(rows, columns, inputs) for rows in (32, 64) for columns in (32, 64) for inputs in (32, 64)),
    Tiles(64, 64, 32, 8),
)
PRODUCTS = (
    Tiles(),
    Tiles(BLOCK_N=32),
    Tiles(BLOCK_M=32),
    Tiles(num_warps=8),
    Tiles(BLOCK_M=128, num_warps=8),
    Tiles(BLOCK_K=64),
)
PROGRAMS = (396, 528, 792)
PARTS = 3  # of the candidates of a launch, each compiled in a process


class Launch(NamedTuple):
    """A launch of a step: what it is called, what runs it with a candidate, the candidates and the choice."""

    name: str
    run: Callable[[Any], object]
    candidates: tuple[Any, ...]
    chosen: Any


def units(stage: Stage) -> Iterator[Unit]:
    """Compile all in many processes, then time one launch after another."""
    yield Unit("compile the tiles", lambda: compile_all(stage), seconds=float("inf"))
    yield Unit("time the tiles", lambda: time_all(stage), seconds=float("inf"))


def launches_of(case: Case) -> list[Launch]:
    """Take an SVI step and note its launches over tiles, and its products of weights."""
    from dmm_fast.triton import layers, step_gradients, weight_gradients

    found: list[Launch] = []

    def choose(run: Any, candidates: Any, rule: Any, key: Any, on: Any) -> Any:
        if isinstance(rule, Tiles):
            given = WHOLE_ROWS if rule.BLOCK_N == 128 else COLUMNS
            found.append(Launch(f"{len(found)}, {key[0].__name__}", run, given, rule))
        return rule

    original = weight_gradients.weight_gradients

    def noted(given_layers: Any, *args: Any, **options: Any) -> Any:
        out = original(given_layers, *args, **options)
        chosen = weight_gradients.cut_for(sum(gradient.numel() for gradient in out))
        cuts = [chosen._replace(tiles=tiles) for tiles in PRODUCTS]
        cuts += [chosen._replace(programs=programs) for programs in PROGRAMS]
        cuts += [chosen._replace(precision=name) for name in ("bf16x6", "tf32x3")]

        def run(cut: Any) -> None:
            with patch.object(weight_gradients, "cut_for", lambda sums: cut):
                original(given_layers, *args, **options)

        name = f"{len(found)}, products of {len(given_layers)} layers, {out[0].numel()} first sums"
        found.append(Launch(name, run, tuple(dict.fromkeys(cuts)), chosen))
        return out

    (contestant,) = (one for one in OURS if one.name == "dmm_fast, SequenceELBO")
    racer = contestant.setup(case, starting_parameters(case.sizes))
    with ExitStack() as stack, multiplied_in(case.precision), racer.active():
        racer.run()
        stack.enter_context(patch.object(tuning, "choose", choose))
        for module, name in ((step_gradients, "weight_gradients"), (layers, "products_of_rows")):
            stack.enter_context(patch.object(module, name, noted))
        racer.run()
    return found


def compile_part(case: Case, job: tuple[int, int]) -> str | None:
    """Run a part of a launch's candidates once. Returns None, or what went wrong."""
    number, part = job
    try:
        launch = launches_of(case)[number]
        with multiplied_in(case.precision):
            for candidate in launch.candidates[part::PARTS]:
                if (why := failure_of(launch, candidate)) is not None:
                    print(f"  {launch.name}, {candidate}: {why}", flush=True)
    except Exception as error:
        return whole_traceback(error)
    return None


def failure_of(launch: Launch, candidate: Any) -> str | None:
    """Run a candidate. Returns why it cannot be launched, if so: too much shared memory, for one."""
    try:
        launch.run(candidate)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def compile_all(stage: Stage) -> None:
    """Fill Triton's cache."""
    if stage.device != "cuda":
        return
    case = tutorial_case(stage)
    jobs = [(number, part) for number in range(len(launches_of(case))) for part in range(PARTS)]
    with ProcessPoolExecutor(min(MOST_PROCESSES, cpu_count()), get_context("spawn")) as pool:
        errors = list(filter(None, pool.map(partial(compile_part, case), jobs)))
    if errors:
        raise RuntimeError("\n".join(errors))


def time_all(stage: Stage) -> None:
    """Record the time of each candidate; the chosen one is timed first and last."""
    if stage.device != "cuda":
        stage.record.not_run("tiles", "triton", "it takes a GPU")
        return
    case = tutorial_case(stage)
    with multiplied_in(case.precision):
        for launch in launches_of(case):
            others = [candidate for candidate in launch.candidates if candidate != launch.chosen]
            for candidate in (launch.chosen, *others, launch.chosen):
                if failure_of(launch, candidate) is None:
                    samples = time_graph(partial(launch.run, candidate), seconds=0.02)
                    chosen = ", chosen" if candidate == launch.chosen else ""
                    name = f"{told(candidate)}{chosen}"
                    stage.record.case(SUITE, launch.name, name, samples.as_dict())


def told(candidate: Any) -> str:
    """A candidate's numbers."""
    if isinstance(candidate, Tiles):
        return (
            " x ".join(map(str, candidate[:3]))
            + f", {candidate.num_warps} warps, {candidate.num_stages} stages"
        )
    return f"{told(candidate.tiles)}, {candidate.programs} programs, {candidate.precision}"
