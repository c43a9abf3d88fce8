"""CUDA C++ kernels: the two scans, persistent on thread-block clusters with weights on chip, and Adam.

A module is named after its op's file and has a function for the compiled op and one for its ``_backward``,
with the arguments and layouts of the table of ops. The sequential part of a scan is a kernel, launched by an
op of the compiled library, ``dmm_fast::_launch_<op>``; the rest is a few large GEMMs around it. The kernel's
plan, that is the distribution of the work over blocks and threads, is a pure function of the sizes and the
device (:mod:`.plan`).
"""

import torch

from dmm_fast import _extension

DTYPES = (torch.float32,)
"""Supported dtypes."""

missing: str | None = _extension.missing
"""The reason why the kernels cannot be called; None if they can."""
