"""What is timed is checked first, at the size it is timed at: against the float64 reference."""

from functools import cached_property

import torch

from benchmarks import errors
from benchmarks.correctness import Verdict
from benchmarks.errors import EAGER_FACTOR, FLOOR, Results
from benchmarks.gate import GROSS_ERROR
from benchmarks.gpu.calls import Call, Function, reference_of


class Agreement:
    """The truth about one call, computed once for all who are held to it.

    Draws come as they come, so a ReLU's input may lie on two sides of zero: values do not mind, a gradient is
    held to :data:`~benchmarks.gate.GROSS_ERROR` where eager float32 is nearer than that.
    """

    def __init__(self, call: Call, case: str) -> None:
        self._call, self._case = call, case

    @cached_property
    def _truth(self) -> Results:
        inputs = errors.map_tensors(self._call.inputs, lambda tensor: errors.to_double(tensor.detach()))
        return errors.results_of(self._call.op)(reference_of(self._call.op), inputs)

    @cached_property
    def _eager(self) -> dict[str, float]:
        return self._errors(reference_of(self._call.op))

    def _errors(self, function: Function) -> dict[str, float]:
        inputs = errors.map_tensors(self._call.inputs, torch.Tensor.detach)
        return errors.relative_errors(errors.results_of(self._call.op)(function, inputs), self._truth)

    def verdicts(self, name: str, function: Function) -> list[Verdict]:
        """One row for the values and one for the gradients, each the worst of its kind."""
        got = self._errors(function)
        rows = []
        for kind, least in (("value", FLOOR), ("gradient", GROSS_ERROR)):
            keys = [key for key in got if key.startswith(kind)]
            if not keys:
                continue
            bounds = {key: max(EAGER_FACTOR * self._eager[key], least) for key in keys}
            worst = max(keys, key=lambda key: got[key] / bounds[key])
            ok = got[worst] <= bounds[worst]
            op = f"{self._call.op}: worst {kind}"
            rows.append(Verdict(op, name, self._case, got[worst], bounds[worst], ok))
        return rows
