"""Checks of an implementation of an op against float64, then its times, eager and from a CUDA graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import errors
from benchmarks.correctness import Verdict
from benchmarks.draws import map_tensors, to_double
from benchmarks.gate import GROSS_ERROR
from benchmarks.gpu.calls import Call, Function, reference_of
from benchmarks.gpu.measure import Step, time_calls, time_graph
from benchmarks.gpu.record import whole_traceback
from benchmarks.gpu.stage import ProcessSpentError, Stage
from benchmarks.timing import Samples


class Part(NamedTuple):
    """A part of a call to time, further fields of its rows, and whether it is captured too.

    With a number of time ``steps`` the rows say what one takes.
    """

    what: str
    step: Step
    extra: Mapping[str, Any]
    graph: bool = True
    steps: int | None = None

    def row(self, samples: Samples) -> dict[str, Any]:
        """The further fields of a row."""
        return {**self.extra, **({"us_per_step": 1e3 * samples.median / self.steps} if self.steps else {})}


def verdicts(call: Call, case: str, name: str, function: Function) -> list[Verdict]:
    """A row for the values and one for the gradients of a call, each the worst of its kind.

    The call's arguments may have put a ReLU's input on two sides of zero: values do not mind, and a gradient
    is held to :data:`~benchmarks.gate.GROSS_ERROR` where eager float32 is nearer than that.
    """
    results = errors.results_of(call.op)
    inputs = map_tensors(call.inputs, lambda _, tensor: tensor.detach().clone())
    truth = results(reference_of(call.op), map_tensors(inputs, to_double))
    eager, got = (
        errors.relative_errors(results(f, inputs), truth) for f in (reference_of(call.op), function)
    )
    rows = []
    for kind, least in (("value", 0.0), ("gradient", GROSS_ERROR)):
        bounds = {key: max(errors.bound(eager[key]), least) for key in got if key.startswith(kind)}
        if bounds:
            worst = max(bounds, key=lambda key: got[key] / bounds[key])
            ok = got[worst] <= bounds[worst]
            rows.append(Verdict(f"{call.op}: worst {kind}", name, case, got[worst], bounds[worst], ok))
    return rows


def clock_if_right(
    stage: Stage,
    suite: str,
    call: Call,
    case: str,
    name: str,
    function: Function,
    parts: Callable[[Function], Sequence[Part]],
) -> None:
    """Time ``parts`` of a call of an implementation; one beyond its bound is recorded and not timed."""
    if name != "reference":
        rows = verdicts(call, case, name, function)
        for row in rows:
            stage.record.correctness(row.as_dict())
        if not all(row.ok for row in rows):
            return stage.record.not_run(case, name, "beyond its bound")
    return clock(stage, suite, case, name, parts(function))


def clock(stage: Stage, suite: str, case: str, impl: str, parts: Sequence[Part]) -> None:
    """Record the times of each part and then, on a GPU, of its replays from a graph.

    Raises:
        ProcessSpentError: a part could not be captured, which is recorded.
    """
    seconds = 0.02 if stage.quick else 0.12
    for part in parts:
        samples = time_calls(part.step, stage.device, seconds=seconds)
        stage.record.case(suite, f"{case}, {part.what}", impl, samples.as_dict(), **part.row(samples))
    for part in parts if stage.device == "cuda" else ():
        if not part.graph:
            continue
        where, replayed = f"{case}, {part.what}", f"{impl}, graph"
        try:
            samples = time_graph(part.step, seconds=seconds)
        except RuntimeError as error:
            stage.record.not_run(where, replayed, f"not captured:\n{whole_traceback(error)}")
            raise ProcessSpentError from error
        stage.record.case(suite, where, replayed, samples.as_dict(), **part.row(samples))


def work_of(call: Call, *, both: bool) -> dict[str, int]:
    """The fields of a row that runs the call forward, or forward and backward."""
    nbytes = call.bytes_both() if both else call.bytes_forward()
    return {"bytes": nbytes, "flops": call.flops() * (3 if both else 1)}
