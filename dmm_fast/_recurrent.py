"""Recurrent networks that read a batch backward in time: the package's own, torch's, a user's."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dmm_fast import check, ops
from dmm_fast.data._sequences import reverse_sequences


class InferenceNetwork(nn.Module):
    """The backward RNN of the guide: ``h_t`` summarises x_{t:T}.

    The parameters are those of ``nn.RNN`` under the same names; the batch is read backward from each
    row's own end, so nothing is reversed, sorted or packed. Called with a packed batch it is an ``nn.RNN``,
    as which the guide of Pyro's example calls it.

    Args:
        input_size: features ``D`` of x_t.
        hidden_size: units ``H`` of each layer.
        num_layers: layers, each reading the one below in the same direction of time.
        nonlinearity: ``"relu"`` or ``"tanh"``.
        dropout: probability of dropping an output of any layer but the last, while training.

    Raises:
        ValueError: a size is not positive, a probability not between 0 and 1, ``nonlinearity`` another.

    Source: arXiv 1609.09869, section 4; ``self.rnn`` in Pyro's ``examples/dmm.py``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "relu",
        dropout: float = 0.0,
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
            outputs.append(ops.rnn_scan(x_proj, w_hh, h_0, lengths, self.nonlinearity))
        return outputs

    def _forward_packed(self, x: PackedSequence, h_0: Tensor) -> tuple[PackedSequence, Tensor]:
        padded, on_host = pad_packed_sequence(x, batch_first=True)
        check.shape("h_0", h_0, (self.num_layers, padded.shape[0], self.hidden_size))
        lengths = on_host.to(padded.device)
        # The scan reads backward in time, an nn.RNN forward.
        outputs = self._layers(reverse_sequences(padded, lengths), list(h_0.unbind(0)), lengths)
        h = reverse_sequences(outputs[-1], lengths)
        if x.sorted_indices is not None:
            h, on_host = h.index_select(0, x.sorted_indices), on_host[x.sorted_indices.cpu()]
        packed = pack_padded_sequence(h, on_host, batch_first=True)
        last = torch.stack([each[:, 0] for each in outputs])
        return PackedSequence(packed.data, packed.batch_sizes, x.sorted_indices, x.unsorted_indices), last


def read_backward(rnn: nn.Module, x: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
    """``h [B, T, H]`` from any recurrent network that reads a batch backward in time.

    Args:
        rnn: called as an :class:`InferenceNetwork` is, ``rnn(x, h_0, lengths)``, unless it is an ``nn.RNN``,
            ``nn.GRU`` or ``nn.LSTM`` (whose cell state starts at 0): these read the reversed rows. Subclasses
            of the three with a ``forward`` of their own are called as Pyro's example calls its network, with
            a packed batch of reversed rows and ``h_0 [layers, B, H]``.
        x: ``[B, T, D]``, zero past the end of each row.
        h_0: ``[H]``.
        lengths: int64 ``[B]``.

    Raises:
        ValueError: the result is of another shape, or ``h_0`` is not of the size of the network's state.
    """
    if isinstance(rnn, nn.RNNBase):
        h = _run_torch_rnn(rnn, x, h_0, lengths)
    else:
        expected = "a module with forward(x, h_0, lengths), or torch's RNN, GRU or LSTM"
        check.takes("rnn", rnn, (x, h_0, lengths), {}, expected)
        h = rnn(x, h_0, lengths)
    if not isinstance(h, Tensor) or h.dim() < 3 or h.shape[-3:-1] != x.shape[-3:-1]:
        check.fail("rnn", f"a result of shape ({x.shape[0]}, {x.shape[1]}, H)", check.describe(h))
    return h


def _run_torch_rnn(rnn: nn.RNNBase, x: Tensor, h_0: Tensor, lengths: Tensor) -> Tensor:
    width = rnn.proj_size or rnn.hidden_size
    if h_0.shape[-1] != width:
        check.fail("rnn", f"hidden_size {h_0.shape[-1]}, which h_0 has", str(width))
    directions = 2 if rnn.bidirectional else 1
    start = h_0.expand(rnn.num_layers * directions, x.shape[0], -1).contiguous()
    is_own = type(rnn).forward not in (nn.RNN.forward, nn.GRU.forward, nn.LSTM.forward)
    hidden: Any = start
    if isinstance(rnn, nn.LSTM) and not is_own:
        hidden = (start, start.new_zeros(rnn.num_layers * directions, x.shape[0], rnn.hidden_size))
    reversed_rows = reverse_sequences(x, lengths)
    if is_own or rnn.bidirectional:
        # Only a packed batch keeps the padding out of what reads it from the other side.
        packed = pack_padded_sequence(reversed_rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(rnn(packed, hidden)[0], batch_first=True, total_length=x.shape[1])
    elif rnn.batch_first:
        h = rnn(reversed_rows, hidden)[0]
    else:
        h = rnn(reversed_rows.transpose(0, 1), hidden)[0].transpose(0, 1)
    return reverse_sequences(h, lengths)
