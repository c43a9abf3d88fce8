"""Checks of the mini-batch arguments of model and guide, and their conversion to a normal form."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dmm_fast import check, triton
from dmm_fast._one_step import results
from dmm_fast._values import check_values
from dmm_fast.ops._backends import may_use
from dmm_fast.reference import observed, valid_steps

# Elements up to which one thread of numpy is used; torch would wake its threads at half as many.
_FEW = 1 << 16


class MiniBatch(NamedTuple):
    """A checked mini-batch.

    ``x`` is ``[B, T, D]`` with 0 at unobserved entries, or None if there are no data to condition on;
    ``lengths`` is int64 ``[B]`` on the model's device; ``mask`` (``[B, T]`` or ``[B, T, D]``; None: all
    observed) marks the observed entries. ``controls`` is ``[B, T, U + S]``, the controls of each step
    followed by the static covariates, 0 past the end of a row; None for a model without either. ``past`` is
    ``[B, T, D]``, the x_{t-1} that the networks of the model are to read; None: that of ``x``.
    """

    x: Tensor | None
    lengths: Tensor
    mask: Tensor | None
    T: int
    controls: Tensor | None = None
    past: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """``[B, T]`` bool: True at the steps within each row."""
        return valid_steps(self.lengths, self.T)

    @property
    def observed(self) -> Tensor:
        """``[B, T, 1]`` or ``[B, T, D]`` bool: True at entries that are valid and not masked out."""
        return observed(self.lengths, self.T, self.mask)


def checked_once(*tensors: Any, rows: Tensor | None, **options: Any) -> MiniBatch:
    """:func:`validate_mini_batch` with its result cached within a step.

    A result is reused for the same tensors if they have not been changed in place. With ``rows``, which a
    handler creates anew for each call, nothing is cached.
    """
    checked = results()
    versions = _versions(tensors)
    if checked is None or rows is not None or versions is None:
        return validate_mini_batch(*tensors, rows=rows, **options)
    key = (MiniBatch, *map(id, tensors), *versions, *map(id, options.values()))
    if key not in checked:
        # The objects are kept alive, so that their ids in the key cannot be reused by other objects.
        checked[key] = validate_mini_batch(*tensors, rows=rows, **options), tensors, options
    made: MiniBatch = checked[key][0]
    return made


def _versions(values: tuple[Any, ...]) -> list[int] | None:
    """Version counters of the tensors; None for inference tensors, which have none."""
    tensors = [value.data if isinstance(value, PackedSequence) else value for value in values]
    given = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    return None if any(tensor.is_inference() for tensor in given) else [t._version for t in given]


def validate_mini_batch(
    mini_batch: Tensor | None,
    mini_batch_reversed: Tensor | PackedSequence | None,
    mini_batch_mask: Tensor | None,
    mini_batch_seq_lengths: Tensor | None,
    controls: Tensor | None = None,
    static: Tensor | None = None,
    *,
    input_dim: int,
    like: Tensor,
    kind: str,
    rows: Tensor | None = None,
    validate: bool | None,
    control_dim: int = 0,
    static_dim: int = 0,
) -> MiniBatch:
    """Check the mini-batch arguments of :meth:`dmm_fast.DMM.model` and ``guide``.

    Args:
        mini_batch: ``[B, T, D]``, or None for a model without data.
        mini_batch_reversed: None, or the same data reversed in time: only its size is checked, since the
            data are read backward from ``mini_batch`` itself.
        mini_batch_mask: ``[B, T]`` or ``[B, T, D]`` of 0 and 1, or None.
        mini_batch_seq_lengths: int64 ``[B]``; None: derived from the mask, which must then be ones followed
            by zeros in each row, or T without a mask.
        controls: ``[B, T, U]``, known inputs of each step, or None.
        static: ``[B, S]``, known covariates of each row, or None.
        input_dim: ``D``.
        like: a parameter of the model, for dtype and device.
        kind: the kind of values required of observed data, one of :data:`dmm_fast._values.KINDS`.
        rows: bool ``[B]``; in a row marked False, NaN and infinities are replaced by 0. Masking the row out
            of the loss is not enough for the gradients, since 0 times NaN is NaN.
        validate: check values and not just shapes. None: check them if that needs no synchronisation.
        control_dim: ``U``.
        static_dim: ``S``.

    Raises:
        ValueError: an argument is invalid; the message names it.
        TypeError: ``mini_batch`` is not a floating-point tensor.
    """
    if mini_batch is not None:
        check.floating("mini_batch", mini_batch)
        if mini_batch.dim() != 3 or mini_batch.shape[-1] != input_dim:
            check.fail("mini_batch", f"shape (B, T, {input_dim})", check.describe(mini_batch))
        check.like("mini_batch", mini_batch, like, "the model")
    B, T = _batch_and_steps(mini_batch, mini_batch_mask, mini_batch_seq_lengths)
    if mini_batch is not None and rows is not None:
        if not isinstance(rows, Tensor) or rows.dtype != torch.bool or tuple(rows.shape) != (B,):
            check.fail("rows", f"bool of shape ({B},)", check.describe(rows))
        mini_batch = torch.where(rows[:, None, None] | mini_batch.isfinite(), mini_batch, 0.0)
    lengths = _lengths(mini_batch_seq_lengths, mini_batch_mask, B, T, like.device, validate)
    if mini_batch_mask is not None:
        check.mask_like("mini_batch_mask", mini_batch_mask, (B, T, input_dim), like.device)
    batch = MiniBatch(mini_batch, lengths, mini_batch_mask, T)
    if _reads(like, validate):
        _check_values(batch, kind)
    if isinstance(mini_batch_reversed, PackedSequence):
        if _reads(like, validate):
            _check_packed(mini_batch_reversed, batch)
    elif mini_batch_reversed is not None:
        check.shape("mini_batch_reversed", mini_batch_reversed, (B, T, input_dim))
    sizes = {"controls": control_dim, "static": static_dim}
    batch = batch._replace(controls=_controls(controls, static, batch, like, sizes, validate))
    if mini_batch is None:
        return batch
    return _where_observed(batch, mini_batch)


def _controls(
    controls: Tensor | None,
    static: Tensor | None,
    batch: MiniBatch,
    like: Tensor,
    sizes: dict[str, int],
    validate: bool | None,
) -> Tensor | None:
    """``[B, T, U + S]``: controls and static covariates, 0 past the end of each row; None if U + S = 0."""
    B, T = len(batch.lengths), batch.T
    parts = []
    for name, given, shape in (
        ("controls", controls, (B, T, sizes["controls"])),
        ("static", static, (B, sizes["static"])),
    ):
        if shape[-1] == 0:
            if given is not None:
                check.fail(name, f"None for a model of {name.removesuffix('s')}_dim=0", check.describe(given))
            continue
        tensor = check.floating(name, given)
        check.shape(name, tensor, shape)
        check.like(name, tensor, like, "the model")
        steps = tensor if tensor.dim() == 3 else tensor[:, None].expand(B, T, -1)
        if _reads(like, validate) and not bool((steps.isfinite() | ~batch.valid[..., None]).all()):
            check.fail(name, "finite numbers within each row", "NaN or infinity")
        parts.append(steps)
    if not parts:
        return None
    return torch.where(batch.valid[..., None], torch.cat(parts, dim=-1), 0.0)


def _where_observed(batch: MiniBatch, x: Tensor) -> MiniBatch:
    """``batch`` with 0 at the unobserved entries of x; the kernel for GPUs also converts the mask to bool."""
    by_triton = x.is_cuda and triton.missing is None and may_use("triton")
    if by_triton and not x.requires_grad and not torch.compiler.is_compiling():
        from dmm_fast.triton.observations import where_observed

        values, mask = where_observed(x, batch.lengths, batch.mask)
        return batch._replace(x=values, mask=mask)
    is_few = x.device.type == "cpu" and x.numel() <= _FEW and x.dtype in (torch.float32, torch.float64)
    # Autograd, torch.compile and dispatch modes do not see operations of numpy.
    by_torch = x.requires_grad or torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if is_few and not by_torch:
        keep = _array(batch.valid)[:, :, None]
        if batch.mask is not None:
            keep = keep & (_array(batch.mask).reshape(*x.shape[:2], -1) != 0)
        return batch._replace(x=torch.from_numpy(np.where(keep, _array(x), np.zeros((), x.numpy().dtype))))
    return batch._replace(x=torch.where(batch.observed, x, 0.0))


def _reads(tensor: Tensor, validate: bool | None) -> bool:
    """True if the values of ``tensor`` are to be checked; by default if that needs no synchronisation.

    Values are never checked during the capture of a CUDA graph; those of the warm-up steps before it are.
    """
    if validate is None:
        return check.values_are_readable(tensor)
    return validate and not check.is_capturing()


def _batch_and_steps(x: Tensor | None, mask: Tensor | None, lengths: Tensor | None) -> tuple[int, int]:
    for name, tensor in (("mini_batch", x), ("mini_batch_mask", mask)):
        if tensor is not None:
            if not isinstance(tensor, Tensor) or tensor.dim() < 2 or tensor.layout != torch.strided:
                check.fail(name, "a dense tensor of shape (B, T, ...)", check.describe(tensor))
            if 0 in tensor.shape[:2]:
                check.nonempty(name, tensor, {"B": tensor.shape[0], "T": tensor.shape[1]})
            return tensor.shape[0], tensor.shape[1]
    if lengths is None:
        check.fail("mini_batch", "data, a mask or lengths to say how many steps there are", "None")
    if (
        not isinstance(lengths, Tensor)
        or lengths.dim() != 1
        or lengths.numel() == 0
        or lengths.layout != torch.strided
    ):
        check.fail("mini_batch_seq_lengths", "int64 of shape (B,)", check.describe(lengths))
    return lengths.shape[0], int(lengths.max())


def _lengths(
    lengths: Tensor | None, mask: Tensor | None, B: int, T: int, device: torch.device, validate: bool | None
) -> Tensor:
    name = "mini_batch_seq_lengths"
    if lengths is None:
        if mask is None:
            return torch.full((B,), T, dtype=torch.int64, device=device)
        return _lengths_of_prefix(mask, validate)
    if (
        not isinstance(lengths, Tensor)
        or lengths.dtype != torch.int64
        or tuple(lengths.shape) != (B,)
        or lengths.layout != torch.strided
        # Pyro's loader leaves the lengths on the CPU when it moves the other tensors to a GPU.
        or lengths.device not in (device, torch.device("cpu"))
    ):
        check.fail(name, f"int64 of shape ({B},) on {device} or cpu", check.describe(lengths))
    if _reads(lengths, validate):
        if lengths.device.type == "cpu":
            lengths = check.own_lengths(lengths)
        low, high = check.extremes(lengths)
        if low < 1 or high > T:
            check.fail(name, f"values between 1 and T = {T}", str(low if low < 1 else high))
    return lengths.to(device, non_blocking=True)


def _lengths_of_prefix(mask: Tensor, validate: bool | None) -> Tensor:
    if mask.dim() != 2:
        check.fail("mini_batch_seq_lengths", "lengths beside a mask [B, T, D]", "None")
    lengths = mask.to(torch.int64).sum(-1)
    if _reads(mask, validate):
        falls = mask[:, 1:].to(torch.int64) <= mask[:, :-1].to(torch.int64)
        if not bool(falls.all()) or int(lengths.min()) < 1:
            row = int((~falls.all(-1) | (lengths < 1)).nonzero()[0, 0])
            check.fail(
                "mini_batch_mask",
                "ones and then zeros in each row (without lengths they are derived from the mask)",
                f"row {row}: {mask[row].tolist()}"[:120],
            )
    return lengths


def _check_packed(packed: PackedSequence, batch: MiniBatch) -> None:
    rows = batch.valid.sum(0).cpu()
    if not torch.equal(packed.batch_sizes, rows[rows > 0]):
        check.fail(
            "mini_batch_reversed",
            "a packed batch of the same lengths",
            f"one of {packed.data.shape[0]} steps in {len(packed.batch_sizes)}, "
            f"where mini_batch has {int(rows.sum())} in {int((rows > 0).sum())}",
        )


def _check_values(batch: MiniBatch, kind: str) -> None:
    valid = _array(batch.valid)[:, :, None]
    mask = None if batch.mask is None else _array(batch.mask)
    if mask is not None:
        strange = mask[(mask != 0) & (mask != 1)]
        if strange.size:
            check.fail("mini_batch_mask", "values 0 or 1", str(strange[0].item()))
        mask = mask.reshape(*mask.shape[:2], -1) != 0
        beyond = mask & ~valid
        if beyond.any():
            row = int(beyond.nonzero()[0][0])
            length = int(batch.lengths[row])
            check.fail("mini_batch_mask", f"0 past the length {length} of row {row}", "1")
    if batch.x is None:
        return
    check_values(_array(batch.x), valid if mask is None else mask, kind)


def _array(tensor: Tensor) -> NDArray[Any]:
    """The values of ``tensor`` as a numpy array, which numpy reads in this thread only.

    Torch would wake its thread pool for some ten thousand elements, which takes longer than reading them when
    the threads are asleep and the cores are busy.
    """
    values = tensor.detach().cpu()
    return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
