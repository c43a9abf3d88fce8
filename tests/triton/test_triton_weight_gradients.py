"""Weight gradients of groups of layers compared with float64, interpreted or on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dmm_fast.triton import DEVICE as TRITON_DEVICE
from tests.compare import error
from tests.device import DEVICE

if DEVICE != TRITON_DEVICE:
    pytest.skip(
        "runs where Triton's kernels are interpreted, make triton, or on a GPU", allow_module_level=True
    )

from dmm_fast.ops import _scan_gemms
from dmm_fast.triton import step_gradients, weight_gradients
from dmm_fast.triton.rows import steps_of
from dmm_fast.triton.tuning import Tiles
from dmm_fast.triton.weight_gradients import Cut, Layer

P, B, T, H, Z = 2, 5, 70, 75, 33
LENGTHS = torch.tensor([70, 1, 0, 33, 64])

Grads = tuple[Tensor, ...]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def valid() -> Tensor:
    return (torch.arange(T) < LENGTHS[:, None])[..., None].expand(P, B, T, 1)


def padded(tensor: Tensor, value: float) -> Tensor:
    """The tensor with ``value`` past the ends."""
    return torch.where(valid(), tensor, value)


def of_rnn(value: float, double: bool) -> Grads:
    """By torch in float64, or by the kernels, with ``value`` past the ends and a shared initial state."""
    rows = randn(P, B, T, H)
    given = padded(rows, value), randn(P, B, H), padded(rows.relu(), value), randn(H)[None, None]
    dx_proj, dh_0, h, h_0 = (t.double() if double else t.to(DEVICE) for t in given)
    if double:
        start = h_0.expand(P, B, H)
        dw = _scan_gemms.rnn_weight_gradient(dx_proj, h, start, LENGTHS, "backward")
        return dw, dh_0.sum((0, 1), keepdim=True)
    return step_gradients.rnn_gradients(dx_proj, dh_0, h, h_0, LENGTHS.to(DEVICE), "backward")


def of_combiner(value: float, double: bool) -> Grads:
    """As :func:`of_rnn`, with an initial state for each sequence."""
    given = [padded(randn(P, B, T, width), value) for width in (H, 2 * Z, H, H, Z)]
    da, dout, g, h, z = (t.double() if double else t.to(DEVICE) for t in given)
    dz_q_0, z_q_0 = (t.double() if double else t.to(DEVICE) for t in randn(2, P, B, Z))
    if double:
        return dz_q_0, *_scan_gemms.combiner_weight_gradients(da, dout, g, h, z, z_q_0, LENGTHS)
    return step_gradients.combiner_gradients(da, dout, dz_q_0, g, h, z, z_q_0, LENGTHS.to(DEVICE))


def of_combiner_from_one(value: float, double: bool) -> Grads:
    """See :func:`of_rnn`."""
    given = [padded(randn(P, B, T, width), value) for width in (H, 2 * Z, H, H, Z)]
    da, dout, g, h, z = (t.double() if double else t.to(DEVICE) for t in given)
    dz_q_0, z_q_0 = (t.double() if double else t.to(DEVICE) for t in (randn(P, B, Z), randn(1, 1, Z)))
    if double:
        start, total = z_q_0.expand(P, B, Z), dz_q_0.sum((0, 1), keepdim=True)
        return total, *_scan_gemms.combiner_weight_gradients(da, dout, g, h, z, start, LENGTHS)
    return step_gradients.combiner_gradients(da, dout, dz_q_0, g, h, z, z_q_0, LENGTHS.to(DEVICE))


def of_projection(value: float, double: bool) -> Grads:
    """See :func:`of_rnn`."""
    dout, x = padded(randn(P, B, T, H), value), padded(randn(P, B, T, Z), value)
    if double:
        dout, x = dout.double().flatten(0, 2), x.double().flatten(0, 2)
        return dout.mT @ x, dout.sum(0)
    return step_gradients.projection_weight_gradients(dout.to(DEVICE), x.to(DEVICE), LENGTHS.to(DEVICE))


@pytest.mark.parametrize("cut", [weight_gradients.MANY_SUMS, weight_gradients.FEW_SUMS])
@pytest.mark.parametrize("programs", [1, 512])
@pytest.mark.parametrize("gradients", [of_rnn, of_combiner, of_combiner_from_one, of_projection])
def test_gradients_over_steps_do_not_read_past_the_ends(
    gradients: Callable[[float, bool], Grads], programs: int, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_gradients, "cut_for", lambda sums, layers: cut._replace(programs=programs))
    truth = gradients(0.0, True)
    got = gradients(float("nan"), False)
    again = gradients(0.0, False)
    assert len(got) == len(truth)
    for mine, same, right in zip(got, again, truth, strict=True):
        assert torch.equal(mine, same)
        assert error(mine, right) < 1e-6


def test_each_flow_has_the_gradients_of_its_own_rows() -> None:
    K, F, lengths = 2, 9, torch.tensor([4, 0, 3])
    ends = (torch.arange(4) >= lengths[:, None])[..., None, None]
    given = [randn(2, 3, 4, K, width).masked_fill(ends, float("nan")) for width in (F, 2 * Z, Z, F)]
    da, dout, x, a = (t.to(DEVICE) for t in given)
    got = step_gradients.flow_gradients(da, dout, x, a, lengths.to(DEVICE), torch.float32)
    da, dout, x, a = (t.double().nan_to_num(0.0).flatten(0, 2).transpose(0, 1) for t in given)
    pairs = (da, x), (dout[..., :Z], a), (dout[..., Z:], a)
    truth = [gradient for delta, inputs in pairs for gradient in (delta.mT @ inputs, delta.sum(1))]
    assert max(error(mine, right) for mine, right in zip(got, truth, strict=True)) < 1e-6


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize("empty", [slice(0, 70), slice(60, 131), slice(0, 131)])
def test_many_empty_sequences(empty: slice, direction: str) -> None:
    """More sequences than a search reads at once, each with its own initial state."""
    lengths = torch.arange(131) % 4
    lengths[empty] = 0
    dx_proj, h = randn(2, 131, 3, 6), randn(2, 131, 3, 6)
    dx_proj[:, torch.arange(3) >= lengths[:, None]] = 0.0
    dh_0, h_0 = randn(2, 131, 6), randn(131, 2, 6).transpose(0, 1)
    truth = _scan_gemms.rnn_weight_gradient(*(t.double() for t in (dx_proj, h, h_0)), lengths, direction)
    dw, _ = step_gradients.rnn_gradients(*(t.to(DEVICE) for t in (dx_proj, dh_0, h, h_0, lengths)), direction)
    assert (dw - truth.to(DEVICE)).abs().max() <= 1e-6 * truth.abs().max()


@pytest.mark.parametrize("tiles", [Tiles(), Tiles(16, 32, 16), Tiles(128, 16, 64)])
def test_any_tiles_give_the_same_sums(tiles: Tiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_gradients, "cut_for", lambda sums, layers: Cut(tiles))
    rows = randn(300, 90)
    pieces = [slice(0, 1), slice(1, 66), slice(66, 90)]
    layers = [
        Layer(rows.to(DEVICE)[:, delta], rows.to(DEVICE)[:, inputs]) for delta in pieces for inputs in pieces
    ]
    got = weight_gradients.weight_gradients(layers, steps_of(rows[None, :, None], None), torch.float32)
    exact = rows.double()
    truth = [
        gradient
        for delta in pieces
        for inputs in pieces
        for gradient in (exact[:, delta].mT @ exact[:, inputs], exact[:, delta].sum(0))
    ]
    assert max(error(mine, right) for mine, right in zip(got, truth, strict=True)) < 1e-6


def test_no_steps_have_no_gradient() -> None:
    rows = torch.empty(0, 7, device=DEVICE)
    steps = steps_of(rows[None, :, None], None)
    (dw, db) = weight_gradients.weight_gradients([Layer(rows, rows[:, :3])], steps, torch.float16)
    assert (dw.shape, db.shape, dw.dtype) == ((7, 3), (7,), torch.float16)
    assert float(dw.abs().sum() + db.abs().sum()) == 0.0
