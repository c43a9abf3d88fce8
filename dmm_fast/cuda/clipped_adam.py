"""A step of Adam with clipped gradients, for many tensors at a time."""

from typing import Any

import torch


def clipped_adam(*given: Any) -> None:
    """Step the parameters in place; the arguments are those of the compiled op."""
    torch.ops.dmm_fast._launch_clipped_adam(*given)
