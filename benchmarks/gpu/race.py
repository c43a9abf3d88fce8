"""Contestants of an SVI step on a GPU: let in one by one, checked against the tutorial, timed in turn."""

from collections.abc import Sequence
from functools import partial

import pyro
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contestants import BASELINE, MENDED
from benchmarks.correctness import Verdict
from benchmarks.gate import gate
from benchmarks.gpu.record import last_lines
from benchmarks.gpu.stage import ProcessSpentError, Stage, Unit
from benchmarks.precision import multiplied_in
from benchmarks.racer import Contestant
from benchmarks.run import clocked

ADMITTED, BARRED = "admitted", "barred"
# torch.compile takes the longest to be ready.
ADMISSION_SECONDS = 75.0


def admissions(stage: Stage, case: Case, contestants: Sequence[Contestant], ours: set[str]) -> list[Unit]:
    """A unit each: what cannot be compiled or captured here ends its own unit and is not timed later."""
    return [
        Unit(f"admit {c.name}", partial(admit, stage, case, c, c.name in ours), ADMISSION_SECONDS)
        for c in contestants
    ]


def admit(stage: Stage, case: Case, contestant: Contestant, needed: bool) -> None:
    """Step twice: as it comes and, where that is another thing, again.

    Raises:
        ProcessSpentError: it could not; with a message, a failure, where it is ``needed``.
    """
    try:
        with multiplied_in(case.precision):
            racer = contestant.setup(case, starting_parameters(case))
            with racer.active():
                for _ in range(2):
                    racer.run()
    except Exception as error:
        stage.record.not_run("all", contestant.name, f"failed at its first steps: {last_lines(error)}")
        told = (f"{contestant.name} could not step",) if needed else ()
        raise ProcessSpentError(*told) from error
    stage.record.add(ADMITTED, {"impl": contestant.name})


def bar(stage: Stage, verdict: Verdict) -> None:
    """Let a peer take part no more: it has done something else than it should."""
    stage.record.not_run("all", verdict.backend, _disagreement(verdict))
    stage.record.add(BARRED, {"impl": verdict.backend})


def race(stage: Stage, suite: str, case: Case, contestants: Sequence[Contestant], ours: set[str]) -> None:
    """Check those that were admitted, and time those that agree.

    One of ours, or a baseline, that disagrees is an error and nothing is timed; a peer that does is left out.
    """
    admitted, barred = ({row["impl"] for row in stage.record.found(kind)} for kind in (ADMITTED, BARRED))
    able = [c for c in contestants if c.name in admitted - barred]
    with multiplied_in(case.precision):
        parameters = starting_parameters(case)
        verdicts = gate(case, parameters, able)
        wrong = {v.backend: v for v in verdicts if not v.ok and v.backend not in ours}
        peers_only = not wrong.keys() & {BASELINE.name, MENDED.name}
        for verdict in verdicts:
            if not (peers_only and verdict.backend in wrong):
                stage.record.correctness(verdict.as_dict())
        if not peers_only or not all(v.ok for v in verdicts if v.backend in ours):
            stage.record.not_run(case.name, "all", "the sides do not compute the same")
            return
        for name, verdict in wrong.items():
            stage.record.not_run(case.name, name, _disagreement(verdict))
        agreed = [c for c in able if c.name not in wrong]
        racers = {c.name: c.setup(case, parameters) for c in agreed}
        for row in clocked(suite, case, agreed, racers, case.device):
            stage.record.add("cases", row)


def _disagreement(verdict: Verdict) -> str:
    return f"{verdict.op}: error {verdict.max_rel_error:.1e}, bound {verdict.bound:.1e}"


def starting_parameters(case: Case) -> dict[str, Tensor]:
    """What everyone starts from: the tutorial's initialisation."""
    pyro.set_rng_seed(0)
    state: dict[str, Tensor] = BASELINE.module(case.sizes).state_dict()
    return state
