"""CUDA C++ kernels: the two scans, persistent on thread-block clusters with weights on the chip, and Adam.

A module has the name of its op's file and holds a function for the compiled op and one for its
``_backward``, with the arguments and layouts of the table of ops. What is not sequential in a scan is a few
large products around the kernel, which is an op of the compiled library, ``dmm_fast::_launch_<op>``, and
takes a plan: how the work is cut up, a pure function of the sizes and the device (:mod:`.plan`).
"""

import torch

from dmm_fast import _extension

DTYPES = (torch.float32,)
"""Dtypes of the kernels."""

missing: str | None = _extension.missing
"""Why the kernels cannot be called; None where they can."""
