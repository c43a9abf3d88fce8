"""The launches of a captured SVI step are counted completely, and their numbers are pinned."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyro.infer import Trace_ELBO

import dmm_fast
from benchmarks import launches, nodes
from benchmarks.cases import TUTORIAL_STEPS
from benchmarks.launches import COPIED, SEVERAL, recorded
from dmm_fast import DMM, ops

CSRC = Path(__file__).parents[2] / "csrc"

counts = pytest.mark.skipif(launches.missing() is not None, reason=str(launches.missing()))

# Launches per time step of a scan with one and with two flows, forward and backward.
FLOW, FLOWS = 8, 12

# Nodes of a step, to be updated with any change of the package that affects them.
NODES = {
    "Trace_ELBO": {"triton": 25, "cuda": 5, "torch": 5},
    "Trace_ELBO without a mask": {"triton": 25, "cuda": 5, "torch": 5},
    "Trace_ELBO, Gaussian emission": {"triton": 25, "cuda": 5, "torch": 5},
    "Trace_ELBO, a normalizing flow": {"triton": 28 + TUTORIAL_STEPS * FLOW, "cuda": 3, "torch": 28},
    "Trace_ELBO, two normalizing flows": {"triton": 30 + TUTORIAL_STEPS * FLOWS, "cuda": 3, "torch": 40},
    "Trace_ELBO, st-lr": {"triton": 30, "cuda": 7, "torch": 13},
    "Trace_ELBO, mf-lr": {"triton": 31, "cuda": 5, "torch": 28},
    "TraceMeanField_ELBO": {"triton": 23, "cuda": 5, "torch": 4},
}


def by_library(launched):
    found = nodes.totals(launched)
    assert found.pop("all") == len(launched) == sum(found.values())
    return found


def step_of(module=DMM):
    return nodes.step_launches(module(), Trace_ELBO(), T=7)


@counts
@pytest.mark.parametrize("case", nodes.CASES, ids=lambda case: case.name)
def test_the_launches_of_a_step_are_unchanged(case):
    launched = case.launches()
    assert by_library(launched) == NODES[case.name], nodes.table(launched)


@counts
def test_only_scans_with_flows_launch_kernels_per_time_step():
    for sizes, of_a_step in (({"num_iafs": 1, "iaf_dim": 100}, FLOW), ({"inference": "mf-lr"}, 0)):
        few, many = (
            by_library(nodes.step_launches(DMM(**sizes), Trace_ELBO(), T=steps)) for steps in (3, 40)
        )
        assert many == few | {"triton": few["triton"] + 37 * of_a_step}


@counts
def test_every_part_of_a_step_is_named():
    launched = step_of()
    assert [launch.part for launch in launched if launch.kernel == "observed_kernel"] == ["guide"]
    # The model uses results of the guide and launches nothing.
    assert {launch.part for launch in launched} == {"guide", "", "backward", "optimizer"}
    scans = [(launch.op, launch.part) for launch in launched if launch.by == "cuda"]
    assert scans == [
        ("rnn_scan", "guide"),
        ("combiner_scan", "guide"),
        ("combiner_scan_backward", "backward"),
        ("rnn_scan_backward", "backward"),
        ("clipped_adam", "optimizer"),
    ]


class WithAnAddition(DMM):
    def guide(self, *args):
        with torch.no_grad():
            self.h_0.add_(1.0)
        return super().guide(*args)


class WithAKernel(DMM):
    def model(self, mini_batch, *args):
        from dmm_fast.triton.observations import where_observed

        where_observed(mini_batch, args[2], None)
        return super().model(mini_batch, *args)


@counts
@pytest.mark.parametrize(
    ("module", "part", "kernel", "by"),
    [(WithAnAddition, "guide", "add_.Tensor", "torch"), (WithAKernel, "model", "observed_kernel", "triton")],
)
def test_an_additional_launch_is_one_more_node(module, part, kernel, by):
    def those_of(launched):
        return [
            launch for launch in launched if (launch.part, launch.kernel, launch.by) == (part, kernel, by)
        ]

    plain, planted = step_of(), step_of(module)
    assert len(planted) == len(plain) + 1
    assert len(those_of(planted)) == len(those_of(plain)) + 1


A = torch.empty(3, 4, device="meta")
KERNELS = {
    "views": (lambda: A.view(12)[2:].unsqueeze(0).expand(2, 10).detach().chunk(2), []),
    "memory": (lambda: (torch.empty_like(A), A.new_empty(2), torch.empty(2, device="cuda")), []),
    "nothing to convert": (lambda: A.float().contiguous().to("cuda").to(A.device), []),
    "nothing to add": (lambda: A[:0] + 1, []),
    "numbers on the CPU": (lambda: torch.ones(3) + 1, []),
    "in place": (lambda: A.add_(1).copy_(A), ["add_.Tensor", "copy_"]),
    "a reduction": (lambda: A.sum(0).mean(), ["sum.dim_IntList", "mean"]),
    "noise": (lambda: A.normal_(), ["normal_"]),
    "fills": (
        lambda: (torch.zeros_like(A), A.new_zeros(2), torch.full((2,), 1.0, device="cuda")),
        ["zeros_like", "new_zeros", "full"],
    ),
    "a copy from the host": (lambda: torch.ones(3).to("cuda"), ["_to_copy"]),
    "a conversion": (lambda: A.double(), ["_to_copy"]),
    "a layout": (lambda: A.t().contiguous(), ["clone"]),
    "a list": (lambda: torch._foreach_add_([A, A], 1), ["_foreach_add_.Scalar"]),
    "a number beside a tensor": (
        lambda: torch.where(A > 0, A, 0.0),
        ["gt.Scalar", "scalar_tensor", "where.self"],
    ),
    "a sum over what was expanded": (lambda: A.sum_to_size(1, 4), ["sum.dim_IntList"]),
    "a part of a fill": (lambda: torch.nn.functional.pad(A, (0, 1)), 2 * ["constant_pad_nd"]),
}


@counts
@pytest.mark.parametrize("kind", KERNELS)
def test_operators_of_torch_are_counted(kind):
    act, kernels = KERNELS[kind]
    with recorded({}) as recorder:
        act()
    assert [launch.kernel for launch in recorder.launches] == kernels


@counts
def test_operators_of_several_launches_are_counted_by_their_parts():
    """The operators that torch composes them of on any device."""
    aten, key = torch.ops.aten, torch._C.DispatchKey
    made = {
        "constant_pad_nd": (aten.constant_pad_nd.default, key.CompositeExplicitAutograd, A, [0, 1], 0.0),
        "slice_backward": (aten.slice_backward.default, key.CompositeExplicitAutograd, A, [5, 4], 0, 1, 4, 1),
        "select_backward": (
            *(aten.select_backward.default, key.CompositeExplicitAutogradNonFunctional),
            *(A[0], [5, 4], 0, 1),
        ),
    }
    for name, (operator, how, *args) in made.items():
        with recorded({}) as recorder:
            operator._op_dk(how, *args)
        assert len(recorder.launches) == SEVERAL[name], name
    assert made.keys() | {"eye"} == SEVERAL.keys()


@counts
def test_launches_of_the_compiled_library():
    copied = re.findall(
        r"stable::contiguous\(a\.(?:weights\.)?(\w+)\)",
        "".join(file.read_text() for file in sorted(CSRC.glob("*_launch.cpp"))),
    )
    assert copied == [name for names in COPIED.values() for name in names]
    assert f"kAdamTensors = {launches.ADAM_TENSORS};" in (CSRC / "cuda" / "clipped_adam.h").read_text()
    settings = {"beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}
    lists = [[torch.empty(2, device="meta") for _ in range(65)] for _ in range(4)]
    with torch.device("meta"):
        base, eps, start = torch.empty(1, 2, 8, 3).mT, torch.empty(1, 2, 3, 4), torch.empty(1, 2, 4)
        to_units = torch.empty(5, 4), torch.empty(10)[::2]
        heads = 2 * (torch.empty(4, 5), torch.empty(4))
        lengths = torch.empty(2, dtype=torch.int64)
    with recorded({}) as recorder:
        ops.clipped_adam(*lists, step=1, lr=0.1, **settings)
        made = torch.ops.dmm_fast._launch_combiner_scan(
            base, eps, start, *to_units, *heads, lengths, [1], False
        )
    assert [(launch.by, launch.kernel) for launch in recorder.launches] == [
        *(2 * [("cuda", "clipped_adam")]),
        *(2 * [("torch", "clone")]),
        ("cuda", "combiner_scan"),
    ]
    assert [tuple(tensor.shape) for tensor in made] == [*(3 * [(1, 2, 3, 4)]), (0,)]


@counts
def test_a_launch_is_on_the_current_stream():
    with recorded({}) as recorder:
        side = torch.cuda.Stream(A.device)
        before = torch.cuda.current_stream()
        side.wait_stream(before)
        with torch.cuda.stream(side):
            assert torch.cuda.current_stream() == side != before
            (A + 1).record_stream(side)
        before.wait_event(side.record_event())
        A.mul_(2)
    assert [(launch.kernel, launch.stream) for launch in recorder.launches] == [
        ("add.Tensor", 1),
        ("mul_.Tensor", 0),
    ]
    assert "add.Tensor (stream 1)" in nodes.table(recorder.launches)


@counts
def test_a_step_that_reads_a_value_fails():
    with recorded({}), pytest.raises(RuntimeError, match="meta"):
        bool((A > 0).all())


@counts
def test_patches_are_removed_afterwards():
    found = dmm_fast.info()
    with recorded({}):
        inside = dmm_fast.info()["ops"]["emission_log_prob"]["cuda"], A.device.type, A.is_cuda, A.is_meta
    assert inside == ("triton", "cuda", True, False)
    assert (A.device.type, A.is_cuda, A.is_meta, A.get_device()) == ("meta", False, True, -1)
    assert dmm_fast.info() == found
    assert not {"device", "is_cuda", "to", "data_ptr"} & vars(torch.Tensor).keys()


@counts
def test_prints_and_writes_the_counts(tmp_path, capsys, monkeypatch):
    short = [
        replace(case, steps=3) for case in nodes.CASES if case.name in ("Trace_ELBO", "TraceMeanField_ELBO")
    ]
    monkeypatch.setattr(nodes, "CASES", short)
    file = tmp_path / "nodes.json"
    assert nodes.main(["--elbo", "trace", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    counts = {"all": sum(NODES["Trace_ELBO"].values()), **NODES["Trace_ELBO"]}
    assert f"Trace_ELBO, B=20, T=3: {nodes.described(counts)}\n" in out
    assert "MeanField" not in out
    (plain,) = json.loads(file.read_text())["cases"]
    assert plain["nodes"] == counts
    assert sum(launch["nodes"] for launch in plain["launches"]) == plain["nodes"]["all"]
    with pytest.raises(SystemExit):
        nodes.main(["--json", str(tmp_path / "none" / "nodes.json")])
    assert "--json: expected a file in an existing folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("owner", "name", "value", "why"),
    [
        (launches, "find_spec", lambda name: None, "triton is not installed: pip install triton"),
        (launches.triton, "INTERPRETED", True, "TRITON_INTERPRET=1"),
        (launches._extension, "missing", "it is elsewhere", "is missing: it is elsewhere"),
    ],
)
def test_missing_requirements_are_named(monkeypatch, capsys, owner, name, value, why):
    monkeypatch.setattr(launches, "find_spec", lambda name: True)
    monkeypatch.setattr(launches.triton, "INTERPRETED", False)
    monkeypatch.setattr(owner, name, value)
    assert nodes.main([]) == 1
    assert why in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=re.escape(why)), recorded({}):
        pass
