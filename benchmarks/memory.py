"""Peak memory of a run: that of the allocator on a GPU, that of the process on a CPU."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pyro_stepper import PyroStepper
from benchmarks.stepper import Stepper
from dmm_fast.infer import SequenceELBO

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # written to CLEAR_REFS, sets the peak of resident memory to its present size


def memory(stepper: Stepper, device: torch.device) -> dict[str, int | None]:
    """The memory of a run of ``stepper``, in bytes; it must have run before, so that its optimizer has state.

    On a GPU, the rise of the memory allocated by torch during the run; None for a replayed graph and for JAX,
    whose memory does not come from torch's allocator at run time. On a CPU, the rise of resident memory, and
    for a stepper in Pyro also the bytes that autograd saves for the first mini-batch of the case.
    """
    with stepper.active():
        if device.type == "cuda":
            if isinstance(stepper, PyroStepper) and stepper.replays:
                return {"peak_allocated_bytes": None}
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            stepper.run()
            return {"peak_allocated_bytes": torch.cuda.max_memory_allocated(device) - before or None}
        held = {"peak_resident_bytes": peak_resident(stepper.run)}
        # SequenceELBO keeps gradients, which the hooks of autograd do not see.
        if isinstance(stepper, PyroStepper) and not isinstance(stepper.elbo, SequenceELBO):
            held["saved_for_backward_bytes"] = saved_bytes(stepper, stepper.case.batches[0])
        return held


def peak_resident(run: Callable[[], object]) -> int | None:
    """The largest increase of the resident memory of this process during ``run``, in bytes.

    Reuse of free memory on pages that are in use is not counted. None on platforms without Linux's
    ``/proc/self/clear_refs`` and glibc's ``malloc_trim``.
    """
    gc.collect()
    if not (_give_back_free_heap() and _reset_peak()):
        return None
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def saved_bytes(stepper: PyroStepper, batch: Any) -> int:
    """Bytes of the distinct storages other than parameters that the ELBO saves for its backward pass."""
    own = {p.untyped_storage().data_ptr() for p in stepper.module.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        stepper.elbo.differentiable_loss(stepper.module.model, stepper.module.guide, *batch)
    return sum(storages.values())


def _give_back_free_heap() -> bool:
    """Return free memory to the system, as its reuse would not be counted; False without malloc_trim."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


def _reset_peak() -> bool:
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])  # the kernel's kB are 1024 bytes
    raise KeyError(f"{STATUS}: expected a line {field}, got none")
