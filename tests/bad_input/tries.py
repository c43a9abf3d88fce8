"""Calls with one or two wrong arguments, drawn from a seed."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pyro
import torch

from tests.bad_input.calls import SLOW, Call
from tests.bad_input.judge import Fault, judge
from tests.bad_input.values import NOT_FINITE, spoilt


class Finding(NamedTuple):
    """A fault, with the function, its invalid arguments, and how they were changed."""

    call: str
    arguments: str
    how: str
    fault: Fault

    @property
    def key(self) -> str:
        """A key shared by faults of one kind."""
        return f"{self.call}({self.arguments})"


def find(call: Call, tries: int) -> Iterator[Finding]:
    """The faults among ``tries`` calls, or a tenth as many for a slow function; reproducible."""
    dice = random.Random(call.name)
    if not call.arguments():
        return
    for _ in range(max(1, tries // 10) if call.name in SLOW else tries):
        arguments = call.arguments()
        names = dice.sample(list(arguments), k=min(len(arguments), dice.choice((1, 1, 1, 2))))
        wrong = {name: spoilt(arguments[name], dice) for name in sorted(names)}
        finding = _try(call, arguments, wrong)
        if finding is not None and len(wrong) > 1:
            # Of two invalid arguments, one alone probably causes the fault.
            alone = [_try(call, call.arguments(), {name: wrong[name]}) for name in names]
            yield next((f for f in alone if f is not None and f.fault.kind == finding.fault.kind), finding)
        elif finding is not None:
            yield finding


def _try(call: Call, arguments: dict[str, Any], wrong: dict[str, tuple[str, Any]]) -> Finding | None:
    arguments = {**arguments, **{name: value for name, (_, value) in wrong.items()}}
    may_be_infinite = any(word in label for label, _ in wrong.values() for word in NOT_FINITE)
    pyro.clear_param_store()
    torch.manual_seed(0)
    fault = judge(lambda: call(arguments), may_be_infinite=may_be_infinite)
    if fault is None:
        return None
    how = "; ".join(f"{name}: {label}" for name, (label, _) in wrong.items())
    return Finding(call.name, ", ".join(wrong), how, fault)


@contextmanager
def bounds() -> Iterator[None]:
    """Block the network and limit the memory, so that a call that asks for either fails."""
    no_network = mock.patch("dmm_fast.data._download.urlopen", side_effect=OSError("no network"))
    with no_network, little_memory(6 << 30):
        yield


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """Limit the address space to ``more`` bytes beyond its present size, on Linux."""
    if sys.platform != "linux":
        yield
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
