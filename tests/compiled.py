"""Recording of the calls that public ops make of compiled ops."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dmm_fast import ops
from dmm_fast.ops.schema import OPS
from tests.cases import Case
from tests.compare import backends_for, dtypes_for, run_backend
from tests.inputs import build

COMPILED = [op for op in OPS if "cpp" in backends_for(op)]
# In Triton they share the kernels of emission_log_prob with another density, and are slow interpreted.
OTHER_DENSITIES = {"poisson_emission_log_prob", "negative_binomial_emission_log_prob"}
# The call has a backward pass.
DIFFERENTIABLE = [name for name, op in OPS.items() if op.has_backward]
OP_BACKENDS = [(op, backend) for op in OPS for backend in backends_for(op) if backend != "reference"]


class Call(NamedTuple):
    """A call of a compiled op; ``names`` are the argument names of its schema."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The op's name without namespace and overload."""
        return str(self.function._schema.name).partition("::")[2]

    @property
    def names(self) -> list[str]:
        """The names of ``args``."""
        return [argument.name for argument in self.function._schema.arguments][: len(self.args)]

    def run(self, **changed: Any) -> Any:
        """Repeat the call with some arguments changed."""
        given = dict(zip(self.names, self.args, strict=True)) | self.kwargs | changed
        return self.function(**given)


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "dmm_fast" and not func.__name__.startswith("_launch"):
            self.seen.append(Call(func, *tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def calls_of(op_name: str, case: Case, backend: str = "cpp") -> list[Call]:
    """The calls of compiled ops, forward and backward, by a public op, in the widest dtype."""
    inputs = build(op_name, case, dtypes_for(op_name, backend)[-1])
    with _Calls() as calls:
        run_backend(op_name, inputs, case, backend)
    assert {call.args[-1] for call in calls.seen} == {backend}
    return calls.seen


def clipped_adam_call(dtype: torch.dtype = torch.float64) -> Call:
    """An optimizer step of two parameters with step counts and learning rates as tensors."""
    lists = [[torch.ones(3, 5, dtype=dtype), torch.ones(4, dtype=dtype)] for _ in range(4)]
    with _Calls() as calls, ops.use_backend("cpp"):
        ops.clipped_adam(
            *lists,
            step=[torch.tensor(1), torch.tensor(2)],
            lr=[torch.tensor(0.1, dtype=torch.float64) for _ in range(2)],
            beta1=0.9,
            beta2=0.9,
            eps=1e-8,
            weight_decay=0.0,
            clip_norm=1.0,
        )
    return calls.seen[0]
