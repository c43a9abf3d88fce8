"""What a product in float32 means to all who are timed: IEEE, or TF32, as a GPU's matrix units may round."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

IEEE, TF32 = "ieee", "tf32"
# To PyTorch, to ours, and to JAX's peer, which reads it.
_MATMUL = {IEEE: "highest", TF32: "high"}


@contextmanager
def multiplied_in(precision: str) -> Iterator[None]:
    """Compute products and cuDNN's recurrence in ``precision``, :data:`IEEE` or :data:`TF32`.

    Left alone, cuDNN rounds the tutorial's recurrence to TF32 while products are IEEE.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(_MATMUL[precision])
    torch.backends.cudnn.allow_tf32 = precision == TF32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
