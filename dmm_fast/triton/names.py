"""Names of compiled kernels that are the same in every process, so that each finds what another compiled."""

import importlib
import pkgutil

from triton.runtime.jit import JITFunction

from dmm_fast import triton


def name_kernels() -> None:
    """Have Triton name all kernels of this package now, in one order.

    A name is made of the source of a kernel and of the functions that it calls, and of their constants.
    Triton 3.6 leaves out the constants of a function that it has not named before, so what a process
    launches first would decide whether it finds a kernel in Triton's cache or compiles it again.
    """
    for found in pkgutil.iter_modules(triton.__path__, f"{triton.__name__}."):
        for function in vars(importlib.import_module(found.name)).values():
            if isinstance(function, JITFunction):
                _ = function.cache_key  # it is made by the first look at it
