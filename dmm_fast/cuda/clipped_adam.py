"""A step of Adam with clipped gradients, for many tensors in one launch."""

from typing import Any

import torch

from dmm_fast.ops._tickets import ticket_to_advance


def clipped_adam(*given: Any) -> None:
    """Update the parameters in place; the arguments are those of the compiled op."""
    *others, steps, lrs, lrd, advance = given
    ticket = ticket_to_advance(steps, lrs, lrd) if advance else None
    tickets = [] if ticket is None else [ticket]
    torch.ops.dmm_fast._launch_clipped_adam(*others, steps, lrs, lrd, ticket is not None, tickets)
