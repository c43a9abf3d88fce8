"""Deterministic cache keys of Triton kernels, so that processes share compiled kernels."""

import importlib
import pkgutil

from triton.runtime.jit import JITFunction

from dmm_fast import triton


def name_kernels() -> None:
    """Compute Triton's cache keys of all kernels of this package now, in a fixed order.

    A key is computed from the source of a kernel and of the functions that it calls, and from their
    constants. Triton 3.6 omits the constants of a function without a key, so the order of a process's
    launches would decide if it finds a kernel in Triton's cache or recompiles it.
    """
    for found in pkgutil.iter_modules(triton.__path__, f"{triton.__name__}."):
        for function in vars(importlib.import_module(found.name)).values():
            if isinstance(function, JITFunction):
                _ = function.cache_key  # the property computes the key at its first access
