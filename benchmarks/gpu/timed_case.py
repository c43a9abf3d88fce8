"""Timed cases of single ops: a check against float64, then times of eager calls and of graph replays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import errors
from benchmarks.correctness import CheckResult
from benchmarks.draws import map_tensors, to_double
from benchmarks.equivalence import GROSS_ERROR
from benchmarks.gpu.calls import Call, Function, reference_of
from benchmarks.gpu.measure import Step, time_calls, time_graph
from benchmarks.gpu.record import whole_traceback
from benchmarks.gpu.stage import ProcessSpentError, Stage
from benchmarks.timing import Samples


class Part(NamedTuple):
    """A part of a call to time.

    Attributes:
        what: name of the part.
        step: function to time.
        extra: further fields of the row.
        graph: also time its replay from a CUDA graph.
        steps: time steps; if given, the row has the microseconds per time step.
    """

    what: str
    step: Step
    extra: Mapping[str, Any]
    graph: bool = True
    steps: int | None = None

    def row(self, samples: Samples) -> dict[str, Any]:
        """The further fields of the row."""
        return {**self.extra, **({"us_per_step": 1e3 * samples.median / self.steps} if self.steps else {})}


def check_results(call: Call, case: str, name: str, function: Function) -> list[CheckResult]:
    """Compare a call with float64: a row for the worst of its values, and one for the worst of its gradients.

    ReLU inputs may be so close to zero that their sign depends on rounding, which affects gradients but not
    values. The bound of gradients is therefore at least :data:`~benchmarks.equivalence.GROSS_ERROR`.
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
            rows.append(CheckResult(f"{call.op}: worst {kind}", name, case, got[worst], bounds[worst], ok))
    return rows


def time_if_correct(
    stage: Stage,
    suite: str,
    call: Call,
    case: str,
    name: str,
    function: Function,
    parts: Callable[[Function], Sequence[Part]],
) -> None:
    """Check an implementation of a call and time ``parts`` of it; if the check fails, it is not timed."""
    if name != "reference":
        rows = check_results(call, case, name, function)
        for row in rows:
            stage.record.correctness(row.as_dict())
        if not all(row.ok for row in rows):
            return stage.record.not_run(case, name, "beyond its bound")
    return time_parts(stage, suite, case, name, parts(function))


def time_parts(stage: Stage, suite: str, case: str, impl: str, parts: Sequence[Part]) -> None:
    """Record the times of each part and, on a GPU, those of its replay from a graph.

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
    """Bytes and operations of the forward pass, or of forward and backward pass, as fields of a row."""
    nbytes = call.bytes_both() if both else call.bytes_forward()
    return {"bytes": nbytes, "flops": call.flops() * (3 if both else 1)}
