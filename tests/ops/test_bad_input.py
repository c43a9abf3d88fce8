"""Invalid arguments of an op are refused with the argument's name, the expected and the given value."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm_fast import ops
from dmm_fast.ops import CombinerWeights
from dmm_fast.ops.schema import OPS, WEIGHTS
from dmm_fast.ops.schema._signature import Op
from tests.cases import SEQUENCE_OPS, Case
from tests.device import DEVICE, cpu_only
from tests.inputs import Inputs, build

CASE = Case("bad", B=3, T=4, D=5, Z=8, H=6, R=4, G=7, E=9, start="rows", mask="dims")
WITH_PARTICLES = Case(**{**vars(CASE), "particles": (3,)})

Spoil = Callable[[Any], Any]


class _Odd:
    """A value that cannot be compared."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")


def _no_tensors(like: Tensor) -> dict[str, Any]:
    """Values of other types, some of them similar to a tensor."""
    return {
        "None": None,
        "string": "x",
        "int": 3,
        "number": 3.0,
        "bool": True,
        "list": like.tolist(),
        "list of tensors": [like],
        "tuple": tuple(like.shape),
        "dict": {},
        "array": like.cpu().numpy(),
        "scalar of numpy": np.float32(1.0),
        "class": Tensor,
        "object": _Odd(),
        "sparse": like.to_sparse(),
    }


OTHER_TYPES = tuple(_no_tensors(torch.ones(1)))


def _other_types(*names: str) -> Iterator[tuple[str, Spoil]]:
    """Values of other types in place of a tensor; all, or those of these names."""
    for name in names or OTHER_TYPES:
        yield name, lambda t, name=name: _no_tensors(t)[name]


def _tensor_spoils(op: Op, name: str, spec: str) -> Iterator[tuple[str, Spoil]]:
    """Invalid changes of a tensor argument that are attributed to the argument itself."""
    yield from _other_types()
    yield "integers", lambda t: t.long()
    yield "complex", lambda t: t.to(torch.complex64)
    if name == op.leading:
        if op.is_sequence:
            yield "2 dimensions", lambda t: t[0]
            yield "no time", lambda t: t[:, :0]
        else:
            yield "no dimension", lambda t: t[0, 0, 0]
        return
    yield "dtype", lambda t: t.double()
    yield "device", lambda t: t.to("meta")
    yield "features", lambda t: t[..., :-1]
    if spec[0] in "Ppns":
        yield "batch", lambda t: t[:-1]
    if spec[0] in "sH" or spec.partition(":")[0].endswith("Z"):  # the others broadcast
        yield "dimensions", lambda t: t.expand(2, 1, *t.shape)
    if "T" in spec and op.is_sequence:
        yield "time", lambda t: t[:, :-1]
        yield "1 dimension", lambda t: t[0, 0]


def _length_spoils() -> Iterator[tuple[str, Spoil]]:
    yield from _other_types()
    yield "float", lambda t: t.float()
    yield "int32", lambda t: t.int()
    yield "column", lambda t: t.unsqueeze(-1)
    yield "rows", lambda t: t[:-1]
    yield "device", lambda t: t.to("meta")
    if DEVICE != "cpu":
        return  # reading values would synchronise
    yield "negative", lambda t: t.clone().index_fill_(0, torch.tensor(1), -1)
    yield "beyond T", lambda t: t.clone().index_fill_(0, torch.tensor(1), CASE.T + 1)


def _mask_spoils() -> Iterator[tuple[str, Spoil]]:
    yield from _other_types(*(name for name in OTHER_TYPES if name != "None"))
    yield "rows", lambda t: t[:-1]
    yield "time", lambda t: t[:, :-1]
    yield "features", lambda t: t[..., :-1]
    yield "particles", lambda t: t.unsqueeze(0)
    yield "device", lambda t: t.to("meta")
    if DEVICE != "cpu":
        return  # reading values would synchronise
    yield "two", lambda t: 2.0 * torch.ones_like(t, dtype=torch.float32)
    yield "half", lambda t: 0.5 * torch.ones_like(t, dtype=torch.float32)
    yield "nan", lambda t: torch.full_like(t, torch.nan, dtype=torch.float32)


def _one_input_more(t: Tensor) -> Tensor:
    return torch.cat([t, t[..., :1]], -1)


def _field_spoils() -> Iterator[tuple[str, Spoil]]:
    yield from _other_types()
    yield "dtype", lambda t: t.double()
    yield "device", lambda t: t.to("meta")
    yield "inputs", _one_input_more
    yield "dimension more", lambda t: t.unsqueeze(0)
    yield "dimension less", lambda t: t[0]


def _weights_spoils(kind: str) -> Iterator[tuple[str, Spoil]]:
    for name, spoil in _other_types():
        yield name, lambda w, spoil=spoil: spoil(w[0])
    yield "tensor", lambda w: w[0]
    yield "tuple of tensors", tuple
    yield "list of all", list
    yield "dict of tensors", lambda w: w._asdict()
    for other, weights in WEIGHTS.items():
        if weights.tuple_type is not WEIGHTS[kind].tuple_type:
            sizes = [[CASE.letters[letter] for letter in word] for word in weights.words]
            yield other, lambda w, c=weights.tuple_type, s=sizes: c(*(torch.zeros(shape) for shape in s))


