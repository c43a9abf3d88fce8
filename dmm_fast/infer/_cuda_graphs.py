"""Capture of steps as CUDA graphs that share their memory."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from dmm_fast import _extension
from dmm_fast.infer._unread import CaptureError
from dmm_fast.ops import BackendError
from dmm_fast.triton import side_stream

Step = Callable[[], Tensor]

_LIKELY_CAUSES = (
    "likely causes: the step waits for the GPU, as .cpu() does; it recreates a parameter; an autograd graph "
    "of its parameters made on another stream is still alive, such as that of an earlier loss: del loss "
    "before the first step"
)


class Capturer(Protocol):
    """An object that runs steps before their capture and captures them."""

    def run(self, step: Step) -> Tensor:
        """Run ``step`` without capturing it, on the stream of the later capture."""

    def capture(self, step: Step) -> Step:
        """Capture ``step``; returns a function that replays it and returns the result in the same memory."""


class CudaGraphs:
    """A capturer of CUDA graphs, on a separate stream and with one memory pool for all graphs.

    With ``overlap`` there is also a side stream of lower priority.
    """

    def __init__(self, device: torch.device, overlap: bool = False) -> None:
        self._stream = torch.cuda.Stream(device, -1) if overlap else torch.cuda.Stream(device)
        self._side = torch.cuda.Stream(device) if overlap else None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def run(self, step: Step) -> Tensor:
        """Run ``step`` on the stream of the later capture, ordered with the work of the current stream."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = step()
        current.wait_stream(self._stream)
        return result

    def capture(self, step: Step) -> Step:
        """Capture ``step``; nothing is computed before the first replay."""
        capture = partial(self._capture, step)
        return side_stream.capture_beside(capture, self._stream, self._side, torch.cuda.stream)

    def _capture(self, step: Step, context: AbstractContextManager[None]) -> Step:
        graph = torch.cuda.CUDAGraph()
        # A pool can only be reused while a graph that uses it is alive.
        pool = next((other.pool() for other in self._graphs), None)
        # Reference cycles may keep autograd graphs of other streams alive, which would break the capture.
        gc.collect()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream), context:
            result = step()
        self._graphs.add(graph)

        def replay() -> Tensor:
            _extension.raise_on_hang()
            graph.replay()
            return result

        return replay


def captured(capturer: Capturer, step: Step) -> Step:
    """Capture ``step`` with ``capturer``.

    Raises:
        CaptureError: ``step`` cannot be captured; the message gives the reason or the likely one.
    """
    try:
        return capturer.capture(step)
    except (CaptureError, BackendError, torch.OutOfMemoryError):
        raise  # these messages already explain the problem
    except RuntimeError as error:
        got = f"{type(error).__name__}: {error}".partition("\n")[0]
        expected = "one that a CUDA graph can hold"
        raise CaptureError(f"step: expected {expected}, got {got} ({_LIKELY_CAUSES})") from error
