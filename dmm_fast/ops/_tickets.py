"""Tickets: counters by which the programs of a launch find out which of them comes last.

Every block or program of a step of Adam reads step counts and learning rates, and the last one to have read
them writes the new ones. For that each draws a number from a ticket, an int32 on the device, and the last one
puts the ticket back to zero for the next launch.

Two launches that may run at the same time must not draw from one ticket. Those that change the same step
count never may, on whatever streams and in whatever graphs. So a ticket belongs to a step count, and lives
as long.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dmm_fast import reference
from dmm_fast.check import is_capturing

_tickets: Any = WeakTensorKeyDictionary()


def ticket_to_advance(steps: list[Tensor], lrs: list[Tensor], lrd: float) -> Tensor | None:
    """Find the ticket of a launch that counts steps and decays learning rates.

    None where the numbers have been advanced here instead, by operations of their own: where the capture of a
    CUDA graph is the first to ask. A ticket made within it would be in the graph's own memory, and set to
    zero by another node in each replay.
    """
    ticket: Tensor | None = _tickets.get(steps[0])
    if ticket is None and is_capturing():
        reference.count_and_decay(steps, lrs, lrd)
    elif ticket is None:
        ticket = _tickets[steps[0]] = torch.zeros((), dtype=torch.int32, device=steps[0].device)
    return ticket
