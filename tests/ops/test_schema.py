"""The table of ops: schemas, one namespace, and the ops of a training step in one graph."""

import inspect
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmm_fast import _extension, ops, reference
from dmm_fast.ops import _registry
from dmm_fast.ops.schema import OPS, WEIGHTS, signatures
from dmm_fast.ops.schema._signature import Argument, Op, sizes_in
from tests.cases import CASES
from tests.compare import backends_for
from tests.inputs import build

COMPILED = pytest.mark.skipif(_extension.missing is not None, reason=str(_extension.missing))

TOY = Op(
    "toy",
    "a row with one argument of each kind",
    leading="z",
    inputs={
        "z": "PBTZ",
        "x": "pBTD:binary",
        "z_0": "sZ",
        "weights": "combiner",
        "lengths": "lengths",
        "mask": "mask",
        "kind": "choice:one|two",
    },
    outputs={"y": "PBTZ", "out": "PB"},
    saved="z y c weights lengths kind",
    kept={"c": "PBTH"},
    optional=("x",),
)


def test_a_row_defines_the_schemas_of_the_op_and_its_gradient() -> None:
    weights = "Tensor w_z, Tensor b_z, Tensor w_loc, Tensor b_loc, Tensor w_scale, Tensor b_scale"
    assert TOY.forward.schema == (
        f"toy(Tensor z, Tensor x, Tensor z_0, {weights}, Tensor lengths, Tensor? mask, str kind, bool keep_c,"
        " str backend) -> (Tensor y, Tensor out, Tensor c)"
    )
    gradients = "Tensor dw_z, Tensor db_z, Tensor dw_loc, Tensor db_loc, Tensor dw_scale, Tensor db_scale"
    assert TOY.backward.schema == (
        f"toy_backward(Tensor dy, Tensor dout, Tensor z, Tensor y, Tensor c, {weights}, Tensor lengths,"
        f" str kind, bool with_dx, str backend) -> (Tensor dz, Tensor dx, Tensor dz_0, {gradients})"
    )


def test_weights_are_a_list_for_a_function_in_python() -> None:
    given = [*"abc", *range(6), "lengths", None, "one", True, ""]
    grouped = TOY.forward.group(given)
    assert grouped == ["a", "b", "c", list(range(6)), "lengths", None, "one", True, ""]
    assert len(TOY.forward.flat_arguments) == len(given)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_rows_are_consistent(op: Op) -> None:
    assert op.leading_argument.dims[0] in "PN"
    letters = "".join(a.dims for a in op.arguments if a.kind == "tensor")
    letters += "".join("".join(WEIGHTS[a.dims].words) for a in op.arguments if a.kind == "weights")
    for result in (*op.results, *op.kept_results):
        assert {*result.dims} <= {*letters}
    starts = [a for a in op.arguments if a.kind == "tensor" and a.dims[0] == "s"]
    assert all(start.dims[-1] == op.leading_argument.dims[-1] for start in starts)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_reference_and_public_function_have_the_arguments_of_the_row(op: Op) -> None:
    assert op.name in ops.__all__
    for function in (getattr(reference, op.name), getattr(ops, op.name)):
        assert list(inspect.signature(function).parameters) == list(op.inputs)


@pytest.mark.parametrize("field", ["leading", "saved", "optional"])
def test_a_name_that_a_row_does_not_have_is_refused(field: str) -> None:
    wrong: Any = ("x", "zz") if field == "optional" else "zz"
    with pytest.raises(ValueError, match=rf"^toy\.{field}: expected names among .*, got zz$"):
        replace(TOY, **{field: wrong})


def test_shape_strings_are_parsed() -> None:
    assert sizes_in("PBT(2Z)") == ["P", "B", "T", "(2Z)"]
    assert Argument.parse("x", "pBTD:binary") == Argument("x", "tensor", "pBTD", "binary")
    assert Argument.parse("w", "emitter") == Argument("w", "weights", "emitter")


# --- a compiled library of another table --------------------------------------------------------------------


@COMPILED
def test_the_library_matches_this_table_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _registry.difference_of_library() is None
    monkeypatch.setitem(OPS, "emitter", replace(OPS["emitter"], outputs={"probs": "ND"}))
    assert _registry.difference_of_library() == "emitter_backward has other arguments or results"
    monkeypatch.setitem(OPS, "emitter", replace(OPS["emitter"], name="toy"))
    assert _registry.difference_of_library() == "toy is missing"


# In a process of its own, where the table seems to have another name for a gradient than the library.
OTHER_VERSION = """
import warnings
import torch

parse = torch._C.parse_schema
torch._C.parse_schema = lambda text: parse(text.replace("Tensor dlogits", "Tensor dprobs"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import dmm_fast
torch._C.parse_schema = parse
said = [str(warning.message) for warning in caught if "of another version" in str(warning.message)]
assert len(said) == 1 and "Rebuild it" in said[0] and "emitter_backward" in said[0], said

from dmm_fast import ops
from dmm_fast.ops.schema import _cpp

info = dmm_fast.info()
assert {backend for by in info["ops"].values() for backend in by.values()} == {"reference"}, info
assert info["missing"].keys() == {"cpp", "triton", "cuda"}, info
eps, lengths = torch.ones(2, 3, 4), torch.tensor([1, 3])
ops.drawn_log_prob(eps, eps, lengths)
try:
    with ops.use_backend("cpp"):
        ops.drawn_log_prob(eps, eps, lengths)
except ops.BackendError as error:
    assert "of another version" in str(error), error
else:
    raise AssertionError("computed")
assert _cpp.main(["--list"]) == 0
"""


