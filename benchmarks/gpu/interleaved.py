"""Interleaved timing of SVI steps on a GPU, after checks that an implementation is supported and agrees."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from benchmarks.cases import Case
from benchmarks.correctness import CheckResult
from benchmarks.equivalence import check_equivalence
from benchmarks.gpu.record import whole_traceback
from benchmarks.gpu.stage import ProcessSpentError, Stage, Unit
from benchmarks.implementations import (
    BASELINE,
    BATCHED,
    BATCHED_GRAPHED,
    CAPTURABLE,
    COMPILED,
    COMPILED_GRAPHED,
    GRAPHED,
    MENDED,
    OVERLAPPED,
    skipped_on,
    starting_parameters,
)
from benchmarks.precision import IEEE, multiplied_in
from benchmarks.replays import compare_replays
from benchmarks.run import timed_rows
from benchmarks.stepper import Implementation

SUPPORTED, REPLAYED = "supported", "replayed"
# Enough for torch.compile, which takes the longest.
UNIT_SECONDS = 90.0
# Implementations that replay a graph, with their eager counterparts.
REPLAYING: dict[Implementation, Implementation] = {
    GRAPHED: CAPTURABLE,
    OVERLAPPED: CAPTURABLE,
    BATCHED_GRAPHED: BATCHED,
    COMPILED_GRAPHED: COMPILED,
}


def support_checks(
    stage: Stage, case: Case, implementations: Sequence[Implementation], ours: Collection[str]
) -> Iterator[Unit]:
    """Units that check once per run whether each implementation can be compiled and captured here."""
    skipped = skipped_on(case.device)
    unsupported = {row["impl"] for row in stage.record.found("not_run") if row["case"] == "all"}
    for implementation in implementations:
        name = implementation.name
        if name in _impls(stage, SUPPORTED) | unsupported:
            continue
        if name in skipped:
            stage.record.not_run("all", name, skipped[name])
            continue
        yield Unit(
            f"support of {name}",
            partial(check_support, stage, case, implementation, name in ours),
            UNIT_SECONDS,
        )


def check_support(stage: Stage, case: Case, implementation: Implementation, needed: bool) -> None:
    """Run an implementation twice, the second time from a graph if it captures one.

    Raises:
        ProcessSpentError: it failed; with a message, which makes the unit fail, if it is ``needed``.
    """
    try:
        with multiplied_in(case.precision):
            stepper = implementation.setup(case, starting_parameters(case.sizes))
            with stepper.active():
                for _ in range(2):
                    stepper.run()
    except Exception as error:
        stage.record.not_run(
            "all", implementation.name, f"failed at its first steps: {whole_traceback(error)}"
        )
        message = (f"{implementation.name} could not step",) if needed else ()
        raise ProcessSpentError(*message) from error
    stage.record.add(SUPPORTED, {"impl": implementation.name})


def replays(
    stage: Stage, case: Case, implementations: Sequence[Implementation], ours: Collection[str]
) -> Iterator[Unit]:
    """Units that check, once per run, the implementations that replay a graph."""
    for replaying, plain in REPLAYING.items():
        if replaying in implementations and replaying.name not in _impls(stage, REPLAYED):
            run = partial(compare, stage, case, plain, replaying, replaying.name in ours)
            yield Unit(f"replays of {replaying.name}", run, UNIT_SECONDS)


def compare(stage: Stage, case: Case, plain: Implementation, replaying: Implementation, needed: bool) -> None:
    """Compare losses of replayed and eager steps; an implementation that differs is not timed."""
    if not {plain.name, replaying.name} <= _impls(stage, SUPPORTED):
        return
    with multiplied_in(case.precision):
        result = compare_replays(case, plain, replaying)
    if result.ok or needed:
        stage.record.correctness(result.as_dict())
    if result.ok:
        stage.record.add(REPLAYED, {"impl": replaying.name})
    else:
        stage.record.not_run("all", replaying.name, _disagreement(result))


def time_agreeing(
    stage: Stage, suite: str, case: Case, implementations: Sequence[Implementation], ours: Collection[str]
) -> None:
    """Check the supported implementations, and time those that agree.

    If a baseline disagrees, nothing is timed, and the stage fails. Any other implementation that disagrees is
    recorded as skipped. The stage fails if it is one of ``ours``, but not in TF32, in which the error depends
    on the library's choice of kernel.
    """
    able = _able(stage, case, implementations)
    with multiplied_in(case.precision):
        parameters = starting_parameters(case.sizes)
        check_results = check_equivalence(case, parameters, able)
        wrong = {result.backend: result for result in check_results if not result.ok}
        baselines = {BASELINE.name, MENDED.name}
        held = baselines | {*ours} if case.precision == IEEE else set()
        for result in check_results:
            if result.backend not in wrong or result.backend in held:
                stage.record.correctness(result.as_dict())
        for name, result in wrong.items():
            stage.record.not_run(case.name, name, _disagreement(result))
        if wrong.keys() & baselines:
            stage.record.not_run(case.name, "all", "the baselines do not agree with float64")
            return
        agreed = [c for c in able if c.name not in wrong]
        steppers = {c.name: c.setup(case, parameters) for c in agreed}
        for row in timed_rows(suite, case, agreed, steppers, case.device):
            stage.record.add("cases", row)


def _able(stage: Stage, case: Case, implementations: Sequence[Implementation]) -> list[Implementation]:
    """The supported implementations whose replays are correct; records the others as skipped."""
    supported, replayed = _impls(stage, SUPPORTED), _impls(stage, REPLAYED)
    named = _impls(stage, "not_run")
    able = []
    for implementation in implementations:
        if implementation.name in supported and (
            implementation not in REPLAYING or implementation.name in replayed
        ):
            able.append(implementation)
        elif implementation.name not in named:
            stage.record.not_run(case.name, implementation.name, "not checked in time")
    return able


def _impls(stage: Stage, kind: str) -> set[str]:
    return {row["impl"] for row in stage.record.found(kind)}


def _disagreement(result: CheckResult) -> str:
    return f"{result.op}: error {result.max_rel_error:.1e}, bound {result.bound:.1e}"
