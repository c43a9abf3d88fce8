"""Tile sweep: times of each Triton launch of an SVI step, with the chosen tiles and with other tiles.

The launches are recorded in one step. Each is then replayed repeatedly from a graph on the same data, so that
its operands are in the L2 cache, as they mostly are in a step.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.cases import Case
from benchmarks.gpu.measure import time_launches
from benchmarks.gpu.pool import Job, run_all
from benchmarks.gpu.record import whole_traceback
from benchmarks.gpu.stage import ProcessSpentError, Stage, Unit
from benchmarks.gpu.stages.steps import tutorial_case
from benchmarks.implementations import OURS, starting_parameters
from benchmarks.precision import multiplied_in
from dmm_fast.triton import tuning
from dmm_fast.triton.tuning import Tiles

SUITE = "tiles"
# The kind of record for a candidate whose kernels are compiled and fit the GPU.
FITS = "fits"
# Fraction of the stage's time for compilation; seconds reserved to time a candidate.
COMPILING, A_CANDIDATE = 0.7, 1.0
# Candidates. Kernels of whole rows process all columns in blocks of 128.
WHOLE_ROWS = (
    Tiles(16, 128, 16, 4, 3),
    Tiles(16, 128, 32, 4, 3),
    Tiles(16, 128, 32, 8, 3),
    Tiles(16, 128, 64, 4, 2),
    Tiles(16, 64, 32, 4, 3),
    Tiles(32, 128, 32, 8, 3),
)
PRODUCTS = (Tiles(), Tiles(BLOCK_N=32), Tiles(BLOCK_M=32), Tiles(num_warps=8))
PROGRAMS = (396, 792)
PRECISIONS = ("bf16x6", "tf32x3")
COLUMNS = (
    *(Tiles(rows, columns) for rows, columns in ((32, 32), (32, 64), (64, 32), (64, 64))),
    Tiles(BLOCK_K=64),
)


class Launch(NamedTuple):
    """A launch of a step: its name, a function that runs it with given tiles, the chosen tiles and others."""

    name: str
    run: Callable[[Any], object]
    chosen: Any
    others: tuple[Any, ...]


def units(stage: Stage) -> Iterator[Unit]:
    """A unit that compiles all candidates in many processes, and one that times them in sequence."""
    if stage.device != "cuda":
        stage.record.not_run("tiles", "triton", "it requires a GPU")
        return
    yield Unit("compile the tiles", lambda: compile_all(stage), seconds=float("inf"))
    yield Unit("time the tiles", lambda: time_all(stage), seconds=float("inf"))


def launches_of(case: Case) -> list[Launch]:
    """Take an SVI step and record its launches over tiles, and its products for weight gradients.

    The most important ones come first: launches of whole rows, then products, then launches of columns.
    """
    from dmm_fast.triton import layers, step_gradients, weight_gradients

    rows, products, columns = list[Launch](), list[Launch](), list[Launch]()

    def note(kind: list[Launch], what: str, run: Any, chosen: Any, candidates: Any) -> None:
        number = len(rows) + len(products) + len(columns)
        others = tuple(one for one in dict.fromkeys(candidates) if one != chosen)
        kind.append(Launch(f"{number}, {what}", run, chosen, others))

    def choose(run: Any, candidates: Any, rule: Any, key: Any, on: Any) -> Any:
        if isinstance(rule, Tiles):
            whole = rule.BLOCK_N == 128
            note(rows if whole else columns, key[0].__name__, run, rule, WHOLE_ROWS if whole else COLUMNS)
        return rule

    original = weight_gradients.weight_gradients

    def noted(given_layers: Any, *args: Any, **options: Any) -> Any:
        out = original(given_layers, *args, **options)
        chosen = weight_gradients.cut_for(sum(gradient.numel() for gradient in out), len(given_layers))
        cuts = [chosen._replace(tiles=tiles) for tiles in PRODUCTS]
        cuts += [chosen._replace(programs=programs) for programs in PROGRAMS]
        cuts += [chosen._replace(precision=name) for name in PRECISIONS]

        def run(cut: Any) -> None:
            with patch.object(weight_gradients, "cut_for", lambda sums, layers: cut):
                original(given_layers, *args, **options)

        what = f"products of {len(given_layers)} layers, {out[0].numel()} first sums"
        note(products, what, run, chosen, cuts)
        return out

    (implementation,) = (one for one in OURS if one.name == "dmm_fast, SequenceELBO")
    stepper = implementation.setup(case, starting_parameters(case.sizes))
    with ExitStack() as stack, multiplied_in(case.precision), stepper.active():
        stepper.run()
        stack.enter_context(patch.object(tuning, "choose", choose))
        for module, name in ((step_gradients, "weight_gradients"), (layers, "products_of_rows")):
            stack.enter_context(patch.object(module, name, noted))
        stepper.run()
    return [*rows, *products, *columns]


# --- compiling ----------------------------------------------------------------------------------------------

_noted: dict[str, Launch] = {}


def take_step(stage: Stage) -> None:
    """Record the launches of a step, which this process needs to compile candidates."""
    _noted.update((launch.name, launch) for launch in launches_of(tutorial_case(stage)))


def compile_one(stage: Stage, name: str, candidate: Any) -> bool:
    """Run a launch with a candidate; returns False if it exceeds the memory of the GPU."""
    from triton.runtime.errors import OutOfResources

    try:
        with multiplied_in(tutorial_case(stage).precision):
            _noted[name].run(candidate)
    except OutOfResources:
        return False
    return True


def candidate_jobs(stage: Stage, launches: list[Launch]) -> Iterator[Job]:
    """A job for each candidate except for the chosen ones, which are compiled already."""
    for launch in launches:
        for candidate in launch.others:
            run = partial(compile_one, stage, launch.name, candidate)
            yield Job(_row_name(launch, candidate), run)


def compile_all(stage: Stage) -> None:
    """Fill Triton's cache, and record which candidates fit the GPU."""
    launches = launches_of(tutorial_case(stage))
    jobs = list(candidate_jobs(stage, launches))
    ended = list(run_all(stage, jobs, take_step, seconds=COMPILING * stage.left()))
    for each in ended:
        if each.value:
            stage.record.add(FITS, {"name": each.name})
        elif each.error is None:
            stage.record.not_run(each.name, "triton", "it exceeds the memory of the GPU")
    if errors := [each.error for each in ended if each.error]:
        raise RuntimeError("\n".join(errors))


