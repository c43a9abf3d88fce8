"""Backend "cuda" for CPU tensors, with kernels run by the emulator.

A plugin of pytest, ``-p tests.emulated``, and of the GPU benchmarks, ``--plugin tests.emulated``.

Everything but the kernels is what runs on a GPU: the ops' Python, the plans, the kernels' sources. The tests
of the ops then offer the backend on the CPU like any other.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dmm_fast.ops.schema import OTHERS
from dmm_fast.ops.schema._signature import Signature, size_of, sizes_in

emulator: Any  # the module built by build.ninja, which is on the path
options: Any
_library = torch.library.Library("dmm_fast", "IMPL", "CPU")


def pytest_configure() -> None:
    """Install the backend before any test module is imported."""
    install()


def install() -> None:
    """Make the ops' kernels run under the emulator, and backend "cuda" one for the CPU."""
    global emulator, options
    import dmm_emulator

    from dmm_fast.cuda import combiner_tensor, lane_tiles, plan, rnn_bf16, rnn_plans
    from dmm_fast.ops import _backends, _registry

    emulator, options = dmm_emulator, dmm_emulator.Options()
    for signature in OTHERS.values():
        if signature.name == "_launch_clipped_adam":
            _library.impl(signature.name, _clipped_adam(signature))
        elif signature.name.startswith("_launch"):
            _library.impl(signature.name, _launch(signature))
    _backends.PREFERENCE["cpu"] = (*_backends.PREFERENCE["cpu"], "cuda")
    _registry.route_on("cpu")
    for module in (plan, rnn_plans, rnn_bf16, lane_tiles, combiner_tensor):
        vars(module)["kernels"] = kernels  # the options that the emulator was compiled with


@lru_cache
def kernels(kind: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, sizes.split(","))) for sizes in emulator.scan_kernels(kind).split())


def _clipped_adam(signature: Signature) -> Callable[..., None]:
    """Make the function that launches a step of Adam, on the memory of the tensors."""

    def launch(*values: Any) -> None:
        given = zip(signature.arguments, values, strict=True)
        emulator.clipped_adam(
            **{a.name: [t.numpy() for t in value] if a.kind == "tensors" else value for a, value in given}
        )

    return launch


def _launch(signature: Signature) -> Callable[..., Any]:
    """Make the function that launches a scan. Results that no thread writes are NaN."""
    name = signature.name.removeprefix("_launch_")
    run = getattr(emulator, name)

    def launch(*values: Any) -> Tensor | tuple[Tensor, ...]:
        given = dict(zip((a.name for a in signature.flat_arguments), values, strict=True))
        tensors = [a for a in signature.flat_arguments if a.kind == "tensor" and "(" not in a.dims]
        sizes = {letter: n for a in tensors for letter, n in zip(a.dims, given[a.name].shape, strict=True)}
        like = given[tensors[0].name]
        made = {}
        for result in signature.flat_results:
            wanted = given.get(f"keep_{result.name}", True)
            made[result.name] = like.new_full(_shape(result.dims, sizes) if wanted else (0,), float("nan"))
        results = tuple(made.values())
        if results[-1 if name.endswith("_backward") else 0].numel():
            given.update({n: given[n].contiguous() for n in ("base", "b_z", "g") if n in given})
            run(options, **given, **made)
        else:
            for tensor in results:
                tensor.zero_()
        return results[0] if len(results) == 1 else results

    return launch


def _shape(dims: str, sizes: dict[str, int]) -> list[int]:
    return [size_of(size, sizes) for size in sizes_in(dims)]
