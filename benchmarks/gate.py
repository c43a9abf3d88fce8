"""What a case's contestants must agree on before the clock starts, however large the case."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from benchmarks.cases import Case
from benchmarks.correctness import LOSS_BOUND, Verdict, check, worst_gradient_error
from benchmarks.racer import Contestant

# Float32 against float32 there is no yardstick for gradients. A ReLU input that two contestants see on
# two sides of zero moves one by some 2e-4; a row lost of 229 would by 4e-3 or more.
GROSS_ERROR = 2e-3
SEED = 0


def gate(case: Case, parameters: Mapping[str, Tensor], contestants: Sequence[Contestant]) -> list[Verdict]:
    """The verdicts on ``case``, or on the cases that stand in for it and, in float32, on itself."""
    if not case.gate:
        return check(case, parameters, contestants)
    verdicts = [v for smaller in case.gate for v in check(smaller, parameters, contestants)]
    return verdicts + same_in_float32(case, parameters, contestants)


def same_in_float32(
    case: Case, parameters: Mapping[str, Tensor], contestants: Sequence[Contestant]
) -> list[Verdict]:
    """Loss and gradients on the first batch, against those of the first contestant.

    All of ``contestants`` must minimise the same loss.
    """
    first, *others = contestants
    batch, where = case.batches[0], f"{case.name}, batch 0"
    loss, grads = first.setup(case, parameters).loss_and_grads(batch, SEED)
    verdicts = []
    for contestant in others:
        got, got_grads = contestant.setup(case, parameters).loss_and_grads(batch, SEED)
        errors = {
            "SVI loss": (abs(got - loss) / abs(loss), LOSS_BOUND[case.precision]),
            "SVI gradients": (worst_gradient_error(got_grads, grads), GROSS_ERROR),
        }
        for what, (error, bound) in errors.items():
            op = f"{what}, float32 against {first.name}"
            verdicts.append(Verdict(op, contestant.name, where, error, bound, error <= bound))
    return verdicts