def _spoils(op: Op, name: str, spec: str) -> Iterator[tuple[str, Spoil]]:
    """Invalid replacements of an argument."""
    if spec in WEIGHTS:
        yield from _weights_spoils(spec)
    elif spec == "lengths":
        yield from _length_spoils()
    elif spec == "mask":
        yield from _mask_spoils()
    elif spec.startswith("choice"):
        for wrong in ("gelu", "ReLU", ""):
            yield repr(wrong), lambda _, wrong=wrong: wrong
        for label, spoil in _other_types():
            yield label, lambda _, spoil=spoil: spoil(torch.ones(2, 3))
        yield "array of names", lambda _: np.array(["relu"])
        yield "tensor", lambda _: torch.ones(2)
    else:
        yield from _tensor_spoils(op, name, spec)


# They determine a size that other arguments must match.
TELLING = {("nade_draw", "w_read", "features")}
SPOILT = [
    pytest.param(op.name, name, spoil, id=f"{op.name}-{name}-{label}")
    for op in OPS.values()
    for name, spec in op.inputs.items()
    for label, spoil in _spoils(op, name, spec)
    if (op.name, name, label) not in TELLING
]
FIELD_SPOILS = [pytest.param(spoil, id=label) for label, spoil in _field_spoils()]


def refusal(op_name: str, inputs: Inputs) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(ops, op_name)(**inputs)
    return str(caught.value)


def assert_named(name: str, message: str) -> None:
    assert re.match(rf"{re.escape(name)}: expected .+, got .+", message), message


@pytest.mark.parametrize("op_name", OPS)
def test_valid_arguments_are_accepted(op_name: str) -> None:
    # The inputs that the other tests change.
    for case in (CASE, WITH_PARTICLES):
        getattr(ops, op_name)(**build(op_name, case))


@pytest.mark.parametrize(("op_name", "name", "spoil"), SPOILT)
def test_invalid_arguments_are_named(op_name: str, name: str, spoil: Spoil) -> None:
    inputs = build(op_name, CASE)
    inputs[name] = spoil(inputs[name])
    assert_named(name, refusal(op_name, inputs))


@pytest.mark.parametrize("spoil", FIELD_SPOILS)
@pytest.mark.parametrize("op_name", [op.name for op in OPS.values() if "weights" in op.inputs])
def test_field_of_the_weights_that_does_not_fit_is_named(op_name: str, spoil: Spoil) -> None:
    inputs = build(op_name, CASE)
    weights = inputs["weights"]
    for field in weights._fields:
        if (op_name, field, spoil) == ("transition_scan", "w_gate_in", _one_input_more):
            continue  # this field determines the width of the others
        inputs["weights"] = weights._replace(**{field: spoil(getattr(weights, field))})
        assert_named(f"weights.{field}", refusal(op_name, inputs))


PARTICLED = [
    (op.name, name)
    for op in OPS.values()
    for name, spec in op.inputs.items()
    if spec[0] in "Pps" and name not in ("pre_scale", op.leading)
]


@pytest.mark.parametrize(("op_name", "name"), PARTICLED)
def test_particles_that_do_not_broadcast_are_named(op_name: str, name: str) -> None:
    inputs = build(op_name, WITH_PARTICLES)
    value: Tensor = inputs[name]
    inputs[name] = value.expand(3, *value.shape[-3:])[:2] if value.dim() > 3 else torch.stack([value, value])
    assert_named(name, refusal(op_name, inputs))


@pytest.mark.parametrize("op_name", SEQUENCE_OPS)
def test_lengths_error_quotes_the_value(op_name: str) -> None:
    inputs = build(op_name, CASE)
    inputs["lengths"] = torch.tensor([4.0, 4.0, 4.0]).unsqueeze(-1)
    wanted = r"lengths: expected int64 of shape \(3,\).*, got float32 of shape \(3, 1\)"
    assert re.match(wanted, refusal(op_name, inputs))


@cpu_only
@pytest.mark.parametrize("op_name", SEQUENCE_OPS)
def test_a_length_beyond_the_steps_is_quoted(op_name: str) -> None:
    inputs = build(op_name, CASE)
    inputs["lengths"] = torch.tensor([4, 9, -2])
    assert re.match(r"lengths: expected values between 0 and T = 4, got (9|-2)", refusal(op_name, inputs))


def test_weights_of_another_kind_are_detected_by_their_type() -> None:
    # The shapes fit; only the names of the fields do not.
    size = Case("square", D=4, Z=4, E=4, H=4)
    inputs = build("emitter", size)
    inputs["weights"] = CombinerWeights(*inputs["weights"])
    assert refusal("emitter", inputs).startswith("weights: expected")
