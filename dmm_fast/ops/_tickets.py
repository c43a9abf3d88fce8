"""Tickets: atomic counters by which the last program of a launch is found.

Every block or program of an Adam step reads step counts and learning rates, and the last one to have read
them writes the new values. For this, each increments a ticket, an int32 on the device, atomically, and the
last one resets it to zero for the next launch.

Two launches that may run concurrently must not use the same ticket. Launches that change the same step count
never run concurrently, on any streams or in any graphs, so each step count has its own ticket with the same
lifetime.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dmm_fast import reference
from dmm_fast.check import is_capturing

_tickets: Any = WeakTensorKeyDictionary()


def ticket_to_advance(steps: list[Tensor], lrs: list[Tensor], lrd: float) -> Tensor | None:
    """The ticket of a launch that counts steps and decays learning rates, allocated at the first call.

    If the first call is within the capture of a CUDA graph, counts and rates are updated here by separate
    operations, and the result is None: a ticket allocated in the capture would be in the graph's memory and
    would be zeroed by a further node in each replay.
    """
    ticket: Tensor | None = _tickets.get(steps[0])
    if ticket is None and is_capturing():
        reference.count_and_decay(steps, lrs, lrd)
    elif ticket is None:
        ticket = _tickets[steps[0]] = torch.zeros((), dtype=torch.int32, device=steps[0].device)
    return ticket
