"""Numbers of Triton kernels for batches of several shapes: ``python -m tests.triton.compiled_anew``.

Prints, as JSON, the number of different kernels of each op at one shape of a batch, and at all of
:data:`SHAPES`, which also differ in their strides. Nothing is compiled or launched.
"""

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from tests.triton.compile_table import NoGpu, run_every_pass, take_cpu_tensors

# Sizes that Triton may specialise on: 1, multiples of 16, and others.
SHAPES: tuple[dict[str, Any], ...] = (
    {"B": 4, "T": 5},
    {"B": 1, "T": 1},
    {"B": 16, "T": 5},
    {"B": 4, "T": 16},
    {"B": 16, "T": 16},
    {"B": 3, "T": 4, "particles": (2,)},
    {"B": 3, "T": 4, "particles": (16,)},
    {"B": 3, "T": 4, "particles": (2,), "start": "particles"},
    {"layout": "time_major", "incoming": "strided"},
    {"layout": "feature_major", "incoming": "expanded"},
)


def counts() -> list[dict[str, int]]:
    """For the first shape and for all of them: the number of different kernels by name."""
    # Set before the package is imported, as a torch without CUDA would have no Triton ops.
    torch.version.cuda = torch.version.cuda or "none"
    import triton
    from triton.runtime.jit import JITFunction

    from dmm_fast.ops.schema import OPS
    from tests.cases import CASES
    from tests.compare import backends_for

    asked: defaultdict[str, set[str]] = defaultdict(set)

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        binder = self.device_caches[0][-1]
        asked[self.fn.__name__].add(repr(binder(*args, **options)[1:]))

    take_cpu_tensors()
    triton.runtime.driver.set_active(NoGpu(90))
    JITFunction.run = note
    found = []
    for shapes in (SHAPES[:1], SHAPES):
        asked.clear()
        for op in (op for op in OPS if "triton" in backends_for(op)):
            for shape in shapes:
                case = replace(CASES["tutorial"], **{"incoming": "random", **shape})
                run_every_pass(op, case)
        found.append({name: len(kinds) for name, kinds in asked.items()})
    return found


if __name__ == "__main__":
    print(json.dumps(counts()))
