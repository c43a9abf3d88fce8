"""The rows of one implementation on one call: checked, then timed as it comes and from a CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.gpu.agreement import Agreement
from benchmarks.gpu.calls import Call, Function
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.measure import Step, time_calls, time_graph
from benchmarks.gpu.record import last_lines
from benchmarks.gpu.stage import ProcessSpentError, Stage
from benchmarks.timing import Samples

Extra = Callable[[Samples], dict[str, Any]]


class Part(NamedTuple):
    """What is timed of a call, what a row says besides, and whether it is captured too."""

    what: str
    step: Step
    extra: Extra
    graph: bool = True


def agrees(stage: Stage, agreement: Agreement, name: str, function: Function) -> bool:
    """Whether the implementation is within its bounds; nothing is timed that is not."""
    verdicts = agreement.verdicts(name, function)
    for verdict in verdicts:
        stage.record.correctness(verdict.as_dict())
    return all(verdict.ok for verdict in verdicts)


def clock(stage: Stage, suite: str, case: str, impl: str, parts: Sequence[Part]) -> None:
    """A row for each part as it comes and then, on a GPU, for its replays from a graph.

    Raises:
        ProcessSpentError: a part could not be captured, which is recorded.
    """
    seconds = 0.02 if stage.quick else 0.12
    for part in parts:
        samples = time_calls(part.step, stage.device, seconds=seconds)
        stage.record.case(suite, f"{case}, {part.what}", impl, samples.as_dict(), **part.extra(samples))
    for part in parts if stage.device == "cuda" else ():
        if not part.graph:
            continue
        where, replayed = f"{case}, {part.what}", f"{impl}, graph"
        try:
            samples = time_graph(part.step, seconds=seconds)
        except RuntimeError as error:
            stage.record.not_run(where, replayed, f"not captured: {last_lines(error)}")
            raise ProcessSpentError from error
        stage.record.case(suite, where, replayed, samples.as_dict(), **part.extra(samples))


def work_of(call: Call, ceilings: Ceilings, *, both: bool) -> Extra:
    """What is said of a row that runs the call forward, or forward and backward."""
    nbytes = call.bytes_both() if both else call.bytes_forward()
    flops = call.flops() * (3 if both else 1)
    return lambda samples: ceilings.share(nbytes, flops, samples.median)
