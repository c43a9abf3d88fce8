"""Recurrent networks that read a batch backward or forward in time: the package's own, torch's, a user's."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dmm_fast import check, ops
from dmm_fast.data._batches import reverse_sequences
from dmm_fast.reference import valid_steps


class InferenceNetwork(nn.Module):
    """The RNN of the guide: backward in time ``h_t`` summarises x_{t:T}, forward x_{1:t}.

    The parameters are those of ``nn.RNN`` under the same names; the batch is read backward from each
    row's own end, so nothing is reversed, sorted or packed. Called with a packed batch it is an ``nn.RNN``,
    as which the guide of Pyro's example calls it.

    Args:
        input_size: features ``D`` of x_t.
        hidden_size: units ``H`` of each layer.
        num_layers: layers, each reading the one below in the same direction of time.
        nonlinearity: ``"relu"`` or ``"tanh"``.
        dropout: probability of dropping an output of any layer but the last, while training.
        direction: of time, ``"backward"`` or ``"forward"``.

    Raises:
        ValueError: a size is not positive, a probability not between 0 and 1, ``nonlinearity`` or
            ``direction`` another.

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
            x: ``[..., B, T, D]``; what stands past the end of a row is not read. Or a packed batch whose
                rows are reversed already, without ``lengths``: then the result is a packed ``h`` in the
                order of ``x`` and the last state, ``[num_layers, B, H]``, as of an ``nn.RNN``.
            h_0: what every layer starts from; broadcastable to ``[..., B, H]``. With a packed batch one for
                each layer, ``[num_layers, B, H]``.
            lengths: int64 ``[B]``.

        Raises:
            ValueError: a shape, dtype, device or length that does not fit.
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
            h = F.dropout(outputs[-1], self.dropout, self.training) if outputs else x
            x_proj = ops.input_projection(h, w_ih, b_ih + b_hh, lengths)
            outputs.append(ops.rnn_scan(x_proj, w_hh, h_0, lengths, self.nonlinearity, self.direction))
        return outputs

    def _forward_packed(self, x: PackedSequence, h_0: Tensor) -> tuple[PackedSequence, Tensor]:
        padded, on_host = pad_packed_sequence(x, batch_first=True)
        check.shape("h_0", h_0, (self.num_layers, padded.shape[0], self.hidden_size))
        lengths = on_host.to(padded.device)
        # A packed batch is read from its first step on: of rows that are reversed, backward in time.
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
    """Two recurrent networks, of which ``left`` reads x_{1:t} forward and ``right`` reads x_{t:T} backward.

    Args:
        left: read forward in time; what :func:`read` takes.
        right: read backward in time.
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
            h_0: ``[2, H]``, what the left network and the right one start from.
            lengths: int64 ``[B]``.

        Raises:
            ValueError: a shape, dtype, device or length that does not fit.
            TypeError: ``x`` is no floating-point tensor.
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
    """A recurrent network, in the order of whose parameters torch's generator draws.

    Args:
        kind: ``"relu"`` or ``"tanh"``, computed by ``rnn_scan``; ``"lstm"`` or ``"gru"``, torch's own.
        input_size: features ``D``.
        hidden_size: units ``H`` of each layer.
        num_layers: layers.
        dropout: between them, while training.
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
    # With a single layer torch warns of a dropout that there is no place for.
    between = dropout if num_layers > 1 else 0.0
    return network(input_size, hidden_size, num_layers, batch_first=True, dropout=between)


def check_direction(direction: object) -> None:
    """Check a direction of time.

    Raises:
        ValueError: it is another than the two.
    """
    if not isinstance(direction, str) or direction not in ("backward", "forward"):
        check.fail("direction", "'backward' or 'forward'", repr(direction))


def read(rnn: nn.Module, x: Tensor, h_0: Tensor, lengths: Tensor, direction: str = "backward") -> Tensor:
    """``h [B, T, H]`` from any recurrent network that reads a batch backward or forward in time.

    Past the end of each row it is zero, unless it comes from a module of another kind than those named here.

    Args:
        rnn: called as an :class:`InferenceNetwork` is, ``rnn(x, h_0, lengths)``, unless it is an ``nn.RNN``,
            ``nn.GRU`` or ``nn.LSTM`` (whose cell state starts at 0): backward these read the reversed rows.
            Subclasses of the three with a ``forward`` of their own are called as Pyro's example calls its
            network, with a packed batch of those rows and ``h_0 [layers, B, H]``.
        x: ``[B, T, D]``, zero past the end of each row.
        h_0: ``[H]``; ``[2, H]`` for a :class:`TwoWayNetwork` or another module that reads in both directions.
        lengths: int64 ``[B]``.
        direction: in which torch's networks read. An :class:`InferenceNetwork` has the same, and any other
            module knows its own.

    Raises:
        ValueError: the result is of another shape, ``x`` or ``h_0`` is not of the network's sizes, or ``rnn``
            reads in the other direction, or in one where there are two.
        TypeError: ``rnn`` takes other arguments, or the result is no floating-point tensor.
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
    # Under autocast torch's networks give half precision.
    return check.floating("rnn", h).to(x.dtype)


def _check_directions(rnn: nn.Module, h_0: Tensor, direction: str) -> None:
    """Check that a network whose directions of time are known reads in as many as ``h_0`` has rows."""
    # Two states would pass for those of a batch of two rows.
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
        # Only a packed batch keeps the padding out of what reads it from the other side.
        packed = pack_padded_sequence(read_rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(rnn(packed, hidden)[0], batch_first=True, total_length=x.shape[1])
    elif rnn.batch_first:
        h = rnn(read_rows, hidden)[0]
    else:
        h = rnn(read_rows.transpose(0, 1), hidden)[0].transpose(0, 1)
    if is_reversed:
        return reverse_sequences(h, lengths)
    return torch.where(valid_steps(lengths, x.shape[1]).unsqueeze(-1), h, 0.0)