@COMPILED
def test_a_library_of_another_version_is_ignored_and_the_generator_still_runs() -> None:
    ended = subprocess.run([sys.executable, "-c", OTHER_VERSION], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "emitter(Tensor z" in ended.stdout


# --- one namespace ------------------------------------------------------------------------------------------


@COMPILED
def test_there_is_one_op_for_each_row_and_one_for_its_gradient() -> None:
    known = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("dmm_fast")}
    wanted = {f"dmm_fast::{signature.name}" for signature in signatures()}
    assert wanted <= known
    assert {name.partition("::")[0] for name in known} <= {"dmm_fast", "dmm_fast_benchmarks"}
    others = {name.partition("::")[2] for name in known - wanted if name.startswith("dmm_fast::")}
    assert all(name.startswith("_") for name in others), others


@COMPILED
@pytest.mark.parametrize("backend", ["cuda", "triton", "nonsense"])
def test_a_cpu_op_refuses_another_backend(backend: str) -> None:
    eps = torch.zeros(1, 2, 3, 4)
    if backend in backends_for("drawn_log_prob"):
        pytest.skip("computes on a CPU in this process")
    with pytest.raises(RuntimeError, match=r"backend: expected ('' or 'cpp'|one that computes)"):
        torch.ops.dmm_fast.drawn_log_prob(eps, eps, torch.tensor([1, 2]), backend)


# --- the ops of a training step -----------------------------------------------------------------------------


class Step(nn.Module):
    """The ops of a step of SVI: inference network, posterior, prior and emission."""

    def __init__(self, given: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.w_ih, self.b_ih = (nn.Parameter(given["input_projection"][name]) for name in ("w", "b"))
        self.w_hh = nn.Parameter(given["rnn_scan"]["w_hh"])
        self.starts = nn.ParameterList([given["rnn_scan"]["h_0"], given["combiner_scan"]["z_q_0"]])
        self.z_0 = nn.Parameter(given["transition_log_prob"]["z_0"])
        self.weights = nn.ModuleDict(
            {name: nn.ParameterList(list(given[op]["weights"])) for name, op in NETWORKS.items()}
        )

    def forward(self, x: Tensor, eps: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        weights = {name: WEIGHTS[name].tuple_type(*given) for name, given in self.weights.items()}
        x_proj = ops.input_projection(x, self.w_ih, self.b_ih, lengths)
        h = ops.rnn_scan(x_proj, self.w_hh, self.starts[0], lengths)
        z, loc, pre_scale = ops.combiner_scan(h, eps, self.starts[1], weights["combiner"], lengths)
        posterior = ops.drawn_log_prob(eps, pre_scale, lengths)
        prior = ops.transition_log_prob(z, self.z_0, weights["transition"], lengths)
        emission = ops.emission_log_prob(x, z, weights["emitter"], lengths, mask)
        kl = ops.transition_kl(z, loc, pre_scale, self.z_0, weights["transition"], lengths)
        return (emission + prior - posterior + kl).sum()


NETWORKS = {"combiner": "combiner_scan", "transition": "transition_log_prob", "emitter": "emission_log_prob"}


def step_and_batch() -> tuple[Step, tuple[Tensor, ...]]:
    case = replace(CASES["small"], lengths="ragged", mask="dims")
    names = ("input_projection", "rnn_scan", "combiner_scan", "transition_log_prob", "emission_log_prob")
    given = {name: build(name, case, device="cpu") for name in names}
    emission = given["emission_log_prob"]
    batch = (emission["x"], given["combiner_scan"]["eps"], emission["lengths"], emission["mask"])
    return Step(given), batch


def gradients(step: nn.Module, function: Any, batch: tuple[Tensor, ...]) -> list[Tensor]:
    loss = function(*batch)
    return [loss.detach(), *torch.autograd.grad(loss, list(step.parameters()))]


@COMPILED
@pytest.mark.parametrize("backend", backends_for("combiner_scan", "cpu"))
def test_a_step_compiles_into_one_graph(backend: str) -> None:
    step, batch = step_and_batch()
    torch._dynamo.reset()
    with ops.use_backend(backend):
        expected = gradients(step, step, batch)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for got, right in zip(gradients(step, compiled, batch), expected, strict=True):
            torch.testing.assert_close(got, right)


@COMPILED
def test_a_step_exports_and_keeps_its_ops() -> None:
    step, batch = step_and_batch()
    program = torch.export.export(step, batch)
    called = {str(node.target) for node in program.graph.nodes if "dmm_fast" in str(node.target)}
    assert {f"dmm_fast.{name}.default" for name in ("rnn_scan", "combiner_scan", "transition_kl")} <= called
    again = program.module()
    with torch.no_grad():
        torch.testing.assert_close(again(*batch), step(*batch))
    with pytest.raises((RuntimeError, AssertionError)):
        again(batch[0][:, :-1], *batch[1:])
