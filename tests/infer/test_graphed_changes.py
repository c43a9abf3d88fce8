"""Changes between steps that make a graph be captured again, and those that do not.

Graphs are simulated on the CPU by :class:`tests.helpers_graph.RecordedGraphs`.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dmm_fast import DMM
from dmm_fast.infer import GraphedSVI
from dmm_fast.nn import Emitter
from dmm_fast.optim import ClippedAdam
from tests.helpers_graph import ADAM, RecordedGraphs, Run, adam, assert_same_bits
from tests.helpers_model import FLOWS, SIZES, make_batch, small_dmm


def replace_module_of(dmm: DMM) -> None:
    torch.manual_seed(5)
    dmm.emitter = Emitter(SIZES["input_dim"], SIZES["z_dim"], 8)


def replace_module(run: Run) -> None:
    replace_module_of(run.dmm)


def replace_parameter(run: Run) -> None:
    layer = run.dmm.trans.lin_sig
    layer.weight = nn.Parameter(layer.weight.detach() + 0.1)


def assign_state(run: Run) -> None:
    state = {name: value.clone() + 0.01 for name, value in run.dmm.state_dict().items()}
    run.dmm.load_state_dict(state, assign=True)


def freeze(run: Run) -> None:
    run.dmm.emitter.lin_z_to_hidden.weight.requires_grad_(False)


def hook_a_module(run: Run) -> None:
    run.dmm.rnn.register_forward_hook(lambda module, args, h: 0.5 * h)


def replace_forward(run: Run) -> None:
    own = run.dmm.rnn.forward
    run.dmm.rnn.forward = lambda *args: 0.5 * own(*args)


def hook_a_parameter(run: Run) -> None:
    run.dmm.combiner.lin_hidden_to_loc.weight.register_hook(lambda grad: 0.5 * grad)


def hook_an_accumulation(run: Run) -> None:
    def halve(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    run.dmm.combiner.lin_hidden_to_loc.weight.register_post_accumulate_grad_hook(halve)


def set_a_number(run: Run) -> None:
    run.dmm.min_scale = 0.3


def override_a_method(run: Run) -> None:
    own = run.dmm.encode
    run.dmm.encode = lambda given: 0.5 * own(given)


MODULE_CHANGES = (
    set_a_number,
    override_a_method,
    replace_module,
    replace_parameter,
    assign_state,
    freeze,
    hook_a_module,
    replace_forward,
    hook_a_parameter,
    hook_an_accumulation,
)


@pytest.mark.parametrize("change", MODULE_CHANGES, ids=lambda change: change.__name__)
def test_a_module_that_changes_starts_over(change: Callable[[Run], None]) -> None:
    graphs = RecordedGraphs()
    ours, theirs, left = Run(graphs), Run(None), Run(None)
    for i in range(8):
        if i == 4:
            for run in (ours, theirs):
                run.within(partial(change, run))
        batch = make_batch(seed=i)
        loss = ours.step(*batch)
        assert loss == theirs.step(*batch)
        unchanged = left.step(*batch)
    assert_same_bits(ours, theirs)
    assert loss != unchanged
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 2, 6)


def test_settings_of_an_optimizer_in_containers_are_seen() -> None:
    """A list changed in place, and an array, for which ``==`` is elementwise."""
    graphs, batch = RecordedGraphs(), make_batch()
    run = Run(graphs)
    run.step(*batch)
    groups = [optimizer.param_groups[0] for optimizer in run.optim.optim_objs.values()]
    for group in groups:
        group["betas"] = list(group["betas"])
    for i in range(6):
        if i == 3:
            groups[0]["betas"][0] = 0.5
        if i == 5:
            groups[0]["note"] = np.zeros(2)
        run.step(*batch)
    assert (graphs.runs, graphs.captures) == (1 + 1 + 1 + 1, 2)


def test_a_scripted_module_within_a_model_has_its_mode() -> None:
    graphs, batch = RecordedGraphs(), make_batch()
    run = Run(graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run.dmm.extra = torch.jit.script(nn.Dropout(0.5))
    for training in (True, True, True, False):
        run.dmm.train(training)
        run.step(*batch)
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 1, 2)


@pytest.mark.filterwarnings("ignore::dmm_fast.nn.NotFusedWarning")
def test_a_hook_on_all_modules_starts_over() -> None:
    graphs, batch = RecordedGraphs(), make_batch()
    run = Run(graphs)
    for _ in range(3):
        run.step(*batch)
    handle = torch_module.register_module_forward_hook(lambda module, args, output: None)
    try:
        run.step(*batch)
    finally:
        handle.remove()
    run.step(*batch)
    assert (graphs.runs, graphs.captures, graphs.replays) == (3, 1, 2)


@pytest.mark.filterwarnings("ignore::dmm_fast.nn.NotFusedWarning")
def test_layers_in_another_order_start_over() -> None:
    def told(make: Callable[..., SVI]) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))

        def model(x: Tensor) -> None:
            pyro.module("net", net)
            pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=x)

        svi = make(model, lambda *args: None, adam(), Trace_ELBO())
        losses = []
        for i in range(6):
            if i == 3:
                first = net._modules.pop("0")
                net._modules["0"] = first
            losses.append(float(svi.step(torch.full((3,), float(i)))))
        return losses

    graphs = RecordedGraphs()
    assert told(partial(GraphedSVI, capturer=graphs)) == told(SVI)
    assert (graphs.runs, graphs.captures) == (2, 2)


def test_a_rate_behind_a_scheduler_starts_over() -> None:
    def told(make: Callable[..., SVI]) -> list[float]:
        pyro.clear_param_store()
        optim = pyro.optim.ExponentialLR({"optimizer": ClippedAdam, "optim_args": dict(ADAM), "gamma": 0.5})

        def model(x: Tensor) -> None:
            pyro.sample("x", dist.Normal(pyro.param("a", torch.zeros(3)), 1.0).to_event(1), obs=x)

        svi = make(model, lambda *args: None, optim, Trace_ELBO())
        losses = []
        for i in range(6):
            if i == 3:
                for scheduler in optim.optim_objs.values():
                    scheduler.optimizer.param_groups[0]["lr"] = 0.5
            losses.append(float(svi.step(torch.full((3,), float(i)))))
        return losses

    graphs = RecordedGraphs()
    assert told(partial(GraphedSVI, capturer=graphs)) == told(SVI)
    assert (graphs.runs, graphs.captures) == (2, 2)


def test_a_change_between_warm_up_and_capture_starts_over() -> None:
    graphs = RecordedGraphs()
    ours, theirs, batch = Run(graphs), Run(None), make_batch()
    for i in range(4):
        if i == 1:
            for run in (ours, theirs):
                run.within(partial(replace_module, run))
        assert ours.step(*batch) == theirs.step(*batch)
    assert (graphs.runs, graphs.captures, graphs.replays) == (2, 1, 2)


def add_parameter(run: Run) -> None:
    run.within(lambda: pyro.param("another", torch.zeros(2)))


def clear_store(run: Run) -> None:
    run.within(pyro.clear_param_store)


@pytest.mark.parametrize("change", [add_parameter, clear_store])
def test_changes_unrelated_to_the_step_do_not_start_over(
    change: Callable[[Run], None],
) -> None:
    graphs = RecordedGraphs()
    ours, theirs = Run(graphs), Run(None)
    for i in range(6):
        if i == 3:
            change(ours)
            change(theirs)
        batch = make_batch(seed=i)
        assert ours.step(*batch) == theirs.step(*batch)
        assert_same_bits(ours, theirs)
    assert (graphs.runs, graphs.captures, graphs.replays) == (1, 1, 5)


def store_cleared() -> None:
    pyro.clear_param_store()


def another_value() -> None:
    pyro.get_param_store()["a"] = torch.full((3,), 5.0)


def memory_moved() -> None:
    parameter = dict(pyro.get_param_store().named_parameters())["a"]
    parameter.data = parameter.data + 0.5


@pytest.mark.parametrize(
    ("name", "change"),
    # A name with the separator of modules does not make it a module's parameter.
    [("a", store_cleared), ("net$$$a", store_cleared), ("a", another_value), ("a", memory_moved)],
)
def test_a_parameter_that_the_store_made_starts_over(name: str, change: Callable[[], None]) -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.param(name, torch.zeros(3)), 1.0).to_event(1), obs=x)

    def losses(make: Callable[..., SVI]) -> list[float]:
        pyro.clear_param_store()
        svi = make(model, lambda *args: None, adam(), Trace_ELBO())
        told = []
        for i in range(8):
            if i == 4:
                change()
            told.append(float(svi.step(torch.full((3,), float(i)))))
        return told

    graphs = RecordedGraphs()
    assert losses(partial(GraphedSVI, capturer=graphs)) == losses(SVI)
    assert (graphs.runs, graphs.captures) == (2, 2)


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "a method": lambda f: f,
    "a handler": lambda f: poutine.scale(f, scale=1.0),
    "a partial": lambda f: partial(f),
    "a closure": lambda f: lambda *args: f(*args),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_modules_are_found_behind_functions(kind: str) -> None:
    graphs, batch = RecordedGraphs(), make_batch()
    dmm = small_dmm(num_layers=2, rnn_dropout_rate=0.5)
    wrap = WRAPPED[kind]
    svi = GraphedSVI(wrap(dmm.model), wrap(dmm.guide), adam(), Trace_ELBO(), capturer=graphs)
    for _ in range(3):
        svi.step(*batch)
    assert (graphs.runs, graphs.captures) == (1, 1)
    dmm.eval()
    svi.step(*batch)
    assert graphs.runs == 2
    dmm.train()
    replace_module_of(dmm)
    svi.step(*batch)
    assert graphs.runs == 3


class TestTwoModels:
    """Two models with equal parameter names, trained alternately, behave like each alone."""

    OTHERS: tuple[dict[str, Any], ...] = ({}, {"z_dim": 4, "rnn_dim": 9}, FLOWS)

    def alone(self, layers: dict[str, Any], graphs: RecordedGraphs | None, seed: int) -> Any:
        """A model and its optimizer, whose steps use random numbers of their own."""
        dmm, optim = small_dmm(seed, **layers), adam()
        options = {} if graphs is None else {"capturer": graphs}
        kind = SVI if graphs is None else GraphedSVI
        svi = kind(dmm.model, dmm.guide, optim, Trace_ELBO(), **options)

        def step(i: int) -> float:
            torch.manual_seed(100 * seed + i)
            return float(svi.step(*make_batch(seed=i), 0.1 + 0.1 * i))

        return dmm, optim, step

    @pytest.mark.parametrize("layers", OTHERS)
    @pytest.mark.parametrize("late", [0, 3], ids=("at once", "later"))
    def test_alternation_equals_bitwise_two_lone_runs(self, layers: dict[str, Any], late: int) -> None:
        models = ({}, layers)
        expected = []
        for seed, of in enumerate(models):
            pyro.clear_param_store()
            dmm, optim, step = self.alone(of, None, seed)
            told = [step(i) for i in range(7)]
            expected.append((told, dmm.state_dict(), optim.get_state()))
        pyro.clear_param_store()
        both = [RecordedGraphs(), RecordedGraphs()]
        runs = [self.alone(models[seed], both[seed], seed) for seed in (0, 1)]
        told: list[list[float]] = [[], []]
        for i in range(7 + late):
            for which, step in enumerate((i, i - late)):
                if 0 <= step < 7:
                    dmm, _, take = runs[which]
                    told[which].append(take(step))
                    assert pyro.get_param_store()["dmm$$$z_0"] is dmm.z_0
        for which, (losses, state, their_optim) in enumerate(expected):
            dmm, optim, _ = runs[which]
            assert told[which] == losses
            for name, value in dmm.state_dict().items():
                assert torch.equal(value, state[name]), name
            ours = optim.get_state()
            assert ours.keys() == their_optim.keys() == {f"dmm$$${n}" for n, _ in dmm.named_parameters()}
            assert (both[which].runs, both[which].captures, both[which].replays) == (1, 1, 6)

    def test_models_that_register_their_modules_with_pyro(self) -> None:
        """``pyro.module`` uses the parameters in the store; each model's are restored before its capture."""

        def make(seed: int, graphed: bool) -> tuple[nn.Linear, Callable[[], float]]:
            torch.manual_seed(seed)
            net = nn.Linear(2, 1)

            def model(x: Tensor) -> None:
                pyro.module("net", net)
                pyro.sample("x", dist.Normal(net(x), 1.0).to_event(1), obs=torch.ones(1))

            options: dict[str, Any] = {"capturer": RecordedGraphs()} if graphed else {}
            kind = GraphedSVI if graphed else SVI
            svi = kind(model, lambda *args: None, adam(), Trace_ELBO(), **options)
            return net, lambda: float(svi.step(torch.ones(2)))

        expected = []
        for seed in (0, 1):
            pyro.clear_param_store()
            _, step = make(seed, False)
            expected.append([step() for _ in range(4)])
        pyro.clear_param_store()
        first, second = make(0, True)[1], make(1, True)[1]
        told = [[first()], []]
        pyro.clear_param_store()
        for _ in range(3):
            told[1].append(second())
            told[0].append(first())
        told[1].append(second())
        assert told == expected

    def test_states_of_two_optimizers_keep_their_names_and_load(self, tmp_path: Path) -> None:
        runs = [self.alone(of, None, seed) for seed, of in enumerate(({}, {"z_dim": 4}))]
        for i in range(3):
            for _, _, step in runs:
                step(i)
        with pyro.get_param_store().scope():
            pass  # which leaves only the names of its present parameters in the store
        for number, (dmm, optim, _) in enumerate(runs):
            path = str(tmp_path / str(number))
            optim.save(path)
            names = {f"dmm$$${name}" for name, _ in dmm.named_parameters()}
            assert optim.get_state().keys() == names
            loaded = adam()
            loaded.load(path)
            SVI(dmm.model, dmm.guide, loaded, Trace_ELBO()).step(*make_batch())
            for param in dmm.parameters():
                assert int(loaded.optim_objs[param].state[param]["step"]) == 4
