"""Triton kernels: no compiler when the package is installed, any NVIDIA GPU from sm_80 on.

A module has the name of its op's file and holds a function for each compiled op of that file, and one for
its ``_backward``: the names, arguments and layouts ``[P, B, T, ...]`` of the C++ ops. Arguments come
checked. Kernels are ``<op>_fwd_kernel`` and ``<op>_bwd_kernel``.
"""

import os
from importlib.util import find_spec

import torch

from dmm_fast.triton.tuning import autotune as autotune

# Triton's own switch, which it reads when it is imported: kernels then run on CPU tensors, step by step.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICE = "cpu" if INTERPRETED else "cuda"
"""The kind of device whose tensors the kernels take in this process."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the kernels, which compute in float32."""


def _why_not() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not INTERPRETED and torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return None


missing: str | None = _why_not()
"""Why the kernels cannot run here; None where they can."""
