"""Backends of the ops: the registry of implementations, the choice among them, and a report of both.

The default depends on the device of the tensors. An explicit choice with :func:`use_backend` never falls
back: an op that the chosen backend cannot compute raises :class:`BackendError`.
"""

import platform
from collections.abc import Callable, Collection
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from dmm_fast import _extension, triton
from dmm_fast.check import describe, elements, fail

BACKENDS = ("reference", "cpp", "triton", "cuda")

# Backends by preference for each device type. A backend that is not registered for an op is skipped only
# here, in the default order, and never after an explicit request. If Triton's kernels are interpreted, they
# accept CPU tensors on request.
PREFERENCE = {
    "cpu": ("cpp", "reference", *(("triton",) if triton.INTERPRETED else ())),
    # Every library registers the ops of backend "cuda", but not every library has the kernels.
    "cuda": (*(("cuda",) if _extension.cuda_architectures() else ()), "triton", "reference"),
}


class Implementation(NamedTuple):
    """A backend's function for an op, and the dtypes that it accepts (None: any)."""

    compute: Callable[..., Any]
    dtypes: tuple[torch.dtype, ...] | None


_implementations: dict[str, dict[str, Implementation]] = {}


class BackendError(RuntimeError):
    """The requested backend cannot compute this op; the message gives the reason."""


class use_backend:  # noqa: N801 - reads as a verb, as a call and in a with statement
    """Compute ops with ``name``: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    A plain call holds until the next call for the same or more ops, a ``with`` statement until the end of its
    block. Of the choices in effect for an op, the latest counts. The end of a block revokes only the choice
    of that block, even if others were made since. ``None`` restores the default by device, and in a block
    hides the choices made outside it::

        use_backend("reference")
        with use_backend("cpp", ops=("rnn_scan", "combiner_scan")):
            with use_backend(None, ops=("rnn_scan",)):
                ...  # the device's default for rnn_scan, C++ for combiner_scan, the reference for the others

    A choice is local to its thread and asyncio task. A task inherits the choices of the code that creates it.
    New threads start with the default by device, including autograd's own threads, which run the backward
    pass of tensors on a GPU. The backward pass of an op is computed by the backend of its forward pass,
    whatever the choice is by then. However, ``torch.utils.checkpoint`` repeats a forward pass in such a
    thread, so with it make the choice within the checkpointed function.

    A function compiled with ``torch.compile`` is compiled again when it is called under another choice.

    Args:
        name: the backend, or None.
        ops: names of the ops that the choice is for, as listed by :func:`info`; None: all ops.

    Raises:
        ValueError: ``name`` is not a backend, or ``ops`` names an unknown op.
        TypeError: ``ops`` is a string or not a collection.
        RuntimeError: the ``with`` statement does not directly follow the call, is a second one for the same
            object, or ends in another thread or task than it began in.
    """

    def __init__(self, name: str | None, ops: Collection[str] | None = None) -> None:
        if name is not None and not (isinstance(name, str) and name in BACKENDS):
            fail("name", f"None or one of {', '.join(BACKENDS)}", describe(name))
        self._name = name
        self._ops = None if ops is None else _op_names(ops)
        self._is_block = False
        _choices.held = (*_without_replaced(_choices.held), self)

    def __enter__(self) -> None:
        held = _choices.held
        # After a later call this one counts as a plain call, which may have replaced earlier ones for good.
        if self._is_block or not held or held[-1] is not self:
            got = "a second one" if self._is_block else "one after another call or in another thread or task"
            fail("use_backend", "a with statement right after the call", got, RuntimeError)
        self._is_block = True

    def __exit__(self, *error: object) -> None:
        held = _choices.held
        left = tuple([choice for choice in held if choice is not self])
        if len(left) == len(held):
            expected = "a with statement to end once, in the thread and task where it began"
            fail("use_backend", expected, "an end elsewhere or a second one", RuntimeError)
        _choices.held = left


_held: ContextVar[tuple[use_backend, ...]] = ContextVar("dmm_fast_backends", default=())


class _Choices(ModuleType):
    """The choices in effect in this thread and task, the latest last, as a module attribute.

    torch.compile cannot trace a ContextVar. It reads an attribute of a module when it traces, and again as a
    guard before each call of a compiled function.
    """

    @property
    def held(self) -> tuple[use_backend, ...]:
        return _held.get()

    @held.setter
    def held(self, choices: tuple[use_backend, ...]) -> None:
        _held.set(choices)


_choices = _Choices("dmm_fast.ops._backends.choices")


def _op_names(ops: Collection[str]) -> frozenset[str]:
    expected = "None or a collection of names of ops"
    # One-shot iterators are refused, since they are probably a mistake.
    if not isinstance(ops, Collection):
        fail("ops", expected, describe(ops), TypeError)
    known = sorted(_implementations)
    names = elements("ops", ops, expected)
    for op in names:
        if not isinstance(op, str) or op not in known:
            fail("ops", f"names among {', '.join(known)}", repr(op)[:80])
    return frozenset(names)


