"""Triton kernels: no compiler when the package is installed, any NVIDIA GPU from sm_80 on.

A module has the name of its op's file and holds a function for each compiled op of that file, and one for
its ``_backward``: the names, arguments and layouts ``[P, B, T, ...]`` of the C++ ops. Arguments come
checked. Kernels are ``<op>_fwd_kernel`` and ``<op>_bwd_kernel``.
"""

import importlib
import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from dmm_fast.kernels.tuning import autotune as autotune

# Triton's own switch, which it reads when it is imported: kernels then run on CPU tensors, step by step.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICE = "cpu" if INTERPRETED else "cuda"
"""The kind of device whose tensors the kernels take in this process."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels take; they compute in float32."""


def _why_not() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not INTERPRETED and torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return None


missing: str | None = _why_not()
"""Why the kernels cannot run here; None where they can."""

NAMESPACE = "dmm_fast_triton"
_library = torch.library.Library(NAMESPACE, "FRAGMENT") if missing is None else None


def holds(stem: str) -> bool:
    """Whether there is a module ``stem`` that can run here; its ops are then ``dmm_fast_triton::<name>``."""
    if missing is not None or find_spec(f"{__name__}.{stem}") is None:
        return False
    _define(stem)
    return True


@lru_cache
def _define(stem: str) -> None:
    """Make torch ops of the functions in ``__all__``; their annotations are the schemas."""
    assert _library is not None
    module = importlib.import_module(f"{__name__}.{stem}")
    mutated: dict[str, tuple[str, ...]] = getattr(module, "MUTATED", {})
    for name in module.__all__:
        function: Callable[..., Any] = getattr(module, name)
        schema = torch.library.infer_schema(function, mutates_args=mutated.get(name, ()))
        _library.define(name + schema)
        _library.impl(name, function, DEVICE.upper())
