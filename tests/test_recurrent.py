"""Other recurrent networks in place of the package's, and the package's in place of torch's."""

from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dmm_fast import InferenceNetwork
from dmm_fast._recurrent import read
from dmm_fast.nn import NotFusedWarning, TwoWayNetwork
from tests.helpers_model import LENGTHS, SIZES, assert_close, loss_and_grads, make_batch, small_dmm

D, H = SIZES["input_dim"], SIZES["rnn_dim"]
H_0 = torch.linspace(-1, 1, H)


class PlainLSTM(nn.LSTM):
    """An LSTM with the calling convention of Pyro's example: a packed batch and one tensor of states."""

    def forward(self, x: Any, h_0: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, (h_0, torch.zeros_like(h_0)))


class Lookahead(nn.Module):
    """A user-defined network with the documented signature."""

    def forward(self, x: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
        return x.flip(1).cumsum(1).flip(1).mean(-1, keepdim=True) + h_0


NETWORKS: dict[str, Any] = {
    "rnn": lambda: nn.RNN(D, H, nonlinearity="relu", batch_first=True),
    "gru": lambda: nn.GRU(D, H),
    "lstm": lambda: nn.LSTM(D, H, num_layers=2, batch_first=True),
    "lstm with a projection": lambda: nn.LSTM(D, 9, proj_size=H, batch_first=True),
    "both directions": lambda: nn.GRU(D, H, batch_first=True, bidirectional=True),
    "a subclass": lambda: PlainLSTM(D, H, batch_first=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchs_networks_read_each_row_backward(name: str) -> None:
    torch.manual_seed(0)
    rnn = NETWORKS[name]()
    batch = make_batch(T=8)
    x, lengths = batch.mini_batch, batch.mini_batch_seq_lengths
    h = read(rnn, x, H_0, lengths)
    directions = 2 if rnn.bidirectional else 1
    assert h.shape == (len(LENGTHS), 8, directions * H)
    start = H_0.expand(rnn.num_layers * directions, 1, -1).contiguous()
    for b, length in enumerate(LENGTHS):
        row = x[b : b + 1, :length].flip(1)
        hidden: Any = start
        if type(rnn) is nn.LSTM:
            hidden = (start, torch.zeros(rnn.num_layers, 1, rnn.hidden_size))
        alone, _ = rnn(row if rnn.batch_first else row.transpose(0, 1), hidden)
        alone = alone if rnn.batch_first else alone.transpose(0, 1)
        assert_close(h[b : b + 1, :length], alone.flip(1), 1e-5, f"row {b}")
        assert bool((h[b, length:] == 0).all())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_a_packed_batch_is_read_as_by_an_rnn_of_torch(layers: int, enforce_sorted: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.RNN(D, H, layers, nonlinearity="relu", batch_first=True)
    ours = InferenceNetwork(D, H, layers)
    ours.load_state_dict(theirs.state_dict())
    lengths = sorted(LENGTHS, reverse=True) if enforce_sorted else list(LENGTHS)
    x = torch.randn(len(lengths), max(lengths), D)
    packed = pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted)
    h_0 = torch.randn(layers, len(lengths), H)
    (h, last), (their_h, their_last) = ours(packed, h_0), theirs(packed, h_0)
    assert torch.equal(h.batch_sizes, their_h.batch_sizes)
    assert_close(pad_packed_sequence(h, True)[0], pad_packed_sequence(their_h, True)[0], 1e-5)
    assert_close(last, their_last, 1e-5)
    (mine,) = torch.autograd.grad(h.data.square().sum() + last.sum(), [ours.weight_hh_l0])
    (other,) = torch.autograd.grad(their_h.data.square().sum() + their_last.sum(), [theirs.weight_hh_l0])
    assert_close(mine, other, 1e-5)


def test_the_guide_supports_any_network_with_a_warning() -> None:
    dmm, batch = small_dmm(), make_batch()
    dmm.rnn = Lookahead()
    with pytest.warns(NotFusedWarning, match="^rnn is computed by its own forward, .*: it is a Lookahead"):
        h = dmm.encode(dmm.mini_batch(*batch))
    assert_close(h, dmm.rnn(batch.mini_batch, dmm.h_0.flatten(), batch.mini_batch_seq_lengths), 1e-6)


@pytest.mark.parametrize("inference", ["st-l", "st-lr", "mf-lr"])
def test_torchs_networks_read_in_the_direction_of_the_guide(inference: str) -> None:
    """Compare a network of torch with the package's network of the same weights."""
    dmm, batch = small_dmm(inference=inference), make_batch()
    expected = dmm.encode(dmm.mini_batch(*batch))
    own = [dmm.rnn.left, dmm.rnn.right] if inference.endswith("lr") else [dmm.rnn]
    others = [nn.RNN(D, H, nonlinearity="relu", batch_first=True) for _ in own]
    for mine, other in zip(own, others, strict=True):
        other.load_state_dict(mine.state_dict())
    dmm.rnn = TwoWayNetwork(*others) if len(others) == 2 else others[0]
    with pytest.warns(NotFusedWarning, match="^rnn is computed by its own forward, .*: it is a RNN"):
        h = dmm.encode(dmm.mini_batch(*batch))
    assert_close(h, expected, 1e-5)


def test_a_module_of_both_directions_is_given_both_states() -> None:
    dmm, batch = small_dmm(inference="st-lr"), make_batch()
    dmm.rnn = network = Lookahead()
    network.forward = lambda x, h_0, lengths: x.new_zeros(*x.shape[:2], 1) + h_0[0] - h_0[1]
    with pytest.warns(NotFusedWarning):
        h = dmm.encode(dmm.mini_batch(*batch))
    assert torch.equal(h[2, 3], dmm.h_0[0, 0] - dmm.h_0[1, 0])


@pytest.mark.parametrize("lengths", [LENGTHS, (3, 4)])
@pytest.mark.parametrize(
    ("inference", "rnn", "message"),
    [
        ("st-lr", nn.GRU(D, H), r"a TwoWayNetwork or a module that takes h_0 \[2, H\], got GRU"),
        ("mf-lr", InferenceNetwork(D, H), r"a TwoWayNetwork or a module that .*, got InferenceNetwork"),
        ("st-l", InferenceNetwork(D, H), "an InferenceNetwork of direction 'forward', got 'backward'"),
        (
            "st-lr",
            TwoWayNetwork(InferenceNetwork(D, H), InferenceNetwork(D, H)),
            "an InferenceNetwork of direction 'forward', got 'backward'",
        ),
        (
            "st-l",
            TwoWayNetwork(nn.GRU(D, H), nn.GRU(D, H)),
            "a network that reads forward in time, got one of both",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::dmm_fast.nn.NotFusedWarning")
def test_a_network_of_other_directions_is_named(
    inference: str, rnn: nn.Module, message: str, lengths: tuple[int, ...]
) -> None:
    """With two rows as well, whose states could be mistaken for two directions."""
    dmm = small_dmm(inference=inference)
    dmm.rnn = rnn
    with pytest.raises(ValueError, match=f"^rnn: expected {message}"):
        dmm.encode(dmm.mini_batch(*make_batch(lengths)))


@pytest.mark.parametrize("rnn", ["relu", "lstm", "gru"])
@pytest.mark.parametrize("inference", ["st-lr", "mf-r"])
def test_guides_under_autocast(inference: str, rnn: str) -> None:
    dmm, batch = small_dmm(inference=inference, rnn=rnn), make_batch()
    expected, _ = loss_and_grads(dmm, batch, Trace_ELBO())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, grads = loss_and_grads(dmm, batch, Trace_ELBO())
    assert loss == pytest.approx(expected, rel=0.02)
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads.values())


@pytest.mark.parametrize(
    ("rnn", "message"),
    [
        (nn.GRU(D, H + 1), r"^rnn: expected hidden_size 7, which h_0 has, got 8"),
        (nn.GRU(D + 1, H), r"^rnn: expected input_size 5, which x has, got 6"),
        (nn.Linear(D, H), r"^rnn: expected a module with forward\(x, h_0, lengths\), or torch's RNN, GRU"),
        (nn.Bilinear(D, H, 2), r"^rnn: expected a module with forward\(x, h_0, lengths\)"),
    ],
)
def test_a_network_with_another_signature_is_named(rnn: nn.Module, message: str) -> None:
    batch = make_batch()
    with pytest.raises((TypeError, ValueError), match=message):
        read(rnn, batch.mini_batch, H_0, batch.mini_batch_seq_lengths)


def test_a_result_of_another_shape_is_named() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
            return x[:, 0]

    batch = make_batch()
    with pytest.raises(ValueError, match=r"^rnn: expected a result of shape \(4, 6, H\), got float32"):
        read(Last(), batch.mini_batch, H_0, batch.mini_batch_seq_lengths)
