"""Invariants of every sequence op: padding, order of rows, particles, invalid entries."""

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmm_fast import ops, triton
from dmm_fast.ops.schema import OPS
from dmm_fast.ops.schema._signature import Op, sizes_in
from tests.cases import SEQUENCE_OPS, Case
from tests.compare import (
    Results,
    backends_for,
    differentiated,
    dtypes_for,
    error,
    evaluate,
    incoming_gradients,
)
from tests.compiled import OTHER_DENSITIES
from tests.device import DEVICE
from tests.inputs import Inputs, build, map_tensors

OP_BACKENDS = [
    (op, backend)
    for op in SEQUENCE_OPS
    for backend in backends_for(op)
    if not (triton.INTERPRETED and op in OTHER_DENSITIES)
]
each_op = pytest.mark.parametrize(("op_name", "backend"), OP_BACKENDS)

# A kernel that is interpreted or emulated takes a hundred times longer, and one for a GPU is compiled for
# each choice of feature sizes.
EXAMPLES = 4 if triton.INTERPRETED or "dmm_emulator" in sys.modules else 15
FEATURES = st.just(3) if DEVICE == "cuda" else st.integers(1, 4)

Pick = Callable[[Tensor, int], Tensor]

cases = st.builds(
    Case,
    name=st.just("drawn"),
    B=st.integers(1, 4),
    T=st.integers(1, 5),
    **dict.fromkeys("DZHRGE", FEATURES),
    particles=st.sampled_from([(), (1,), (3,)]),
    shared=st.booleans(),
    start=st.sampled_from(["one", "rows", "particles"]),
    lengths=st.sampled_from(["full", "ragged", "zeros"]),
    mask=st.sampled_from(["none", "steps", "dims"]),
    mask_dtype=st.sampled_from(["bool", "float"]),
    poison=st.sampled_from(["", "nan", "inf"]),
    nonlinearity=st.sampled_from(["relu", "tanh"]),
    direction=st.sampled_from(["backward", "forward"]),
    seed=st.integers(0, 1000),
)


def run(
    op_name: str, backend: str, inputs: Inputs, incoming: list[Tensor]
) -> tuple[tuple[Tensor, ...], Results]:
    with ops.use_backend(backend):
        return evaluate(getattr(ops, op_name), inputs, lambda outputs: incoming, differentiated(op_name))


def precision(op_name: str, backend: str) -> torch.dtype:
    """The most precise dtype that the backend computes the op in."""
    return dtypes_for(op_name, backend)[-1]


def run_whole(op_name: str, backend: str, case: Case) -> tuple[tuple[Tensor, ...], Results, list[Tensor]]:
    """Outputs and gradients of the case, and the incoming gradients."""
    incoming: list[Tensor] = []

    def draw(outputs: tuple[Tensor, ...]) -> list[Tensor]:
        incoming.extend(incoming_gradients(outputs, case))
        return incoming

    with ops.use_backend(backend):
        inputs = build(op_name, case, precision(op_name, backend))
        outputs, gradients = evaluate(getattr(ops, op_name), inputs, draw, differentiated(op_name))
    return outputs, gradients, incoming or draw(outputs)


def row_dim(op: Op, case: Case, name: str) -> int | None:
    """The batch dimension of an argument, or of an output given by its letters."""
    spec = op.inputs.get(name, name).partition(":")[0]
    if spec in ("lengths", "mask"):
        return 0
    if spec[0] == "s":
        return None if case.start == "one" else -2
    sizes = sizes_in(spec)
    is_of_rows = "B" in sizes and set(sizes) <= {*"PpBTDZH", "(I-Z)"}
    return sizes.index("B") - len(sizes) if is_of_rows else None


def particle_dim(op: Op, case: Case, name: str) -> int | None:
    """The particle dimension of an argument, or of an output given by its letters."""
    spec = op.inputs.get(name, name)
    has = {"P": True, "p": not case.shared, "s": case.start == "particles"}.get(spec[0], False)
    return 0 if has else None


def near(got: Tensor, expected: Tensor) -> bool:
    bound = 1e-10 if expected.dtype == torch.float64 else 1e-5
    return got.shape == expected.shape and error(got, expected.double()) <= bound


def assert_parts_make_the_whole(
    op_name: str,
    backend: str,
    case: Case,
    dim_of: Callable[[Op, Case, str], int | None],
    parts: list[Pick],
    join: Callable[[list[Tensor], int], Tensor],
) -> None:
    """Run each part of the case alone; concatenate outputs and gradients, and add shared gradients."""
    op = OPS[op_name]
    outputs, gradients, incoming = run_whole(op_name, backend, case)
    runs = []
    for pick in parts:

        def part(name: str, tensor: Tensor, pick: Pick = pick) -> Tensor:
            dim = dim_of(op, case, name)
            return tensor if dim is None else pick(tensor, dim).clone()

        pieces = zip(op.outputs.values(), incoming, strict=True)
        wanted = [pick(g, dim_of(op, case, spec)) for spec, g in pieces]
        runs.append(
            run(
                op_name, backend, map_tensors(build(op_name, case, precision(op_name, backend)), part), wanted
            )
        )
    for k, spec in enumerate(op.outputs.values()):
        assert near(join([outs[k] for outs, _ in runs], dim_of(op, case, spec)), outputs[k])
    for name, whole in gradients.items():
        of_parts = [grads[name] for _, grads in runs]
        dim = dim_of(op, case, name)
        joined = sum(of_parts[1:], of_parts[0]) if dim is None else join(of_parts, dim)
        assert near(joined, whole), name


