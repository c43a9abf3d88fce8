"""On the hardware no wait of a scan or of the floor gives up, and looking for one costs no launch."""

import pytest
import torch

from dmm_fast import native
from tests.gpu.calls import OP_BACKENDS, prepare
from tests.gpu.test_exchange_floor import STORES

pytestmark = pytest.mark.skipif(not native.cuda_architectures(), reason="built without CUDA kernels")


@pytest.mark.parametrize(
    "op", [op for op, backend in OP_BACKENDS if backend == "cuda" and op in ("rnn_scan", "combiner_scan")]
)
def test_a_scan_leaves_no_record(op: str) -> None:
    call = prepare(op, "cuda")
    for _ in range(3):
        call.run()
    torch.cuda.synchronize()
    native.raise_on_hang()


@pytest.mark.parametrize("store", STORES)
def test_the_floor_leaves_no_record(store: str) -> None:
    size = 8 if torch.cuda.get_device_capability() >= (9, 0) else 1
    given = torch.randn(3, size * 64, device="cuda")
    for steps in range(5):
        torch.ops.dmm_fast.exchange_floor(given, steps, size, 64, store)
    torch.cuda.synchronize()
    native.raise_on_hang()
