"""Training on a GPU with path gradients and averages: replays from CUDA graphs equal eager steps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dmm_fast.training import Trainer, load_dmm, read_metrics
from dmm_fast.training._folder import LAST
from dmm_fast.training._runlog import METRICS
from tests.helpers_model import assert_close
from tests.helpers_train import small_data, tiny

KINDS: list[dict[str, Any]] = [
    {"gradient": "path"},
    {"elbo": "importance", "num_particles": 3, "gradient": "dreg"},
]


def trained(out: Path, max_graphs: int, settings: dict[str, Any]) -> Trainer:
    """A run with a seed for each step, since replays draw other noise than eager steps in sequence."""
    trainer = Trainer(tiny(out, cuda=True, num_epochs=3, average_decay=0.9, **settings), small_data())
    trainer.svi.max_graphs, original, done = max_graphs, trainer.svi.step, []

    def step(*args: Any) -> Any:
        done.append(1)
        torch.cuda.manual_seed(len(done))
        return original(*args)

    trainer.svi.step = step  # type: ignore[method-assign]
    trainer.run()
    return trainer


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_averages_and_path_gradients_in_graphs_are_those_of_eager_steps(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    eager = trained(tmp_path / "eager", 0, settings)
    graphed = trained(tmp_path / "graphed", 32, settings)
    for name, value in eager.averaging.tensors.items():
        assert_close(graphed.averaging.tensors[name], value, 1e-3, name)
        assert not torch.equal(value, eager.dmm.state_dict()[name])
    lines = [read_metrics(tmp_path / name / METRICS) for name in ("graphed", "eager")]
    for mine, yours in zip(*lines, strict=True):
        assert mine == pytest.approx(yours, rel=1e-3)
    saved = load_dmm(tmp_path / "graphed" / LAST, cuda=True)
    for name, value in saved.named_parameters():
        assert torch.equal(value, graphed.averaging.tensors[name]), name
    assert not graphed.dmm.path_gradient
