"""Times of functions on a device: by CUDA events on a GPU, by the wall clock on a CPU."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import Samples
from dmm_fast.infer._cuda_graphs import CudaGraphs

Step = Callable[[], Any]

MOST_ROUNDS, LEAST_ROUNDS = 30, 3
WARM_UP = 3
# Eager steps before a capture, for initialisation that must not be captured.
BEFORE_CAPTURE = 1
# Shorter replays are timed several at once, as the overhead between two events would matter.
SHORT_MS = 1.0
TOGETHER = 20


def time_calls(step: Step, device: str, *, seconds: float = 0.5) -> Samples:
    """The durations of eager calls of ``step``, for about ``seconds``.

    A long step is called :data:`LEAST_ROUNDS` times without further warm-up. On a GPU the calls are queued,
    each between two events. A step whose launches take the host longer than its kernels take the device is
    therefore measured by its launch time.
    """
    step()
    first = sum(_rounds(step, device, 1))
    if 1e-3 * first * (WARM_UP + LEAST_ROUNDS) < seconds:
        _rounds(step, device, WARM_UP)
    rounds = int(min(MOST_ROUNDS, max(LEAST_ROUNDS, seconds * 1e3 / max(first, 1e-6))))
    return Samples(tuple(_rounds(step, device, rounds)))


def time_graph(step: Step, *, seconds: float = 0.3) -> Samples:
    """The durations of ``step`` replayed from a CUDA graph; short replays are timed several at once.

    Raises:
        RuntimeError: the function cannot be captured.
    """
    replay = capture(step)
    replay()
    together = TOGETHER if sum(_rounds(replay, "cuda", 1)) < SHORT_MS else 1

    def several() -> None:
        for _ in range(together):
            replay()

    samples = time_calls(several, "cuda", seconds=seconds)
    return Samples(tuple(ms / together for ms in samples.ms))


def time_launches(launch: Step, *, together: int = TOGETHER, rounds: int = 5) -> Samples:
    """The durations of ``launch``, from a few replays of a CUDA graph of several of them.

    Raises:
        RuntimeError: the function cannot be captured.
    """

    def several() -> None:
        for _ in range(together):
            launch()

    replay = capture(several)
    replay()
    return Samples(tuple(ms / together for ms in _rounds(replay, "cuda", rounds)))


def capture(step: Step) -> Step:
    """Capture ``step`` in a CUDA graph; returns a function that replays it on the same memory."""
    graphs = CudaGraphs(torch.device("cuda", torch.cuda.current_device()))
    for _ in range(BEFORE_CAPTURE):
        graphs.run(step)
    return graphs.capture(step)


def _rounds(step: Step, device: str, count: int) -> list[float]:
    """Time ``count`` calls, in milliseconds."""
    if device != "cuda":
        return [_wall_clock_ms(step) for _ in range(count)]
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    torch.cuda.synchronize()
    for begin, end in pairs:
        begin.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def _wall_clock_ms(step: Step) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)
