"""The base class of the distributions over whole sequences, and checks of a network's outputs."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from typing_extensions import Self

from dmm_fast import check
from dmm_fast._share import own_rows, rows_to_draw
from dmm_fast.ops._autocast import is_on as autocast_is_on
from dmm_fast.ops._checks import check_weights
from dmm_fast.ops._registry import call, call_unchecked, call_valued
from dmm_fast.reference import valid_steps

Network = Callable[..., Any]
"""A module or function used in place of weights, on tensors ``[..., B, T, *]`` or steps ``[..., B, *]``."""


def valid(lengths: Tensor, T: int) -> Tensor:
    """``[B, T, 1]`` bool: True at the steps within each sequence."""
    return valid_steps(lengths, T).unsqueeze(-1)


def standard_noise(shape: torch.Size, like: Tensor) -> Tensor:
    """Standard normal noise ``[..., B, T, Z]``, drawn step by step on a CPU.

    A model with one site per step draws ``[..., B, Z]`` at each step; drawing in the same order gives the
    same noise for the same seed. On a GPU all noise is drawn at once, in another order. In a data-parallel
    run each process draws the noise of the whole mini-batch and uses that of its own rows.
    """
    *batch, T, Z = shape
    drawn = [*batch[:-1], *map(rows_to_draw, batch[-1:])]
    eps = like.new_empty((T, *drawn, Z))
    # torch's CPU generator fills 16 values at a time, so whole blocks are the same in one call or several.
    in_turn = like.device.type == "cpu" and math.prod((*drawn, Z)) % 16 != 0
    for step in eps if in_turn else (eps,):
        step.normal_()
    eps = eps.movedim(0, -2)
    return eps if drawn == batch else own_rows(eps)


class SequenceDistribution(TorchDistribution):
    """Shapes, expansion and the time mask by ``lengths`` of every distribution over whole sequences."""

    _is_checked = False  # True: the parameters were checked, and ops need not check them again
    _instead = (
        "its steps have one given z_{t-1}: average draws, those of dmm_fast.infer.latents (given data) or "
        "dmm_fast.infer.sample_prior (of the model)"
    )
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch declares it

    def __init__(self, batch_shape: torch.Size, event_shape: torch.Size, lengths: Tensor) -> None:
        self.lengths = lengths
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, where there is a closed form for it."""
        refuse_moment("mean", self, self._instead)

    @property
    def variance(self) -> Tensor:
        """The variance, where there is a closed form for it."""
        refuse_moment("variance", self, self._instead)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same distribution with more dimensions on the left of ``batch_shape``; nothing is copied.

        Raises:
            ValueError: ``batch_shape`` does not broadcast from the present one.
        """
        batch_shape = check.sizes("batch_shape", batch_shape)
        check.kind("_instance", _instance, SequenceDistribution, type(None))
        # B cannot be expanded: every row is a sequence with its own length.
        own = self.batch_shape
        lead = batch_shape[len(batch_shape) - len(own) : -1]
        if (
            len(batch_shape) < len(own)
            or batch_shape[-1] != own[-1]
            or any(have not in (1, want) for have, want in zip(own[:-1], lead, strict=True))
        ):
            check.fail(
                "batch_shape", f"one that {tuple(own)} expands to on the left", f"{tuple(batch_shape)}"
            )
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new

    def _check_weights(
        self, name: str, kind: str, weights: object, like: Tensor, like_name: str, **sizes: int
    ) -> None:
        """Check a network's weights once for all ops; under autocast the ops check, since dtypes change."""
        self._is_checked = not autocast_is_on()
        if self._is_checked:
            check_weights(kind, weights, like, like_name, sizes, name)

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., B]``, in nats."""
        return self._log_prob(value)

    def _log_prob(self, value: Tensor, gradient: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`; with the incoming ``gradient`` given, its gradients are computed at once too."""
        raise NotImplementedError

    def _compute(self, op: str, *given: Any, gradient: Tensor | None = None) -> Any:
        """Compute an op on arguments that were checked before, for :meth:`_log_prob`."""
        if not self._is_checked:
            return call(op, *given)
        return call_unchecked(op, *given) if gradient is None else call_valued(gradient, op, *given)

    def _check_value(self, value: Tensor, like: Tensor) -> None:
        """Check the argument of a log-density against parameters like ``like``."""
        event = (self.lengths.shape[0], *self.event_shape)
        fits = isinstance(value, Tensor) and value.layout == torch.strided
        if not (fits and value.shape == (*self.batch_shape[:-1], *event)):
            check.trailing("value", value, event, "[..., B, T, *]")
            check.leading("value", value, self.batch_shape[:-1], 3, "the distribution")
        alike = fits and value.dtype == like.dtype and value.device == like.device
        if self._is_checked and not alike and not autocast_is_on():
            check.like("value", value, like, "the distribution")

    def _shape_of(self, sample_shape: Sequence[int]) -> torch.Size:
        """The shape of a draw, ``[*sample_shape, *batch_shape, *event_shape]``."""
        return self._extended_shape(check.sizes("sample_shape", sample_shape))

    def _spread(self, log_prob: Tensor) -> Tensor:
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


