"""On the hardware no wait of a scan times out, and checking for it needs no launch."""

import pytest
import torch

from dmm_fast import _extension
from tests.gpu.calls import OP_BACKENDS, prepare

pytestmark = pytest.mark.skipif(not _extension.cuda_architectures(), reason="built without CUDA kernels")


@pytest.mark.parametrize(
    "op", [op for op, backend in OP_BACKENDS if backend == "cuda" and op in ("rnn_scan", "combiner_scan")]
)
def test_a_scan_leaves_no_record(op: str) -> None:
    call = prepare(op, "cuda")
    for _ in range(3):
        call.run()
    torch.cuda.synchronize()
    _extension.raise_on_hang()
