"""Steps of functions that refer to modules indirectly, replayed from simulated graphs."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from dmm_fast import DMM
from dmm_fast.infer import GraphedSVI
from tests.helpers_graph import RecordedGraphs, adam
from tests.helpers_model import make_batch, small_dmm

GLOBAL_DMM = small_dmm(num_layers=2)


def global_model(*batch: Any) -> Any:
    return GLOBAL_DMM.model(*batch)


def global_guide(*batch: Any) -> Any:
    return GLOBAL_DMM.guide(*batch)


class Holder:
    def __init__(self, dmm: DMM) -> None:
        self.dmm = dmm

    def model(self, *batch: Any) -> Any:
        return self.dmm.model(*batch)

    def guide(self, *batch: Any) -> Any:
        return self.dmm.guide(*batch)


@pytest.mark.parametrize("kind", ["globals", "holder"])
def test_modules_found_by_functions_are_detected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[list[float]] = []
    for capturer in (RecordedGraphs(), None):
        pyro.clear_param_store()
        dmm = small_dmm(num_layers=2, rnn_dropout_rate=0.5)
        monkeypatch.setitem(globals(), "GLOBAL_DMM", dmm)
        pair = (global_model, global_guide) if kind == "globals" else (Holder(dmm).model, Holder(dmm).guide)
        svi = GraphedSVI(*pair, adam(capturable=True), Trace_ELBO(), capturer=capturer)
        torch.manual_seed(3)
        losses.append([])
        for step in range(6):
            if step == 3:
                dmm.eval()
            losses[-1].append(svi.step(*make_batch()).item())
    assert losses[0] == losses[1]
