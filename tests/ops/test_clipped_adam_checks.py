"""Arguments that ``clipped_adam`` refuses before any change: numbers, lists, shared memory."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm_fast import use_backend
from dmm_fast.ops import clipped_adam
from tests.compare import each_backend
from tests.device import DEVICE, cpu_only

LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs")
NUMBERS = {"beta1": 0.5, "beta2": 0.25, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}
NAN, INF = float("nan"), float("inf")


def arguments(**changed: Any) -> dict[str, Any]:
    lists = {name: [torch.ones(3, device=DEVICE), torch.ones(2, device=DEVICE)] for name in LISTS}
    return {**lists, "step": 1, "lr": 0.1, **NUMBERS, **changed}


def assert_refused(error: type[Exception], message: str, **changed: Any) -> None:
    """Call with changed arguments, and check that no tensor is modified."""
    given = arguments(**changed)
    tensors = [t for name in LISTS if isinstance(given[name], list) for t in given[name]]
    dense = [t for t in tensors if isinstance(t, Tensor) and t.layout == torch.strided and not t.is_meta]
    before = [t.clone() for t in dense]
    with pytest.raises(error, match=message):
        clipped_adam(**given)
    assert all(torch.equal(a, b) for a, b in zip(before, dense, strict=True))


# --- numbers ----------------------------------------------------------------------------------------------

OUT_OF_RANGE = {
    "step": (0, -1, 2**63),
    "lr": (NAN, INF, -INF, 10**400),
    "beta1": (1.0, 1.5, -0.1, NAN),
    "beta2": (1, 2.0, -1e-9, NAN),
    "eps": (-1.0, NAN, INF),
    "weight_decay": (-0.1, NAN, INF),
    "clip_norm": (0, -1.0, NAN, -INF),
    "lrd": (0.0, -1.0, NAN, INF),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused(name: str) -> None:
    for value in OUT_OF_RANGE[name]:
        got = re.escape(repr(value)[:80])
        assert_refused(ValueError, rf"^{name}: expected an? .*(int|number).*, got {got}$", **{name: value})


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_values_other_than_numbers_are_refused(name: str) -> None:
    values = [*([] if name == "lrd" else [None]), "0.5", True, (0.5,), 1j, np.ones(1), np.bool_(True)]
    values += [1.0, Fraction(1)] if name == "step" else []
    values += [[0.5], torch.tensor(0.5)] if name not in ("step", "lr") else []
    for value in values:
        assert_refused(TypeError, rf"^{name}: expected an? .*(int|number).*, got \w+ ", **{name: value})


@each_backend("clipped_adam")
def test_numbers_of_other_types_are_accepted(backend: str) -> None:
    others = {
        "beta1": np.float32(0.5),
        "beta2": Fraction(1, 4),
        "weight_decay": np.int64(0),
        "clip_norm": np.float64(INF),
    }
    expected = arguments(weight_decay=0.0, clip_norm=INF, step=2, lr=1.0)
    got = arguments(**others, step=np.int64(2), lr=1)
    with use_backend(backend):
        clipped_adam(**expected)
        clipped_adam(**got)
    for name in LISTS:
        assert torch.equal(got[name][0], expected[name][0])


@pytest.mark.parametrize("value", [0, 1, None, "yes", torch.tensor(True)])
def test_centered_variance_is_a_bool(value: Any) -> None:
    assert_refused(TypeError, "^centered_variance: expected a bool, got", centered_variance=value)


# --- lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_values_other_than_lists_of_tensors_are_refused(name: str) -> None:
    for value in (None, "ab", 3, torch.ones(2, 3), {}, iter([torch.ones(3)]), np.ones((2, 3))):
        assert_refused(TypeError, rf"^{name}: expected list or tuple, got", **{name: value})
    for element in (None, "x", 1.0, [1.0] * 3, np.ones(3), torch.ones(3).long(), torch.ones(3).to_sparse()):
        tensors = [element, torch.ones(2)]
        assert_refused(TypeError, rf"^{name}\[0\]: expected a floating-point tensor, got", **{name: tensors})


@pytest.mark.parametrize("name", LISTS)
def test_a_tensor_unlike_the_others_is_named(name: str) -> None:
    first = torch.ones(3, device=DEVICE)
    for unlike in (torch.ones(2, device=DEVICE).double(), torch.ones(2, device="meta")):
        assert_refused(ValueError, rf"^{name}\[1\]: expected float32 on", **{name: [first, unlike]})
    # The shape of a parameter determines that of the others.
    named = "grads" if name == "params" else name
    for shape in ((1,), (2, 1), ()):
        unlike = torch.ones(shape, device=DEVICE)
        assert_refused(ValueError, rf"^{named}\[1\]: expected shape", **{name: [first, unlike]})
    assert_refused(ValueError, r"^\w+: expected \d tensors as params has, got \d$", **{name: [first]})


# --- memory -----------------------------------------------------------------------------------------------

ALL = slice(None)


def square(*places: Any) -> list[Tensor]:
    """Views of one square."""
    whole = torch.ones(4, 4, device=DEVICE)
    return [whole[place] for place in places]


APART: dict[str, Callable[[], list[Tensor]]] = {
    "rows": lambda: square(slice(2), slice(2, 4)),
    "columns": lambda: square((ALL, slice(2)), (ALL, slice(2, 4))),
    "every other column": lambda: square((ALL, slice(0, 4, 2)), (ALL, slice(1, 4, 2))),
    "no element": lambda: square(ALL, slice(1, 1)),
}
OVERLAPPING: dict[str, Callable[[], list[Tensor]]] = {
    "the same": lambda: square(ALL, ALL),
    "rows": lambda: square(slice(3), slice(2, 4)),
    "one within the other": lambda: square(ALL, slice(1, 2)),
    "columns": lambda: square((ALL, slice(3)), (ALL, slice(2, 4))),
    "a row and a column": lambda: square(0, (ALL, 3)),
    "transposed": lambda: [t.mT if k else t for k, t in enumerate(square(ALL, ALL))],
}


def like(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.ones_like(t) for t in tensors]


@pytest.mark.parametrize("label", APART)
@each_backend("clipped_adam")
def test_views_apart_are_stepped_as_copies_are(backend: str, label: str) -> None:
    params = APART[label]()
    copies = [p.clone() for p in params]
    with use_backend(backend):
        for tensors in (params, copies):
            given = {name: tensors if name == "params" else like(copies) for name in LISTS}
            clipped_adam(**arguments(**given))
    for view, copy in zip(params, copies, strict=True):
        assert torch.equal(view, copy)


@pytest.mark.parametrize("label", OVERLAPPING)
@pytest.mark.parametrize("name", LISTS)
def test_tensors_that_overlap_are_refused(name: str, label: str) -> None:
    views = OVERLAPPING[label]()
    given = {other: views if other == name else like(views) for other in LISTS}
    message = rf"^{name}\[[01]\]: expected memory apart from that of {name}\[[01]\], got .+ that overlaps it$"
    shapes_fit = views[0].shape == views[1].shape
    if name != "grads":
        assert_refused(ValueError, message, **given)
    elif shapes_fit:
        # Clamping twice equals clamping once, so two parameters may share a gradient.
        clipped_adam(**arguments(**given))


@pytest.mark.parametrize("name", LISTS[1:])
def test_a_parameter_is_apart_from_its_own_gradient_and_averages(name: str) -> None:
    p = torch.ones(4, device=DEVICE)
    for other in (p, p.view(4), p.detach()):
        given = {**{n: [torch.ones(4, device=DEVICE)] for n in LISTS}, "params": [p], name: [other]}
        assert_refused(ValueError, rf"^(params|{name})\[0\]: expected memory apart from that of", **given)


@pytest.mark.parametrize("name", LISTS)
def test_a_tensor_that_overlaps_itself_is_refused(name: str) -> None:
    memory = torch.ones(5, device=DEVICE)
    for tensor in (memory[:1].expand(3), memory.as_strided((2, 3), (1, 1))):
        given = {n: [torch.ones(tensor.shape, device=DEVICE)] for n in LISTS}
        message = rf"^{name}\[0\]: expected no two elements at one address, got .+ with stride"
        assert_refused(ValueError, message, **{**given, name: [tensor]})


@cpu_only
def test_a_tensor_that_begins_within_an_element_of_another_is_refused() -> None:
    buffer = bytearray(40)
    params = [torch.frombuffer(buffer, dtype=torch.float32, count=8, offset=k)[::2] for k in (0, 6)]
    given = {name: params if name == "params" else like(params) for name in LISTS}
    assert_refused(ValueError, r"^params\[1\]: expected memory apart from that of params\[0\]", **given)


@cpu_only
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("advance", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_torch_compile_steps_in_one_graph(backend: str, advance: bool, compiler: str) -> None:
    def step(lists: dict[str, list[Tensor]]) -> None:
        if advance:
            count, rate = lists["numbers"]
            clipped_adam(**{n: lists[n] for n in LISTS}, step=count, lr=[rate, rate], lrd=0.5, **NUMBERS)
        else:
            clipped_adam(**{n: lists[n] for n in LISTS}, step=1, lr=0.1, **NUMBERS)

    def make() -> dict[str, list[Tensor]]:
        numbers = [torch.tensor(3), torch.tensor(0.1, dtype=torch.float64)]
        return {n: [torch.ones(3), torch.ones(2)] for n in LISTS} | {"numbers": numbers}

    torch._dynamo.reset()
    expected, got = make(), make()
    with use_backend(backend):
        step(expected)
        torch.compile(step, fullgraph=True, backend=compiler)(got)
    for name in got:
        for a, b in zip(got[name], expected[name], strict=True):
            torch.testing.assert_close(a, b)
    assert int(expected["numbers"][0]) == 3 + advance
