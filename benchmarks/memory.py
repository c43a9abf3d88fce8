"""What a run holds in memory: the allocator's peak on a GPU, the process's on a CPU."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pyro_racer import PyroRacer
from benchmarks.racer import Racer
from dmm_fast.infer import SequenceELBO

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
FORGET_THE_PEAK = "5"  # to CLEAR_REFS: the peak of resident memory starts again from what is resident


def memory(racer: Racer, device: torch.device) -> dict[str, int | None]:
    """Bytes behind a run of ``racer``, which has run before: its optimizer has its state.

    How far what the allocator hands out on a GPU, or what is resident on a CPU, rises above where it
    stood; and on a CPU, of a racer in Pyro, what autograd saves of the case's first mini-batch. None of who
    asks torch's allocator for nothing on a GPU: a replay has its memory from the capture, JAX its own.
    """
    with racer.active():
        if device.type == "cuda":
            if isinstance(racer, PyroRacer) and racer.replays:
                return {"peak_allocated_bytes": None}
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            racer.run()
            return {"peak_allocated_bytes": torch.cuda.max_memory_allocated(device) - before or None}
        held = {"peak_resident_bytes": peak_resident(racer.run)}
        # What SequenceELBO keeps are gradients, which autograd does not tell.
        if isinstance(racer, PyroRacer) and not isinstance(racer.elbo, SequenceELBO):
            held["saved_for_backward_bytes"] = saved_bytes(racer, racer.case.batches[0])
        return held


def peak_resident(run: Callable[[], object]) -> int | None:
    """The most by which this process's resident memory grows while ``run`` runs.

    Free memory that shares a page with memory in use is not seen when ``run`` takes it. None where the
    platform cannot tell: it takes Linux's count and glibc's ``malloc_trim``.
    """
    gc.collect()
    if not (_give_back_free_heap() and _forget_the_peak()):
        return None
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def saved_bytes(racer: PyroRacer, batch: Any) -> int:
    """Bytes of the distinct storages, parameters left out, that the ELBO keeps for its backward."""
    own = {p.untyped_storage().data_ptr() for p in racer.module.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        racer.elbo.differentiable_loss(racer.module.model, racer.module.guide, *batch)
    return sum(storages.values())


def _give_back_free_heap() -> bool:
    """Whether the C library gave free memory back: what it keeps, the next run takes unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


def _forget_the_peak() -> bool:
    try:
        CLEAR_REFS.write_text(FORGET_THE_PEAK)
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])  # the kernel's kB are 1024 bytes
    raise KeyError(f"{STATUS}: expected a line {field}, got none")
