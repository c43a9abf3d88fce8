"""The checks of an op's arguments, derived from the table of ops.

An argument with exactly the expected shape, the common case, needs one comparison. Any other is checked step
by step, to find out if it broadcasts and, if not, to describe the error.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmm_fast import check
from dmm_fast.ops._layout import joint
from dmm_fast.ops.schema import OPS, WEIGHTS
from dmm_fast.ops.schema._signature import Argument, Op, size_of, sizes_in


class _Known:
    """The result of the checks so far: the leading argument, and the sizes of the letters."""

    def __init__(self, name: str, tensor: Tensor, letters: Sequence[str]) -> None:
        self.name, self.tensor, self.letters = name, tensor, letters
        self.sizes = dict(zip(letters, tensor.shape[-len(letters) :], strict=True))
        self.lead = tensor.shape[: -len(letters)]  # broadcast with those of all arguments checked since
        self.names = name  # the names of these arguments


def _is_like(tensor: Any, first: Tensor) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype == first.dtype
        and tensor.device == first.device
        and tensor.layout == torch.strided
    )


def check_arguments(op: str, given: tuple[Any, ...]) -> None:
    """Check the arguments of an op, first the leading one, then the weights, then the others.

    Raises:
        ValueError: a shape, dtype, device, length, mask or name is wrong.
        TypeError: the leading argument, the weights or a name have the wrong type.
    """
    place, letters, steps = _CHECKS[op]
    known = _Known(OPS[op].leading, _leading(OPS[op].leading, given[place], letters), letters)
    for i, argument, argument_letters, step in steps:
        step(argument, argument_letters, given[i], known)


def _leading(name: str, value: Any, letters: Sequence[str]) -> Tensor:
    fits = (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and len(value.shape) >= len(letters)
    )
    if not fits:
        check.floating(name, value)
        check.trailing(name, value, [-1] * len(letters), f"[..., {', '.join(letters)}]")
    tensor: Tensor = value
    if "T" in letters and tensor.shape[-2] == 0:
        check.nonempty(name, tensor, {"T": 0})
    return tensor


def check_weights(
    kind: str, values: object, first: Tensor, first_name: str, sizes: dict[str, int], name: str = "weights"
) -> None:
    """Check weights of a kind in the table; sizes of new letters are added to ``sizes``.

    Raises:
        ValueError: a field has the wrong shape, dtype or device.
        TypeError: the weights have the wrong type.
    """
    weights = WEIGHTS[kind]
    if not isinstance(values, weights.tuple_type) or not _all_fit(values, weights.words, first, sizes):
        check.weights(name, values, weights.tuple_type, weights.words, first, first_name, sizes)


def _all_fit(values: Iterable[Any], words: Sequence[str], first: Tensor, sizes: dict[str, int]) -> bool:
    for word, tensor in zip(words, values, strict=True):
        if not _is_like(tensor, first) or len(tensor.shape) != len(word):
            return False
        for letter, size in zip(word, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return False
    return True


def _weights(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    check_weights(argument.dims, value, known.tensor, known.name, known.sizes, argument.name)


def _plain(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    """Check a tensor without particle and row dimensions."""
    sizes = known.sizes
    if not _is_like(value, known.tensor):
        check.like(argument.name, value, known.tensor, known.name)
    known_before = [sizes.get(letter) for letter in letters]
    if len(value.shape) == len(letters):
        for letter, size in zip(letters, value.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                break
        else:
            return
    if None not in known_before:
        check.shape(argument.name, value, [sizes[letter] for letter in letters])
    shape = zip(known_before, letters, strict=True)
    wanted = ", ".join(letter if size is None else str(size) for size, letter in shape)
    check.fail(argument.name, f"shape ({wanted})", check.describe(value))


def _exact(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    """Check a tensor that has the leading dimensions of the leading argument."""
    shape = (*known.tensor.shape[: -len(known.letters)], *(known.sizes[letter] for letter in letters))
    if not (_is_like(value, known.tensor) and value.shape == shape):
        check.like(argument.name, value, known.tensor, known.name)
        check.shape(argument.name, value, shape)


def _broadcast(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    """Check a tensor whose particle or leading dimensions broadcast with those of the other arguments."""
    sizes = [size_of(letter, known.sizes) for letter in letters]
    if _is_like(value, known.tensor) and value.shape == (*known.lead, *sizes):
        return
    check.like(argument.name, value, known.tensor, known.name)
    names = ", ".join(letter.strip("()") for letter in letters)
    check.trailing(argument.name, value, sizes, f"[..., {names}]")
    check.leading(argument.name, value, known.lead, len(letters), known.names)
    known.lead = joint(known.lead, value.shape[: -len(letters)])
    known.names += f" and {argument.name}"


def _start(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    width = argument.dims[-1]
    if not (_is_like(value, known.tensor) and value.shape == (known.sizes[width],)):
        check.like(argument.name, value, known.tensor, known.name)
        target = (*known.lead, known.sizes["B"], known.sizes[width])
        check.broadcastable(argument.name, value, target, f"[..., B, {width}]")


def _lengths(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    check.lengths(value, known.sizes["B"], known.sizes["T"], known.tensor.device)


def _mask(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    if value is not None:
        sizes = known.sizes
        check.observation_mask(
            argument.name, value, (sizes["B"], sizes["T"], sizes["D"]), known.tensor.device
        )


def _choice(argument: Argument, letters: Sequence[str], value: Any, known: _Known) -> None:
    if not isinstance(value, str):
        check.kind(argument.name, value, str)
    if value not in argument.choices:
        check.fail(argument.name, " or ".join(map(repr, argument.choices)), repr(value)[:80])


_Step = Callable[[Argument, Sequence[str], Any, _Known], None]
_Entry = tuple[int, Argument, Sequence[str], _Step]
_STEPS: dict[str, _Step] = {
    "weights": _weights,
    "lengths": _lengths,
    "mask": _mask,
    "choice": _choice,
    **dict.fromkeys("PN", _exact),
    **dict.fromkeys("pn", _broadcast),
    "s": _start,
}


def _checks_of(op: Op) -> tuple[int, Sequence[str], list[_Entry]]:
    """The index and the letters of the leading argument, and the checks of the others in order."""
    # Weights come first since they define sizes; starts come late since they need all particle dimensions.
    ranks: dict[_Step, int] = {_weights: 0, _plain: 0, _start: 2, _lengths: 3, _mask: 3, _choice: 3}
    leading = op.leading_argument
    entries: list[_Entry] = []
    for i, argument in enumerate(op.arguments):
        if argument is not leading:
            is_tensor = argument.kind == "tensor"
            step = _STEPS.get(argument.dims[0] if is_tensor else argument.kind, _plain)
            letters = sizes_in(argument.dims) if is_tensor else []
            entries.append((i, argument, letters if step is _plain else letters[1:], step))

    def rank(entry: _Entry) -> int:
        _, _, letters, step = entry
        is_of_leading = step is _exact and {*letters} <= {*sizes_in(leading.dims)}
        return -1 if is_of_leading else ranks.get(step, 1)

    entries.sort(key=rank)
    return op.arguments.index(leading), sizes_in(leading.dims)[1:], entries


_CHECKS = {op.name: _checks_of(op) for op in OPS.values()}
