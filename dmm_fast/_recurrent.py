"""Recurrent networks that read a batch backward or forward in time: this package's, torch's or a user's."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dmm_fast import check, ops
from dmm_fast._share import dropout
from dmm_fast.data._batches import reverse_sequences
from dmm_fast.reference import valid_steps


class InferenceNetwork(nn.Module):
    """The RNN of the guide: ``h_t`` summarises x_{t:T} if it runs backward in time, x_{1:t} if forward.

    The parameters are those of ``nn.RNN`` under the same names. Each row is read backward from its own end,
    so nothing is reversed, sorted or packed. Called with a packed batch, as the guide of Pyro's example does,
    the module behaves as an ``nn.RNN``.

    Args:
        input_size: number of features ``D`` of x_t.
        hidden_size: number of units ``H`` of each layer.
        num_layers: number of layers, each reading the one below in the same direction of time.
        nonlinearity: ``"relu"`` or ``"tanh"``.
        dropout: probability of dropping an output of any layer but the last, while training.
        direction: the direction of time, ``"backward"`` or ``"forward"``.

    Raises:
        ValueError: a size is not positive, a probability is not between 0 and 1, or ``nonlinearity`` or
            ``direction`` is unknown.

    Source: arXiv 1609.09869, section 4; ``self.rnn`` in Pyro's ``examples/dmm.py``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
        dropout: float = 0.0,
        direction: str = "backward",
    ) -> None:
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            check.size(name, size)
        if not isinstance(nonlinearity, str) or nonlinearity not in ("relu", "tanh"):
            check.fail("nonlinearity", "'relu' or 'tanh'", repr(nonlinearity))
        check.probability("dropout", dropout)
        check_direction(direction)
        self.direction = direction
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.nonlinearity, self.dropout = num_layers, nonlinearity, dropout
        bound = 1.0 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size
            for name, shape in (
                ("weight_ih", (hidden_size, inputs)),
                ("weight_hh", (hidden_size, hidden_size)),
                ("bias_ih", (hidden_size,)),
                ("bias_hh", (hidden_size,)),
            ):
                value = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                self.register_parameter(f"{name}_l{layer}", value)

    def forward(self, x: Tensor | PackedSequence, h_0: Tensor, lengths: Tensor | None = None) -> Any:
        """``h [..., B, T, H]`` for ``x [..., B, T, D]``; zero past the end of each row.

        Args:
            x: ``[..., B, T, D]``; entries past the end of a row are ignored. Or, without ``lengths``, a
                packed batch whose rows are already reversed: the result is then that of an ``nn.RNN``, a
                packed ``h`` in the order of ``x`` and the last state, ``[num_layers, B, H]``.
            h_0: the initial state of every layer, broadcastable to ``[..., B, H]``. With a packed batch one
                state for each layer, ``[num_layers, B, H]``.
            lengths: int64 ``[B]``.

        Raises:
            ValueError: a shape, dtype, device or length is wrong.
            TypeError: ``x`` is neither a floating-point tensor nor a packed batch.
        """
        if isinstance(x, PackedSequence):
            return self._forward_packed(x, h_0)
        return self._layers(x, [h_0] * self.num_layers, lengths)[-1]

    def _layers(self, x: Tensor, starts: list[Tensor], lengths: Any) -> list[Tensor]:
        """The ``h`` of every layer."""
        B, T, D = check.sequences("x", x)
        if self.input_size != D:
            check.trailing("x", x, (B, T, self.input_size), "[..., B, T, D]")
        outputs: list[Tensor] = []
        for layer, h_0 in enumerate(starts):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = dropout(outputs[-1], self.dropout, self.training) if outputs else x
            x_proj = ops.input_projection(h, w_ih, b_ih + b_hh, lengths)
            outputs.append(ops.rnn_scan(x_proj, w_hh, h_0, lengths, self.nonlinearity, self.direction))
        return outputs

    def _forward_packed(self, x: PackedSequence, h_0: Tensor) -> tuple[PackedSequence, Tensor]:
        padded, on_host = pad_packed_sequence(x, batch_first=True)
        check.shape("h_0", h_0, (self.num_layers, padded.shape[0], self.hidden_size))
        lengths = on_host.to(padded.device)
        # A packed batch is read from its first step on, which is backward in time if its rows are reversed.
        is_backward = self.direction == "backward"
        x_rows = reverse_sequences(padded, lengths) if is_backward else padded
        outputs = self._layers(x_rows, list(h_0.unbind(0)), lengths)
        h = reverse_sequences(outputs[-1], lengths) if is_backward else outputs[-1]
        if x.sorted_indices is not None:
            h, on_host = h.index_select(0, x.sorted_indices), on_host[x.sorted_indices.cpu()]
        packed = pack_padded_sequence(h, on_host, batch_first=True)
        ends = torch.zeros_like(lengths) if is_backward else lengths - 1
        rows = torch.arange(len(ends), device=ends.device)
        last = torch.stack([each[rows, ends] for each in outputs])
        return PackedSequence(packed.data, packed.batch_sizes, x.sorted_indices, x.unsorted_indices), last


