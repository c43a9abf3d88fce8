"""CUDA C++ kernels of the two scans: persistent on thread-block clusters, weights on the chip.

A module has the name of its op's file and holds a function for the compiled op and one for its
``_backward``: the names, arguments and layouts ``[P, B, T, ...]`` of the C++ ops on the CPU. What is not
sequential is a few large products of torch's around the kernels, which are ops of the compiled library and
take a plan: how the work is cut up, a pure function of the sizes and the device (:mod:`.plan`).
"""

import torch

from dmm_fast import native
from dmm_fast.library import Library

DTYPES = (torch.float32,)
"""What the kernels take."""

NAMESPACE = "dmm_fast_cuda"
# For any device: these ops run where the compiled ones that they call do.
_library = None if native.missing else Library(NAMESPACE, __name__, "CompositeExplicitAutograd")


def holds(stem: str) -> bool:
    """Whether there is a module ``stem``; its ops are then ``dmm_fast_cuda::<name>``."""
    return _library is not None and _library.holds(stem)