# --- timing -------------------------------------------------------------------------------------------------


def time_all(stage: Stage) -> None:
    """Record the time of each candidate that fits; for every launch the chosen one comes first."""
    case = tutorial_case(stage)
    fitting = {row["name"] for row in stage.record.found(FITS)}
    with multiplied_in(case.precision):
        for launch in launches_of(case):
            able = [one for one in launch.others if _row_name(launch, one) in fitting]
            for candidate in (launch.chosen, *able):
                if stage.left() > A_CANDIDATE:
                    time_one(stage, launch, candidate)
                else:
                    why = "the stage ran out of time"
                    stage.record.not_run(_row_name(launch, candidate), "triton", why)


def time_one(stage: Stage, launch: Launch, candidate: Any) -> None:
    """Record the time of a launch with a candidate.

    Raises:
        ProcessSpentError: it could not be captured, which is recorded.
    """
    try:
        samples = time_launches(partial(launch.run, candidate))
    except RuntimeError as error:
        why = f"not captured:\n{whole_traceback(error)}"
        stage.record.not_run(_row_name(launch, candidate), "triton", why)
        raise ProcessSpentError from error
    is_chosen = candidate == launch.chosen
    stage.record.case(SUITE, launch.name, described(candidate), samples.as_dict(), chosen=is_chosen)


def _row_name(launch: Launch, candidate: Any) -> str:
    return f"{launch.name}, {described(candidate)}"


def described(candidate: Any) -> str:
    """A candidate as text."""
    if isinstance(candidate, Tiles):
        sizes = " x ".join(map(str, candidate[:3]))
        return f"{sizes}, {candidate.num_warps} warps, {candidate.num_stages} stages"
    return f"{described(candidate.tiles)}, {candidate.programs} programs, {candidate.precision}"
