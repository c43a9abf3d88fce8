"""Precision of float32 products: IEEE, or factors rounded to TF32 or bf16 by the matrix units of a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

IEEE, TF32, BF16 = "ieee", "tf32", "bf16"
# The setting of PyTorch, which dmm_fast and the peer in JAX follow.
_MATMUL = {IEEE: "highest", TF32: "high", BF16: "medium"}


@contextmanager
def multiplied_in(precision: str) -> Iterator[None]:
    """Compute products and cuDNN's recurrence in ``precision``, :data:`IEEE`, :data:`TF32` or :data:`BF16`.

    By default, cuDNN rounds the tutorial's recurrence to TF32 although other products are IEEE.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(_MATMUL[precision])
    torch.backends.cudnn.allow_tf32 = precision != IEEE
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
