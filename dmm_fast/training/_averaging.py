"""Moving average of the parameters over the steps of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dmm_fast.check import describe, fail
from dmm_fast.model import DMM
from dmm_fast.training._checkpoint import CheckpointError


class Averaging:
    """Exponential moving average of a model's parameters; without one, ``decay`` 0, nothing is done or kept.

    The averages start at the parameters. After step ``n``, counted from 0, each average ``a`` of a parameter
    ``p`` becomes ``d a + (1 - d) p`` with ``d = min(decay, (1 + n) / (10 + n))``, so that the first steps are
    soon forgotten. Parameters and averages keep their memory, as CUDA graphs need, and nothing is read from a
    GPU.

    Args:
        dmm: the model in training.
        decay: the weight ``d`` of the earlier average in the long run, from 0 to less than 1.
    """

    def __init__(self, dmm: DMM, decay: float) -> None:
        self._dmm, self._decay = dmm, decay
        self._parameters = {name: p.detach() for name, p in dmm.named_parameters()} if decay > 0 else {}
        self.tensors = {name: parameter.clone() for name, parameter in self._parameters.items()}

    def update(self, step: int) -> None:
        """Take the parameters after ``step``, counted from 0, into the averages."""
        if self.tensors:
            weight = 1.0 - min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, self._own, weight)

    def restart(self) -> None:
        """Set the averages to the parameters."""
        self._copy(self._averages, self._own)

    def adopt(self) -> None:
        """Set the parameters to the averages."""
        self._copy(self._own, self._averages)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Exchange parameters and averages while entered; on exit each has its own values again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def model(self) -> dict[str, Tensor]:
        """The state of the model with the averages as its parameters."""
        return {**self._dmm.state_dict(), **self.tensors}

    def unaveraged(self) -> dict[str, Tensor]:
        """The parameters themselves, by name; empty without averaging."""
        return dict(self._parameters)

    def load(self, path: Path, unaveraged: Mapping[str, Tensor]) -> None:
        """Make the model's parameters the averages, and ``unaveraged`` the parameters.

        Args:
            path: the file that both were read from, for error messages.
            unaveraged: the result of :meth:`unaveraged`.

        Raises:
            CheckpointError: names or shapes differ from those of the model.
        """
        self.check(path, "unaveraged", unaveraged)
        self.restart()
        self._copy(self._own, [unaveraged[name] for name in self.tensors])

    def check(self, path: Path, what: str, given: object) -> None:
        """Check that tensors read from ``path`` have the names and shapes of the averages.

        Raises:
            CheckpointError: they have not.
        """
        if not isinstance(given, Mapping) or given.keys() != self.tensors.keys():
            expected = f"{what} parameters of {len(self.tensors)} names"
            fail(str(path), expected, describe(given), CheckpointError)
        for name, tensor in self.tensors.items():
            value = given[name]
            if not isinstance(value, Tensor) or value.shape != tensor.shape or not value.is_floating_point():
                expected = f"{what} {name} of shape {tuple(tensor.shape)}"
                fail(str(path), expected, describe(value), CheckpointError)

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Set the averages to earlier values of :attr:`tensors`."""
        self._copy(self._averages, [kept[name] for name in self.tensors])

    @property
    def _own(self) -> list[Tensor]:
        return list(self._parameters.values())

    @property
    def _averages(self) -> list[Tensor]:
        return list(self.tensors.values())

    def _swap(self) -> None:
        before = [parameter.clone() for parameter in self._own]
        self.adopt()
        self._copy(self._averages, before)

    @staticmethod
    def _copy(to: list[Tensor], values: list[Tensor]) -> None:
        for tensor, value in zip(to, values, strict=True):
            tensor.copy_(value)