@each_op
@given(case=cases, data=st.data())
@settings(max_examples=EXAMPLES)
def test_permuting_rows_permutes_results(op_name: str, backend: str, case: Case, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(case.B))), device=DEVICE)
    back = order.argsort()
    assert_parts_make_the_whole(
        *(op_name, backend, case, row_dim),
        parts=[lambda tensor, dim: tensor.index_select(dim, order)],
        join=lambda tensors, dim: tensors[0].index_select(dim, back),
    )


@each_op
@given(case=cases, data=st.data())
@settings(max_examples=EXAMPLES)
def test_two_halves_of_a_batch_equal_the_batch(
    op_name: str, backend: str, case: Case, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, case.B))
    assert_parts_make_the_whole(
        *(op_name, backend, case, row_dim),
        parts=[
            lambda tensor, dim: tensor.narrow(dim, 0, k),
            lambda tensor, dim: tensor.narrow(dim, k, case.B - k),
        ],
        join=torch.cat,
    )


@each_op
@given(case=cases.filter(lambda case: case.particles))
@settings(max_examples=EXAMPLES)
def test_particles_equal_a_loop(op_name: str, backend: str, case: Case) -> None:
    if case.shared and all("P" not in spec for spec in OPS[op_name].inputs.values()):
        case = replace(case, shared=False)
    assert_parts_make_the_whole(
        *(op_name, backend, case, particle_dim),
        parts=[lambda tensor, dim, p=p: tensor.select(dim, p) for p in range(case.particles[0])],
        join=torch.stack,
    )


@each_op
@given(case=cases, extra=st.integers(1, 4), junk=st.sampled_from([0.0, 1e30, float("nan")]))
@settings(max_examples=EXAMPLES)
def test_more_padding_changes_no_result(
    op_name: str, backend: str, case: Case, extra: int, junk: float
) -> None:
    op = OPS[op_name]
    outputs, gradients, incoming = run_whole(op_name, backend, case)

    def time_dim(name: str) -> int | None:
        spec = op.inputs.get(name, name).partition(":")[0]
        return 1 if spec == "mask" else (-2 if "T" in spec else None)

    def longer(name: str, tensor: Tensor, filler: float = junk) -> Tensor:
        dim = time_dim(name)
        if dim is None:
            return tensor
        shape = list(tensor.shape)
        shape[dim] = extra
        filler = 1.0 if name == "mask" else filler
        return torch.cat([tensor, tensor.new_full(shape, filler)], dim)

    inputs = map_tensors(build(op_name, case, precision(op_name, backend)), longer)
    wanted = [longer(spec, g) for spec, g in zip(op.outputs.values(), incoming, strict=True)]
    padded_outputs, padded_gradients = run(op_name, backend, inputs, wanted)
    for k, spec in enumerate(op.outputs.values()):
        assert near(padded_outputs[k], longer(spec, outputs[k], 0.0))
    for name, gradient in gradients.items():
        assert near(padded_gradients[name], longer(name, gradient, 0.0)), name


@each_op
@given(case=cases, junk=st.sampled_from(["nan", "inf", "-inf", "1e38", "7"]))
@settings(max_examples=EXAMPLES)
def test_invalid_or_masked_entries_have_no_effect(op_name: str, backend: str, case: Case, junk: str) -> None:
    # Bitwise equal to the result for the values drawn at these entries.
    clean, clean_gradients, _ = run_whole(op_name, backend, replace(case, poison=""))
    outputs, gradients, _ = run_whole(op_name, backend, replace(case, poison=junk))
    for value, expected in zip(outputs, clean, strict=True):
        assert torch.equal(value, expected)
    for name, expected in clean_gradients.items():
        assert torch.equal(gradients[name], expected), name


@pytest.mark.parametrize("backend", backends_for("rnn_scan"))
@given(case=cases)
@settings(max_examples=EXAMPLES)
def test_a_scan_forward_in_time_equals_one_backward_over_reversed_rows(backend: str, case: Case) -> None:
    case = replace(case, direction="forward")
    (h,), gradients, (incoming,) = run_whole("rnn_scan", backend, case)
    inputs = build("rnn_scan", case, precision("rnn_scan", backend))
    ends, steps = inputs["lengths"][:, None], torch.arange(case.T, device=DEVICE)
    order = torch.where(steps < ends, ends - 1 - steps, steps)[..., None]

    def reversed_rows(tensor: Tensor) -> Tensor:
        return tensor.gather(-2, order.expand_as(tensor))

    inputs |= {"x_proj": reversed_rows(inputs["x_proj"]), "direction": "backward"}
    (h_backward,), expected = run("rnn_scan", backend, inputs, [reversed_rows(incoming)])
    assert torch.equal(h, reversed_rows(h_backward))
    assert torch.equal(gradients["x_proj"], reversed_rows(expected["x_proj"]))
    assert near(gradients["h_0"], expected["h_0"])
    assert near(gradients["w_hh"], expected["w_hh"])
