"""The library itself: invalid arguments are refused before memory is accessed, overlaps are read correctly.

The public ops check before; these checks are for direct calls of ``torch.ops.dmm_fast``.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dmm_fast import _extension
from tests.cases import Case
from tests.compiled import COMPILED, Call, calls_of, clipped_adam_call

pytestmark = pytest.mark.skipif(
    _extension.missing is not None, reason=f"no compiled library: {_extension.missing}"
)

CASE = Case("call", B=3, T=4, D=5, Z=8, H=6, R=10, G=7, E=9, particles=(2,), lengths="ragged", mask="dims")

Spoil = Callable[[Tensor], Tensor]


def _calls() -> Iterator[tuple[str, Call]]:
    for op_name in COMPILED:
        for call in calls_of(op_name, CASE):
            yield f"{op_name}:{call.name}", call
    if COMPILED:
        yield "clipped_adam", clipped_adam_call()


CALLS = dict(_calls())

# Errors attributed to the argument itself.
KINDS: dict[str, Spoil] = {
    "half": lambda t: t.half(),
    "int32": lambda t: t.int(),
    "complex": lambda t: t.to(torch.complex128),
    "no dimension": lambda t: t.flatten()[0],
    "one dimension less": lambda t: t[0],
    "one dimension more": lambda t: t.unsqueeze(0),
}
# Some arguments determine sizes; errors in these are attributed to another argument.
SIZES: dict[str, Spoil] = {
    "float": lambda t: t.float() if t.dtype == torch.float64 else t.double(),
    "short": lambda t: t[:-1],
    "narrow": lambda t: t[..., :-1],
    "empty": lambda t: t[..., :0],
    "long": lambda t: torch.cat([t, t]),
}
# Invalid changes of a number given as a tensor.
NUMBERS = ("half", "int32", "complex", "one dimension more", "float")


def _places(call: Call) -> Iterator[tuple[str, int | None, str]]:
    """Every tensor of a call: its argument, its index in a list, and its name in messages."""
    for name, value in zip(call.names, call.args, strict=True):
        if isinstance(value, Tensor):
            yield name, None, name
        elif isinstance(value, list):
            for i in range(len(value)):
                yield name, i, f"{name}[{i}]"


def _spoilt(call: Call, name: str, index: int | None, spoil: Spoil) -> dict[str, Any]:
    value = call.args[call.names.index(name)]
    if index is None:
        return {name: spoil(value)}
    return {name: [*value[:index], spoil(value[index]), *value[index + 1 :]]}


def _spoils(spoils: dict[str, Spoil], call: Call, name: str, index: int | None) -> dict[str, Spoil]:
    """The changes that apply to the tensor."""
    value = call.args[call.names.index(name)]
    tensor = value if index is None else value[index]
    return spoils if tensor.dim() else {s: spoil for s, spoil in spoils.items() if s in NUMBERS}


def refusal(call: Call, changed: dict[str, Any]) -> str:
    """The first line of the error, or a note that there was none."""
    try:
        call.run(**changed)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "no error"


each_call = pytest.mark.parametrize("label", CALLS)


@each_call
def test_valid_arguments_are_accepted(label: str) -> None:
    CALLS[label].run()


def test_every_op_of_the_library_is_called() -> None:
    registered = {
        schema.name.removeprefix("dmm_fast::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("dmm_fast::")
        and torch._C._dispatch_has_kernel_for_dispatch_key(schema.name, "CPU")
    }
    assert registered == {call.name for call in CALLS.values()}


@each_call
def test_a_tensor_of_another_kind_is_named(label: str) -> None:
    call, faults = CALLS[label], []
    for name, index, in_message in _places(call):
        # The parameters determine the other lists.
        named = r"\w+\[\d\]" if name == "params" else re.escape(in_message)
        for kind, spoil in _spoils(KINDS, call, name, index).items():
            message = refusal(call, _spoilt(call, name, index, spoil))
            if not re.search(rf", {named}: expected .+, got .+ of shape \(.*\)", message):
                faults.append(f"{in_message}, {kind}: {message}")
    assert faults == []


# Ops of one tensor besides the weights: any number of single steps, or of particles, fits.
ANY_NUMBER = ("emitter", "gaussian_emitter", "gated_transition", "input_projection")


@each_call
def test_a_tensor_that_does_not_fit_the_others_is_refused(label: str) -> None:
    call, faults = CALLS[label], []
    for name, index, in_message in _places(call):
        for size, spoil in _spoils(SIZES, call, name, index).items():
            if size in ("short", "long") and index is None and call.name in ANY_NUMBER:
                continue
            message = refusal(call, _spoilt(call, name, index, spoil))
            if not re.search(r", \w+(\[\d\])?: expected .+, got .+ of shape \(.*\)", message):
                faults.append(f"{in_message}, {size}: {message}")
    assert faults == []


@pytest.mark.parametrize("label", [label for label, call in CALLS.items() if "lengths" in call.names])
@pytest.mark.parametrize("wrong", [-1, CASE.T + 1, 2**40])
def test_lengths_out_of_range_are_refused(label: str, wrong: int) -> None:
    message = refusal(CALLS[label], {"lengths": torch.tensor([1, wrong, 2])})
    assert f", lengths: expected values between 0 and T = 4, got {wrong} in row 1" in message


# Without tensors, numbers are used.
MAY_BE_EMPTY = ("steps", "lrs")


@each_call
def test_a_list_of_another_length_is_refused(label: str) -> None:
    call, faults = CALLS[label], []
    for name, value in zip(call.names, call.args, strict=True):
        none = [] if name in MAY_BE_EMPTY else [[]]
        for wrong in (value[:-1], [*value, value[0]], *none) if isinstance(value, list) else ():
            message = refusal(call, {name: wrong})
            if not re.search(r", \w+: expected .+, got \d+$", message):
                faults.append(f"{name}, {len(wrong)}: {message}")
    assert faults == []


@pytest.mark.parametrize("wrong", ["gelu", "", "ReLU"])
def test_another_nonlinearity_is_refused(wrong: str) -> None:
    for call in CALLS.values():
        if "nonlinearity" in call.names:
            message = refusal(call, {"nonlinearity": wrong})
            assert message.endswith(f", nonlinearity: expected relu or tanh, got {wrong}")


# --- memory that is shared ------------------------------------------------------------------------------


def _one_stride(tensor: Tensor) -> Tensor:
    """Rows overlap: each starts one element after the row before."""
    return tensor.contiguous().as_strided(tensor.shape, [1] * tensor.dim())


def _one_element(tensor: Tensor) -> Tensor:
    return tensor.flatten()[0].expand(tensor.shape)


def _flat(value: Any) -> list[Tensor]:
    return [t for v in value for t in _flat(v)] if isinstance(value, (tuple, list)) else [value]


@pytest.mark.parametrize("overlap", [_one_stride, _one_element])
@pytest.mark.parametrize("label", [label for label in CALLS if label != "clipped_adam"])
def test_inputs_may_overlap_themselves(label: str, overlap: Callable[[Tensor], Tensor]) -> None:
    call = CALLS[label]
    shared = dict(zip(call.names, tree_map_only(Tensor, overlap, call.args), strict=True))
    copied = tree_map_only(Tensor, lambda t: t.clone(memory_format=torch.contiguous_format), shared)
    for got, expected in zip(_flat(call.run(**shared)), _flat(call.run(**copied)), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("label", [label for label in CALLS if label != "clipped_adam"])
def test_outputs_have_memory_of_their_own(label: str) -> None:
    call = CALLS[label]
    given = [t.untyped_storage().data_ptr() for t in _flat(call.args) if isinstance(t, Tensor)]
    made = [t.untyped_storage().data_ptr() for t in _flat(call.run()) if t.numel()]
    assert len({*made}) == len(made)
    assert not {*made} & {*given}


@pytest.mark.parametrize("name", ["params", "grads", "exp_avgs", "exp_avg_sqs"])
@pytest.mark.parametrize("overlap", [_one_stride, _one_element])
def test_clipped_adam_refuses_what_overlaps_itself(name: str, overlap: Callable[[Tensor], Tensor]) -> None:
    call = clipped_adam_call()
    before = call.args[0][0].clone()
    everything = tree_map_only(Tensor, overlap, dict(zip(call.names[:4], call.args[:4], strict=True)))
    for changed in (_spoilt(call, name, 0, overlap), everything):
        assert re.search(r", \w+\[0\]: expected a dense Double", refusal(call, changed))
    assert torch.equal(call.args[0][0], before)


def test_clipped_adam_refuses_integers() -> None:
    call = clipped_adam_call()
    integers = tree_map_only(Tensor, Tensor.long, dict(zip(call.names[:4], call.args[:4], strict=True)))
    assert ", params[0]: expected Float or Double" in refusal(call, integers)


@pytest.mark.parametrize("name", ["steps", "lrs"])
def test_clipped_adam_advances_no_numbers(name: str) -> None:
    call = clipped_adam_call()
    assert f", {name}: expected 2 tensors, got 0" in refusal(call, {name: [], "advance": True})
