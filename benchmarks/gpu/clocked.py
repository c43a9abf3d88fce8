"""The rows of one implementation on one call: checked, then timed as it comes and from a CUDA graph."""

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.agreement import Agreement
from benchmarks.gpu.calls import Call, Function
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.measure import Step, time_calls, time_graph
from benchmarks.gpu.record import last_lines
from benchmarks.gpu.stage import Stage, device_works
from benchmarks.timing import Samples

Extra = Callable[[Samples], dict[str, Any]]


def agrees(stage: Stage, agreement: Agreement, name: str, function: Function) -> bool:
    """Whether the implementation is within its bounds; nothing is timed that is not."""
    verdicts = agreement.verdicts(name, function)
    for verdict in verdicts:
        stage.record.correctness(verdict.as_dict())
    return all(verdict.ok for verdict in verdicts)


def clock(
    stage: Stage, suite: str, case: str, impl: str, step: Step, extra: Extra, *, graph: bool = True
) -> None:
    """A row for calls as they come and, on a GPU, one for replays of a graph."""
    seconds = 0.02 if stage.quick else 0.12
    samples = time_calls(step, stage.device, seconds=seconds)
    stage.record.case(suite, case, impl, samples.as_dict(), **extra(samples))
    if stage.device != "cuda" or not graph:
        return
    replayed = f"{impl}, graph"
    try:
        samples = time_graph(step, seconds=seconds)
    except RuntimeError as error:
        stage.record.not_run(case, replayed, f"not captured: {last_lines(error)}")
        if not device_works():
            raise
        return
    stage.record.case(suite, case, replayed, samples.as_dict(), **extra(samples))


def work_of(call: Call, ceilings: Ceilings, *, both: bool) -> Extra:
    """What is said of a row that runs the call forward, or forward and backward."""
    nbytes = call.bytes_both() if both else call.bytes_forward()
    flops = call.flops() * (3 if both else 1)
    return lambda samples: ceilings.share(nbytes, flops, samples.median)
