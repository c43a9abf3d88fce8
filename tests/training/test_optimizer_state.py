"""An optimizer state of an older model is matched by names, one of another model is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dmm_fast import DMM, training
from dmm_fast.data import Dataset
from dmm_fast.training import CheckpointError, Trainer, train
from dmm_fast.training._folder import LAST
from dmm_fast.training._optimizer_state import fit_to_model
from tests.helpers_train import small_data, tiny

FORMER = {"lin_z_to_loc": "lin_z_to_mu", "lin_hidden_to_loc": "lin_hidden_to_mu",
          "lin_hidden_to_scale": "lin_hidden_to_sigma"}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_data()


def former(names: dict[str, Any]) -> dict[str, Any]:
    """The same state with the former parameter names."""
    renamed = {}
    for name, value in names.items():
        for now, then in FORMER.items():
            name = name.replace(now, then)
        renamed[name] = value
    return renamed


def state_of(dmm: DMM) -> dict[str, Any]:
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0, "lrd": 1.0,
             "centered_variance": False, "params": [0]}  # fmt: skip
    return {
        f"dmm$$${name}": {
            "state": {0: {"step": 3, "exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)}},
            "param_groups": [dict(group)],
        }
        for name, p in dmm.named_parameters()
    }


@pytest.fixture
def dmm() -> DMM:
    return DMM(input_dim=5, z_dim=2, emission_dim=3, transition_dim=4, rnn_dim=6)


def test_former_names_are_found(dmm: DMM) -> None:
    state = state_of(dmm)
    old = former(state)
    assert sum(name not in state for name in old) == 6
    fitted = fit_to_model(Path("o"), old, dmm)
    assert list(fitted) == list(state)
    assert all(fitted[name] is state[name] for name in state)


def test_a_run_of_an_older_model_is_resumed_and_started_from(tmp_path: Path, data: Dataset) -> None:
    files = {"save_model": tmp_path / "m", "save_opt": tmp_path / "o"}
    train(tiny(tmp_path / "new", eval_frequency=0, num_epochs=6), data)
    train(tiny(tmp_path / "old", eval_frequency=0, num_epochs=5, **files), data)
    saved = training.load_checkpoint(tmp_path / "old" / LAST)
    for tree in (saved.model, saved.optimizer):
        renamed = former(tree)
        assert renamed.keys() != tree.keys()
        tree.clear()
        tree.update(renamed)
    training.save_checkpoint(tmp_path / "old" / LAST, saved)
    training.save_optimizer(tmp_path / "o", saved.optimizer)
    start = Trainer(tiny(load_model=tmp_path / "m", load_opt=tmp_path / "o"), data)
    names = {f"dmm$$${name}" for name, _ in start.dmm.named_parameters()}
    assert start.optimizer._state_waiting_to_be_consumed.keys() == names
    train(tiny(tmp_path / "old", eval_frequency=0, num_epochs=6, resume=True), data)
    one, other = ((tmp_path / name / LAST).read_bytes() for name in ("new", "old"))
    assert one == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("dmm$$$z_0"), r"one with 1 \(z_0\) missing$"),
        (lambda s: s.update({"other$$$a": {}, "dmm$$$b": {}}), r"one with 2 \(b, other\$\$\$a\) unknown$"),
        (
            lambda s: [s.update({f"x{n}": s.pop(n)}) for n in list(s)[:5]],
            r"5 \(xdmm\$\$\$\S+, x\S+, x\S+, \.\.\.\) unknown and 5 \(emitter\S+, .*, \.\.\.\) missing$",
        ),
        (
            lambda s: s.update({"dmm$$$trans.lin_z_to_mu.bias": s["dmm$$$z_0"]}),
            "one state for a parameter, got one under each of two names of it",
        ),
        (lambda s: s.update({"dmm$$$z_0": s["dmm$$$h_0"]}), "state for z_0, got .*exp_avg of shape"),
        (lambda s: s.update({"dmm$$$z_0": 3}), "state for z_0, got int 3"),
        (lambda s: s.update({"dmm$$$z_0": {"state": {}, "param_groups": []}}), "state for z_0"),
        (lambda s: s["dmm$$$z_0"]["param_groups"][0].update(lr=-1.0), "state for z_0, got lr: expected"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_names(dmm: DMM, change: Any, message: str) -> None:
    state = state_of(dmm)
    change(state)
    with pytest.raises(CheckpointError, match=f"^o: expected .*{message}"):
        fit_to_model(Path("o"), state, dmm)
