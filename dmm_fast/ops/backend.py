"""Who computes an op: the registry of implementations, the choice among them, and a report of both.

The default goes by the device of the tensors. An explicit choice with :func:`use_backend` never falls
back: an op that the chosen backend cannot compute raises :class:`BackendError`.
"""

import platform
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from dmm_fast import kernels, native
from dmm_fast.check import fail

BACKENDS = ("reference", "cpp", "triton", "cuda")

# What a device prefers, best first. A backend that is not registered for an op is passed over here,
# and only here: this order is the default, not an answer to an explicit request. Where Triton's kernels
# are interpreted they take CPU tensors, for whoever asks for them.
_PREFERENCE = {
    "cpu": ("cpp", "reference", *(("triton",) if kernels.INTERPRETED else ())),
    "cuda": ("cuda", "triton", "reference"),
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Implementation(NamedTuple):
    """What a backend has for an op, and for which dtypes (None: any)."""

    compute: Callable[..., Any]
    dtypes: tuple[torch.dtype, ...] | None


_implementations: dict[str, dict[str, Implementation]] = {}
_requested: str | None = None


class BackendError(RuntimeError):
    """The backend that was asked for cannot compute this op; the message says why."""


class use_backend:  # noqa: N801 - reads as a verb, as a call and in a with statement
    """Compute every op with ``name``: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    As a call it holds until the next call; in a ``with`` statement until the block ends. ``None``
    gives the choice back to the device of the tensors.

    Raises:
        ValueError: ``name`` is no backend.
    """

    def __init__(self, name: str | None) -> None:
        global _requested
        if name is not None and name not in BACKENDS:
            fail("name", f"None or one of {', '.join(BACKENDS)}", repr(name))
        self._before = _requested
        _requested = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _requested
        _requested = self._before


def register(
    op: str,
    backend: str,
    compute: Callable[..., Any],
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> None:
    """Make ``compute`` what ``backend`` has for ``op``, for tensors of ``dtypes`` (None: any)."""
    _implementations.setdefault(op, {})[backend] = Implementation(compute, dtypes)


def reference_op(op: str, compute: Callable[_P, _R]) -> Callable[[Tensor], Callable[_P, _R]]:
    """Register the reference of ``op`` and return what picks an implementation for a tensor.

    Every implementation has the reference's signature.
    """
    register(op, "reference", compute)

    def pick(tensor: Tensor) -> Callable[_P, _R]:
        return _implementations[op][chosen(op, tensor.device.type, tensor.dtype)].compute

    return pick


def _candidates(op: str, device: str, dtype: torch.dtype) -> list[str]:
    def computes(backend: str) -> bool:
        held = _implementations[op].get(backend)
        return held is not None and (held.dtypes is None or dtype in held.dtypes)

    return [b for b in _PREFERENCE.get(device, ("reference",)) if computes(b)]


def chosen(op: str, device: str, dtype: torch.dtype = torch.float32) -> str:
    """The backend that would compute ``op`` on ``device`` in ``dtype``.

    Raises:
        BackendError: the backend asked for with :func:`use_backend` has no such op there.
    """
    candidates = _candidates(op, device, dtype)
    if _requested is None:
        return candidates[0]
    if _requested not in candidates:
        name = str(dtype).removeprefix("torch.")
        missing = _missing().get(_requested)
        why = f" ({missing})" if missing else ""
        raise BackendError(
            f"backend: expected one that computes {op} on {device} in {name} "
            f"({', '.join(candidates)}), got {_requested!r}, which has none there{why}"
        )
    return _requested


def _holders() -> set[str]:
    """The backends that compute any op."""
    return {backend for by_backend in _implementations.values() for backend in by_backend}


def _missing() -> dict[str, str]:
    """Why a backend is not there at all, for each that is not."""
    without_nvcc = "built without CUDA kernels: no nvcc in CUDA_HOME or on PATH, or it failed"
    reasons = {
        "cpp": native.missing,
        "triton": kernels.missing,
        "cuda": native.missing or (None if native.cuda_architectures() else without_nvcc),
    }
    return {name: why for name, why in reasons.items() if why}


def info() -> dict[str, Any]:
    """What is installed, which backends hold an op, and which computes each op by default."""
    from dmm_fast import __version__

    holders = _holders()
    return {
        "dmm_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "instruction_set": native.instruction_set(),
        "cuda_architectures": native.cuda_architectures() or None,
        "backends": {b: b in holders for b in BACKENDS},
        "missing": _missing(),
        "ops": {
            op: {device: _candidates(op, device, torch.float32)[0] for device in _PREFERENCE}
            for op in sorted(_implementations)
        },
        "requested": _requested,
    }
