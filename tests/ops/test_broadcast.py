"""Broadcasting of initial states and particles equals expansion, in every backend."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Size, Tensor

from benchmarks.draws import numbers
from dmm_fast import ops
from dmm_fast.ops.schema import OPS
from tests.cases import Case
from tests.compare import backends_for, differentiated, error, evaluate, incoming_gradients
from tests.inputs import Inputs, build, map_tensors

CASE = Case("broadcast", B=2, T=3, D=4, Z=3, H=5, R=4, G=3, E=4, lengths="ragged", mask="dims")
P = 3

# The arguments of an op that broadcast with each other, and the one that broadcasts to them.
PARTICLES = {
    op.name: [a.name for a in op.arguments if a.kind == "tensor" and a.dims[0] in "PpNn"]
    for op in OPS.values()
    if any(a.kind == "tensor" and a.dims[0] in "pn" for a in op.arguments)
}
STARTS = {
    op.name: a.name for op in OPS.values() for a in op.arguments if a.kind == "tensor" and a.dims[0] == "s"
}

# Leading dimensions, of the first argument and of the others.
LEADS = [((), (P,)), ((P,), ()), ((1,), (P,)), ((2, 1), (P,)), ((P,), (2, 1)), ((), (2, P))]

# The particles of the op's other arguments, and the shape of its start. F stands for its features.
START_SHAPES = [((), shape) for shape in ("", "1", "F", "B1", "BF")]
START_SHAPES += [((P,), shape) for shape in ("1", "F", "B1", "11F", "P11", "P1F", "PB1", "PBF")]


def each_backend(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, backend) for name in names for backend in backends_for(name)]


def draw(like: Tensor, op_name: str, name: str, shape: tuple[int, ...]) -> Tensor:
    """New values for the argument in another shape."""
    generator = torch.Generator().manual_seed(len(shape) + 10 * sum(shape))
    return numbers(OPS[op_name].inputs[name].partition(":")[2], shape, generator).to(like)


def assert_as_if_expanded(op_name: str, backend: str, inputs: Inputs, lead: Size) -> None:
    """Compare values and gradients in float32 with the float64 reference on expanded tensors."""
    start = STARTS.get(op_name)

    def expanded(**given: Any) -> Any:
        for name in (*PARTICLES.get(op_name, ()), start):
            if name is not None and name != start:
                given[name] = given[name].expand(*lead, *given[name].shape[-3:])
        if start is not None:
            spec = OPS[op_name].inputs[start]
            given[start] = given[start].expand(*lead, CASE.B, getattr(CASE, spec[-1]))
        with ops.use_backend("reference"):
            return getattr(ops, op_name)(**given)

    double = map_tensors(inputs, lambda _, t: (t.double() if t.is_floating_point() else t.clone()).detach())
    gradients_for = partial(incoming_gradients, case=CASE)
    outputs, gradients = evaluate(expanded, double, gradients_for, differentiated(op_name))
    with ops.use_backend(backend):
        got_outputs, got_gradients = evaluate(
            getattr(ops, op_name), inputs, gradients_for, differentiated(op_name)
        )
    for got, expected in zip(got_outputs, outputs, strict=True):
        assert got.shape == expected.shape
        assert error(got, expected) <= 1e-5
    for name, expected in gradients.items():
        assert got_gradients[name].shape == expected.shape
        assert error(got_gradients[name], expected) <= 1e-5, name


@pytest.mark.parametrize("leads", LEADS, ids=str)
@pytest.mark.parametrize(("op_name", "backend"), each_backend(PARTICLES))
def test_only_some_arguments_may_have_particles(op_name: str, backend: str, leads: Any) -> None:
    inputs = build(op_name, CASE)
    for name, lead in zip(PARTICLES[op_name], (*leads, leads[1]), strict=False):
        inputs[name] = draw(inputs[name], op_name, name, (*lead, *inputs[name].shape))
    assert_as_if_expanded(op_name, backend, inputs, torch.broadcast_shapes(*leads))


@pytest.mark.parametrize(("particles", "letters"), START_SHAPES, ids=str)
@pytest.mark.parametrize(("op_name", "backend"), each_backend(STARTS))
def test_a_start_of_any_shape_that_broadcasts(
    op_name: str, backend: str, particles: tuple[int, ...], letters: str
) -> None:
    inputs = build(op_name, replace(CASE, particles=particles))
    name = STARTS[op_name]
    sizes = {"1": 1, "B": CASE.B, "P": P, "F": inputs[name].shape[-1]}
    inputs[name] = draw(inputs[name], op_name, name, tuple(sizes[letter] for letter in letters))
    assert_as_if_expanded(op_name, backend, inputs, torch.Size(particles))


@pytest.mark.parametrize(
    ("op_name", "backend"), each_backend(["combiner_log_prob", "combiner_scan", "flow_scan"])
)
def test_a_start_may_have_the_particles_that_only_h_has(op_name: str, backend: str) -> None:
    inputs = build(op_name, CASE)
    inputs["h"] = draw(inputs["h"], op_name, "h", (P, *inputs["h"].shape))
    inputs["z_q_0"] = draw(inputs["z_q_0"], op_name, "z_q_0", (P, CASE.B, CASE.Z))
    assert_as_if_expanded(op_name, backend, inputs, torch.Size([P]))


@pytest.mark.parametrize("op_name", STARTS)
def test_a_start_has_no_particles_of_its_own(op_name: str) -> None:
    inputs = build(op_name, CASE)
    name = STARTS[op_name]
    inputs[name] = draw(inputs[name], op_name, name, (P, CASE.B, inputs[name].shape[-1]))
    with pytest.raises(ValueError, match=rf"^{name}: expected a shape that broadcasts to \(2, \d\) as"):
        getattr(ops, op_name)(**inputs)


def test_a_scale_broadcasts_with_value_and_loc_together() -> None:
    inputs = build("normal_log_prob", CASE)
    for name, lead in (("value", 1), ("loc", 2), ("scale", 3)):
        inputs[name] = inputs[name].expand(lead, *inputs[name].shape)
    with pytest.raises(ValueError, match=r"^scale: expected leading dimensions that broadcast with \(2,\)"):
        ops.normal_log_prob(**inputs)