class TwoWayNetwork(nn.Module):
    """Two recurrent networks: ``left`` reads x_{1:t} forward in time, ``right`` reads x_{t:T} backward.

    Args:
        left: the network that reads forward: an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, an
            :class:`InferenceNetwork`, or a module that is called like one.
        right: the network that reads backward, likewise.
    """

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        for name, network in (("left", left), ("right", right)):
            check.kind(name, network, nn.Module)
        self.left, self.right = left, right

    def forward(self, x: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
        """``h [B, T, H]``, the sum of both, for ``x [B, T, D]``.

        Args:
            x: ``[B, T, D]``, zero past the end of each row.
            h_0: ``[2, H]``, the initial states of the left and the right network.
            lengths: int64 ``[B]``.

        Raises:
            ValueError: a shape, dtype, device or length is wrong.
            TypeError: ``x`` is not a floating-point tensor.
        """
        B, T, D = check.sequences("x", x)
        check.shape("x", x, (B, T, D))
        check.lengths(lengths, B, T, x.device)
        check.like("h_0", h_0, x, "x")
        check.trailing("h_0", h_0, (2, -1), "[2, H]")
        check.shape("h_0", h_0, h_0.shape[-2:])
        left, right = h_0.unbind()
        return read(self.left, x, left, lengths, "forward") + read(self.right, x, right, lengths)


def make_network(
    kind: str, input_size: int, hidden_size: int, num_layers: int, dropout: float, direction: str
) -> nn.Module:
    """A new recurrent network.

    Args:
        kind: ``"relu"`` or ``"tanh"``, computed by ``rnn_scan``; ``"lstm"`` or ``"gru"``, torch's own.
        input_size: number of features ``D``.
        hidden_size: number of units ``H`` of each layer.
        num_layers: number of layers.
        dropout: dropout probability between layers, while training.
        direction: ``"backward"``, ``"forward"``, or ``"both"`` for a :class:`TwoWayNetwork`.
    """
    if direction == "both":
        right, left = (
            make_network(kind, input_size, hidden_size, num_layers, dropout, each)
            for each in ("backward", "forward")
        )
        return TwoWayNetwork(left, right)
    if kind in ("relu", "tanh"):
        return InferenceNetwork(input_size, hidden_size, num_layers, kind, dropout, direction)
    network = nn.LSTM if kind == "lstm" else nn.GRU
    # With a single layer torch warns that dropout has no effect.
    between = dropout if num_layers > 1 else 0.0
    return network(input_size, hidden_size, num_layers, batch_first=True, dropout=between)


def check_direction(direction: object) -> None:
    """Check a direction of time.

    Raises:
        ValueError: it is neither ``"backward"`` nor ``"forward"``.
    """
    if not isinstance(direction, str) or direction not in ("backward", "forward"):
        check.fail("direction", "'backward' or 'forward'", repr(direction))


def read(rnn: nn.Module, x: Tensor, h_0: Tensor, lengths: Tensor, direction: str = "backward") -> Tensor:
    """``h [B, T, H]`` from any recurrent network that reads a batch backward or forward in time.

    ``h`` is zero past the end of each row, except possibly for a user's module.

    Args:
        rnn: an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` (whose cell state starts at 0), which reads reversed
            rows if ``direction`` is backward; or any other module, called like an :class:`InferenceNetwork`,
            ``rnn(x, h_0, lengths)``. A subclass of the three with its own ``forward`` is called as Pyro's
            example calls its network, with a packed batch of those rows and ``h_0 [layers, B, H]``.
        x: ``[B, T, D]``, zero past the end of each row.
        h_0: ``[H]``; ``[2, H]`` for a :class:`TwoWayNetwork` or another module that reads in both directions.
        lengths: int64 ``[B]``.
        direction: the direction in which torch's networks read. An :class:`InferenceNetwork` must have the
            same; a user's module reads in its own direction.

    Raises:
        ValueError: the result has the wrong shape, the sizes of ``x`` or ``h_0`` differ from the network's,
            or ``rnn`` reads in the wrong direction, or in one direction where two are needed.
        TypeError: ``rnn`` takes other arguments, or its result is not a floating-point tensor.
    """
    _check_directions(rnn, h_0, direction)
    if isinstance(rnn, nn.RNNBase):
        h = _run_torch_rnn(rnn, x, h_0, lengths, direction == "backward")
    else:
        expected = "a module with forward(x, h_0, lengths), or torch's RNN, GRU or LSTM"
        check.takes("rnn", rnn, (x, h_0, lengths), {}, expected)
        h = rnn(x, h_0, lengths)
    if not isinstance(h, Tensor) or h.dim() < 3 or h.shape[-3:-1] != x.shape[-3:-1]:
        check.fail("rnn", f"a result of shape ({x.shape[0]}, {x.shape[1]}, H)", check.describe(h))
    # Under autocast torch's networks return half precision.
    return check.floating("rnn", h).to(x.dtype)


def _check_directions(rnn: nn.Module, h_0: Tensor, direction: str) -> None:
    """Check that a network of known direction reads in as many directions as ``h_0`` has rows."""
    # Without this check two states would be taken for those of a batch of two rows.
    if h_0.dim() > 1 and isinstance(rnn, nn.RNNBase | InferenceNetwork):
        check.fail("rnn", "a TwoWayNetwork or a module that takes h_0 [2, H]", type(rnn).__name__)
    if h_0.dim() == 1 and isinstance(rnn, TwoWayNetwork):
        check.fail("rnn", f"a network that reads {direction} in time", "one of both directions")
    if isinstance(rnn, InferenceNetwork) and rnn.direction != direction:
        check.fail("rnn", f"an InferenceNetwork of direction {direction!r}", repr(rnn.direction))


def _run_torch_rnn(rnn: nn.RNNBase, x: Tensor, h_0: Tensor, lengths: Tensor, is_reversed: bool) -> Tensor:
    width = rnn.proj_size or rnn.hidden_size
    if h_0.shape[-1] != width:
        check.fail("rnn", f"hidden_size {h_0.shape[-1]}, which h_0 has", str(width))
    if x.shape[-1] != rnn.input_size:
        check.fail("rnn", f"input_size {x.shape[-1]}, which x has", str(rnn.input_size))
    directions = 2 if rnn.bidirectional else 1
    start = h_0.expand(rnn.num_layers * directions, x.shape[0], -1).contiguous()
    is_own = type(rnn).forward not in (nn.RNN.forward, nn.GRU.forward, nn.LSTM.forward)
    hidden: Any = start
    if isinstance(rnn, nn.LSTM) and not is_own:
        hidden = (start, start.new_zeros(rnn.num_layers * directions, x.shape[0], rnn.hidden_size))
    read_rows = reverse_sequences(x, lengths) if is_reversed else x
    if is_own or rnn.bidirectional:
        # Only a packed batch keeps the padding out of a network that also reads from the other end.
        packed = pack_padded_sequence(read_rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(rnn(packed, hidden)[0], batch_first=True, total_length=x.shape[1])
    elif rnn.batch_first:
        h = rnn(read_rows, hidden)[0]
    else:
        h = rnn(read_rows.transpose(0, 1), hidden)[0].transpose(0, 1)
    if is_reversed:
        return reverse_sequences(h, lengths)
    return torch.where(valid_steps(lengths, x.shape[1]).unsqueeze(-1), h, 0.0)
