"""A graph for the CPU: it replays the operators of a step in their own memory, and none of its Python."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmm_fast import check

READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}
"""What waits for a GPU, whose capture it would end."""


class _Recorder(TorchDispatchMode):
    """Runs every operator and writes it down."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(f"{func} within a capture")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result


class RecordedGraphs:
    """Stands in for CUDA graphs. What a capture has computed is what its first replay gives."""

    def __init__(self) -> None:
        self.runs = self.captures = self.replays = 0

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        self.runs += 1
        return step()

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # As of a GPU's tensors: a step that looked at values would end its capture.
        with patch.object(check, "values_are_readable", lambda tensor: False), _Recorder() as recorder:
            loss = step()
        self.captures += 1
        fresh = True

        def replay() -> Tensor:
            nonlocal fresh
            if not fresh:
                for call in recorder.calls:
                    _again(*call)
            fresh = False
            self.replays += 1
            return loss

        return replay


@torch.no_grad()
def _again(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """The same call on the same memory; a view of it is there already."""
    if func.is_view:
        return
    new = func(*args, **kwargs)
    if func._schema.is_mutable:
        return
    for old, now in zip(tree_leaves(result), tree_leaves(new), strict=True):
        if isinstance(old, Tensor):
            old.copy_(now)
