"""Equivalence check of the implementations of a case, of any size, before they are timed."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.correctness import LOSS_BOUND, CheckResult, check, worst_gradient_error
from benchmarks.stepper import Implementation

# Comparing float32 with float32 gives no estimate of the rounding error of gradients. A ReLU input whose sign
# differs between two implementations changes a gradient by about 2e-4; losing one row of 229 changes it by
# 4e-3 or more.
GROSS_ERROR = 2e-3
SEED = 0


def check_equivalence(
    case: Case, parameters: Mapping[str, Tensor], implementations: Sequence[Implementation]
) -> list[CheckResult]:
    """Check ``case`` itself; or else its smaller ``check_cases``, and itself in float32 only."""
    if not case.check_cases:
        return check(case, parameters, implementations)
    check_results = [v for smaller in case.check_cases for v in check(smaller, parameters, implementations)]
    return check_results + same_in_float32(case, parameters, implementations)


def same_in_float32(
    case: Case, parameters: Mapping[str, Tensor], implementations: Sequence[Implementation]
) -> list[CheckResult]:
    """Compare loss and gradients on the first batch with those of the first implementation.

    All implementations must minimise the same loss.
    """
    first, *others = implementations
    batch, where = case.batches[0], f"{case.name}, batch 0"
    loss, grads = first.setup(case, parameters).loss_and_grads(batch, SEED)
    check_results = []
    for implementation in others:
        got, got_grads = implementation.setup(case, parameters).loss_and_grads(batch, SEED)
        errors = {
            "SVI loss": (abs(got - loss) / abs(loss), LOSS_BOUND[case.precision]),
            "SVI gradients": (worst_gradient_error(got_grads, grads), GROSS_ERROR),
        }
        for what, (error, bound) in errors.items():
            op = f"{what}, float32 against {first.name}"
            check_results.append(CheckResult(op, implementation.name, where, error, bound, error <= bound))
    return check_results
