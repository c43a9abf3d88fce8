"""The meaning of a product in float32: IEEE, or TF32 or bf16, to which a GPU's matrix units may round."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

IEEE, TF32, BF16 = "ieee", "tf32", "bf16"
# To PyTorch, to ours, and to JAX's peer, which reads it.
_MATMUL = {IEEE: "highest", TF32: "high", BF16: "medium"}


@contextmanager
def multiplied_in(precision: str) -> Iterator[None]:
    """Compute products and cuDNN's recurrence in ``precision``, :data:`IEEE`, :data:`TF32` or :data:`BF16`.

    Left alone, cuDNN rounds the tutorial's recurrence to TF32 while products are IEEE.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(_MATMUL[precision])
    torch.backends.cudnn.allow_tf32 = precision != IEEE
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
