"""Contestants of an SVI step on a GPU: let in one by one, checked against the tutorial, timed in turn."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from benchmarks.cases import Case
from benchmarks.contestants import (
    BASELINE,
    BATCHED,
    BATCHED_GRAPHED,
    CAPTURABLE,
    COMPILED,
    COMPILED_GRAPHED,
    GRAPHED,
    MENDED,
    OVERLAPPED,
    left_out_on,
    starting_parameters,
)
from benchmarks.correctness import Verdict
from benchmarks.gate import gate
from benchmarks.gpu.record import whole_traceback
from benchmarks.gpu.stage import ProcessSpentError, Stage, Unit
from benchmarks.precision import IEEE, multiplied_in
from benchmarks.racer import Contestant
from benchmarks.replays import compare_replays
from benchmarks.run import clocked

ADMITTED, REPLAYED = "admitted", "replayed"
# torch.compile takes the longest to be ready.
UNIT_SECONDS = 90.0
# Contestants that replay a graph, and the same without one.
REPLAYING: dict[Contestant, Contestant] = {
    GRAPHED: CAPTURABLE,
    OVERLAPPED: CAPTURABLE,
    BATCHED_GRAPHED: BATCHED,
    COMPILED_GRAPHED: COMPILED,
}


def admissions(
    stage: Stage, case: Case, contestants: Sequence[Contestant], ours: Collection[str]
) -> Iterator[Unit]:
    """A unit each, once a run: what cannot be compiled or captured ends its unit and is not timed later."""
    not_here = left_out_on(case.device)
    refused = {row["impl"] for row in stage.record.found("not_run") if row["case"] == "all"}
    for contestant in contestants:
        name = contestant.name
        if name in _impls(stage, ADMITTED) | refused:
            continue
        if name in not_here:
            stage.record.not_run("all", name, not_here[name])
            continue
        yield Unit(f"admit {name}", partial(admit, stage, case, contestant, name in ours), UNIT_SECONDS)


def admit(stage: Stage, case: Case, contestant: Contestant, needed: bool) -> None:
    """Step twice: as it comes and, where that is another thing, again.

    Raises:
        ProcessSpentError: it could not; with a message, a failure, where it is ``needed``.
    """
    try:
        with multiplied_in(case.precision):
            racer = contestant.setup(case, starting_parameters(case.sizes))
            with racer.active():
                for _ in range(2):
                    racer.run()
    except Exception as error:
        stage.record.not_run("all", contestant.name, f"failed at its first steps: {whole_traceback(error)}")
        told = (f"{contestant.name} could not step",) if needed else ()
        raise ProcessSpentError(*told) from error
    stage.record.add(ADMITTED, {"impl": contestant.name})


def replays(
    stage: Stage, case: Case, contestants: Sequence[Contestant], ours: Collection[str]
) -> Iterator[Unit]:
    """A unit for each that replays a graph, once a run: the gate sees no replay."""
    for replaying, plain in REPLAYING.items():
        if replaying in contestants and replaying.name not in _impls(stage, REPLAYED):
            run = partial(compare, stage, case, plain, replaying, replaying.name in ours)
            yield Unit(f"replays of {replaying.name}", run, UNIT_SECONDS)


def compare(stage: Stage, case: Case, plain: Contestant, replaying: Contestant, needed: bool) -> None:
    """Compare losses of replayed steps with those of eager ones; a contestant that differs is not timed."""
    if not {plain.name, replaying.name} <= _impls(stage, ADMITTED):
        return
    with multiplied_in(case.precision):
        verdict = compare_replays(case, plain, replaying)
    if verdict.ok or needed:
        stage.record.correctness(verdict.as_dict())
    if verdict.ok:
        stage.record.add(REPLAYED, {"impl": replaying.name})
    else:
        stage.record.not_run("all", replaying.name, _disagreement(verdict))


def race(
    stage: Stage, suite: str, case: Case, contestants: Sequence[Contestant], ours: Collection[str]
) -> None:
    """Check those that were admitted, and time those that agree.

    A baseline that disagrees is an error and nothing is timed. Another contestant that does is named and left
    out; that is an error if it is ours, but not in TF32, whose bounds depend on a library's choice of kernel.
    """
    able = _able(stage, case, contestants)
    with multiplied_in(case.precision):
        parameters = starting_parameters(case.sizes)
        verdicts = gate(case, parameters, able)
        wrong = {verdict.backend: verdict for verdict in verdicts if not verdict.ok}
        baselines = {BASELINE.name, MENDED.name}
        held = baselines | {*ours} if case.precision == IEEE else set()
        for verdict in verdicts:
            if verdict.backend not in wrong or verdict.backend in held:
                stage.record.correctness(verdict.as_dict())
        for name, verdict in wrong.items():
            stage.record.not_run(case.name, name, _disagreement(verdict))
        if wrong.keys() & baselines:
            stage.record.not_run(case.name, "all", "the sides do not compute the same")
            return
        agreed = [c for c in able if c.name not in wrong]
        racers = {c.name: c.setup(case, parameters) for c in agreed}
        for row in clocked(suite, case, agreed, racers, case.device):
            stage.record.add("cases", row)


def _able(stage: Stage, case: Case, contestants: Sequence[Contestant]) -> list[Contestant]:
    """Those that were admitted and whose replays, if they replay, are right; the others are named."""
    admitted, replayed = _impls(stage, ADMITTED), _impls(stage, REPLAYED)
    named = _impls(stage, "not_run")
    able = []
    for contestant in contestants:
        if contestant.name in admitted and (contestant not in REPLAYING or contestant.name in replayed):
            able.append(contestant)
        elif contestant.name not in named:
            stage.record.not_run(case.name, contestant.name, "not admitted within its time")
    return able


def _impls(stage: Stage, kind: str) -> set[str]:
    return {row["impl"] for row in stage.record.found(kind)}


def _disagreement(verdict: Verdict) -> str:
    return f"{verdict.op}: error {verdict.max_rel_error:.1e}, bound {verdict.bound:.1e}"
