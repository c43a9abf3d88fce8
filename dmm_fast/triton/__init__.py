"""Triton kernels, which need no compiler at installation, for any NVIDIA GPU from sm_80 on.

A module is named after its op's file and has a function for each compiled op of that file and one for its
``_backward``, with the names, arguments and layouts ``[P, B, T, ...]`` of the C++ ops. Arguments have already
been checked. Kernels are named ``<op>_fwd_kernel`` and ``<op>_bwd_kernel``.
"""

import os
from importlib.util import find_spec

import torch

from dmm_fast.triton.tuning import autotune as autotune

# Triton's own switch, which it reads at import: kernels are then interpreted, on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICE = "cpu" if INTERPRETED else "cuda"
"""The device type of the kernels' tensors in this process."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Supported dtypes; the kernels compute in float32."""


def _why_not() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not INTERPRETED and torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return None


missing: str | None = _why_not()
"""The reason why the kernels cannot run here; None if they can."""