def _without_replaced(held: tuple[use_backend, ...]) -> tuple[use_backend, ...]:
    """Remove plain choices that later plain calls have replaced, since they can never take effect again."""
    kept: list[use_backend] = []
    replaced: frozenset[str] = frozenset()
    for choice in reversed(held):
        if not choice._is_block:
            ops = frozenset(_implementations) if choice._ops is None else choice._ops
            if ops <= replaced:
                continue
            replaced = replaced.union(ops)  # torch.compile of torch 2.10 has no |= of frozensets
        kept.append(choice)
    return tuple(reversed(kept))


def requested(op: str) -> str | None:
    """The backend requested for ``op``, or None."""
    for choice in reversed(_choices.held):
        if choice._ops is None or op in choice._ops:
            return choice._name
    return None


def may_use(name: str) -> bool:
    """True if backend ``name`` may compute things that are not ops: no other is chosen for all ops."""
    for choice in reversed(_choices.held):
        if choice._ops is None:
            return choice._name in (None, name)
    return True


def register(
    op: str, backend: str, compute: Callable[..., Any], dtypes: tuple[torch.dtype, ...] | None = None
) -> None:
    """Register ``compute`` as the implementation of ``op`` in ``backend``, for ``dtypes`` (None: any)."""
    _implementations.setdefault(op, {})[backend] = Implementation(compute, dtypes)


def implementation(op: str, tensor: Tensor) -> Callable[..., Any]:
    """The function that computes ``op`` for a tensor, with the arguments of the reference."""
    return _implementations[op][chosen(op, tensor.device.type, tensor.dtype)].compute


def candidates(op: str, device: str, dtype: torch.dtype) -> list[str]:
    """The backends that can compute ``op`` on ``device`` in ``dtype``, by preference."""

    def computes(backend: str) -> bool:
        held = _implementations[op].get(backend)
        return held is not None and (held.dtypes is None or dtype in held.dtypes)

    return [b for b in PREFERENCE.get(device, ("reference",)) if computes(b)]


def chosen(op: str, device: str, dtype: torch.dtype = torch.float32) -> str:
    """The backend that would compute ``op`` on ``device`` in ``dtype``.

    Raises:
        BackendError: the backend requested with :func:`use_backend` cannot compute it.
    """
    able = candidates(op, device, dtype)
    wanted = requested(op)
    if wanted is not None and wanted not in able:
        refuse(op, wanted, device, dtype, able)
    return wanted or able[0]


def refuse(op: str, backend: str, device: str, dtype: torch.dtype, able: list[str]) -> NoReturn:
    """Raise an error: ``backend`` cannot compute ``op`` there, while those in ``able`` can.

    Raises:
        BackendError: always.
    """
    missing = _missing().get(backend)
    why = f" ({missing})" if missing else ""
    name = str(dtype).removeprefix("torch.")
    expected = f"one that computes {op} on {device} in {name} ({', '.join(able) or 'none does'})"
    fail("backend", expected, f"{backend!r}, which has none there{why}", BackendError)


def _holders() -> set[str]:
    """The backends that compute at least one op."""
    return {backend for by_backend in _implementations.values() for backend in by_backend}


def _missing() -> dict[str, str]:
    """The reason for each unavailable backend."""
    without_nvcc = "built without CUDA kernels: no nvcc in CUDA_HOME or on PATH, or it failed"
    reasons = {
        "cpp": _extension.missing,
        "triton": _extension.of_other_version or triton.missing,
        "cuda": _extension.missing or (None if _extension.cuda_architectures() else without_nvcc),
    }
    return {name: why for name, why in reasons.items() if why}


def info() -> dict[str, Any]:
    """Report the installed versions, the backends of each op, and each op's default backend.

    ``requested`` is the choice made by :func:`use_backend` in this thread and task: None, the name of a
    backend if it is the same for all ops, or a dictionary from ops to backends.
    """
    from dmm_fast import __version__

    missing = _missing()
    holders = _holders() - missing.keys()
    chosen_for = {op: requested(op) for op in sorted(_implementations)}
    return {
        "dmm_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "instruction_set": _extension.instruction_set(),
        "cuda_architectures": _extension.cuda_architectures() or None,
        "backends": {b: b in holders for b in BACKENDS},
        "missing": missing,
        "ops": {
            op: {device: candidates(op, device, torch.float32)[0] for device in PREFERENCE}
            for op in sorted(_implementations)
        },
        "requested": next(iter(chosen_for.values()))
        if len(set(chosen_for.values())) == 1
        else {op: name for op, name in chosen_for.items() if name},
    }
