"""Work that guide and model of a step do once."""

from typing import Any

import pyro
import pytest
from pyro import poutine
from pyro.infer import Trace_ELBO

from dmm_fast import _minibatch
from dmm_fast.infer import SequenceELBO
from tests.helpers_model import make_batch, small_dmm


def test_guide_and_model_check_their_mini_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    validate = _minibatch.validate_mini_batch
    monkeypatch.setattr(
        _minibatch, "validate_mini_batch", lambda *args, **kw: checks.append(args) or validate(*args, **kw)
    )
    pyro.clear_param_store()
    dmm, batch = small_dmm(), make_batch()
    for _ in range(2):
        SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, dmm.guide, *batch)
    assert len(checks) == 2
    checks.clear()

    def guide(*args: Any) -> None:
        dmm.guide(*args)
        args[0].mul_(1)

    SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, guide, *batch)
    assert len(checks) == 2
    checks.clear()
    batch.mini_batch[0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"^mini_batch: expected 0 or 1"):
        SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, dmm.guide, *batch)


@pytest.mark.parametrize("is_lifted", [False, True])
def test_parameters_are_registered_once_unless_a_handler_may_differ(is_lifted: bool) -> None:
    pyro.clear_param_store()
    dmm, batch, seen = small_dmm(), make_batch(), []

    class Handler(poutine.messenger.Messenger):
        def _pyro_param(self, msg: Any) -> None:
            seen.append(msg["name"])

    def model(*args: Any) -> None:
        with Handler():
            dmm.model(*args)

    elbo = SequenceELBO(Trace_ELBO())
    with poutine.trace(param_only=True) as trace:
        elbo.loss_and_grads(model if is_lifted else dmm.model, dmm.guide, *batch)
    names = [f"dmm$$${name}" for name, _ in dmm.named_parameters()]
    assert list(trace.trace.nodes) == names
    assert seen == (names if is_lifted else [])


@pytest.mark.parametrize("change", ["freeze", "clear"])
def test_parameters_that_change_between_guide_and_model_are_registered_again(change: str) -> None:
    pyro.clear_param_store()
    dmm = small_dmm()

    def guide(*args: Any) -> None:
        dmm.z_0.requires_grad_(change != "freeze")
        dmm.guide(*args)
        dmm.z_0.requires_grad_(True)
        if change == "clear":
            pyro.clear_param_store()

    SequenceELBO(Trace_ELBO()).loss_and_grads(dmm.model, guide, *make_batch())
    assert len(pyro.get_param_store()) == len(list(dmm.parameters()))
