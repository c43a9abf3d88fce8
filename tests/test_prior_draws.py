"""Draws from the prior chain: by one op, by a loop that autograd records, and by a network step by step."""

import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.distributions import MarkovPrior
from dmm_fast.nn import GatedTransition
from tests.helpers_model import LENGTHS, assert_close, stir, valid_steps

B, T, Z, X = len(LENGTHS), max(LENGTHS), 3, 2


@pytest.mark.parametrize("start", [(), (B,)], ids=["one start", "a start for each row"])
@pytest.mark.parametrize("extra", [0, X], ids=["alone", "with inputs"])
def test_all_ways_to_draw_the_chain_are_equivalent(extra: int, start: tuple[int, ...]) -> None:
    transition = stir(GatedTransition(Z, 4, extra)).double()
    z_0 = torch.linspace(-1, 1, Z, dtype=torch.float64).expand(*start, Z)
    inputs = torch.linspace(-1, 1, B * T * X, dtype=torch.float64).reshape(B, T, X) if extra else None
    lengths = torch.tensor(LENGTHS)

    def draw(by: object) -> Tensor:
        torch.manual_seed(3)
        return MarkovPrior(z_0, by, lengths, T, inputs).rsample((2,))

    recorded = draw(transition.weights)
    assert recorded.requires_grad
    with torch.no_grad():
        at_once, step_by_step = draw(transition.weights), draw(lambda z: transition(z))
        with ops.use_backend("reference"):
            by_reference = draw(transition.weights)
    for z in (at_once, step_by_step, by_reference):
        assert z.shape == (2, B, T, Z)
        assert not z.requires_grad
        assert_close(z, recorded.detach(), 1e-12)
        assert bool((z[:, ~valid_steps()] == 0).all())


def test_weights_of_another_width_are_named() -> None:
    weights = GatedTransition(Z, 4, X + 1).weights
    with pytest.raises(ValueError, match=r"^transition.w_gate_in: expected shape \(4, 5\), got .*\(4, 6\)"):
        MarkovPrior(torch.zeros(Z), weights, torch.tensor(LENGTHS), T, torch.zeros(B, T, X))


def test_the_op_treats_empty_inputs_as_none() -> None:
    eps, lengths = torch.randn(B, T, Z), torch.tensor(LENGTHS)
    weights = GatedTransition(Z, 4).weights
    with torch.no_grad():
        got, expected = (
            ops.transition_scan(eps, torch.zeros(Z), inputs, weights, lengths)
            for inputs in (None, torch.zeros(B, T, 0))
        )
    assert torch.equal(got, expected)
    with pytest.raises(TypeError, match=r"^eps: expected "):
        ops.transition_scan([1.0], torch.zeros(Z), None, weights, lengths)