def refuse_moment(moment: str, distribution: TorchDistribution, instead: str) -> NoReturn:
    """Raise: a distribution has no closed form of its mean or variance; ``instead`` names an alternative.

    Raises:
        NotImplementedError: always.
    """
    name = type(distribution).__name__
    raise NotImplementedError(f"{moment}: {name} has no closed form for it; {instead}")


def check_network(name: str, network: Any, *given: str) -> None:
    """Check that a network used in place of weights can be called with the inputs that ``given`` names.

    Raises:
        TypeError: it cannot be called with them.
    """
    check.function(name, network)
    check.takes(name, network, given, {}, f"a network of {' and '.join(given)}")


def checked_min_scale(value: float) -> float:
    """Check a minimum scale, a finite number of at least 0.

    Raises:
        ValueError: it is negative or not finite.
        TypeError: it is not a number.
    """
    if check.number("min_scale", value, "a finite number from 0") < 0:
        check.fail("min_scale", "a finite number from 0", str(value))
    return float(value)


def checked_output(name: str, tensor: object, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A network's output, expanded to ``shape`` and cast to ``dtype``, from which autocast may differ.

    Raises:
        ValueError: it does not broadcast to ``shape``.
        TypeError: it is not a floating-point tensor.
    """
    value = check.floating(name, tensor)
    check.broadcastable(name, value, shape, "the network's output")
    return value.to(dtype).expand(*shape)


def checked_pair(
    name: str, output: object, parts: tuple[str, str], shape: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The two outputs of a network, which ``parts`` names, each expanded to ``shape``.

    Raises:
        ValueError: an output does not broadcast to ``shape``.
        TypeError: the outputs are not two floating-point tensors.
    """
    if not isinstance(output, tuple | list) or len(output) != 2:
        check.fail(name, f"a pair ({', '.join(parts)})", check.describe(output), TypeError)
    first, second = (
        checked_output(f"{part} of {name}", tensor, shape, dtype)
        for part, tensor in zip(parts, output, strict=True)
    )
    return first, second


def checked_between(name: str, tensor: Tensor, most: float = math.inf) -> Tensor:
    """A network's output, whose values must lie between 0 and ``most``.

    NaN is accepted here: the loss then shows that training has diverged.

    Raises:
        ValueError: a value lies outside.
    """
    if check.values_are_readable(tensor):
        outside = tensor[(tensor < 0) | (tensor > most)]
        if outside.numel():
            expected = "numbers from 0" if most == math.inf else f"numbers from 0 to {most:g}"
            check.fail(name, expected, str(outside[0].item()))
    return tensor


def loc_and_scale(
    name: str, output: object, shape: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The location and the scale that a network returned for a Gaussian, each expanded to ``shape``.

    Raises:
        ValueError: an output does not broadcast to ``shape``, or a scale is negative.
        TypeError: the outputs are not two floating-point tensors.
    """
    loc, scale = checked_pair(name, output, ("loc", "scale"), shape, dtype)
    return loc, checked_between(f"scale of {name}", scale)
