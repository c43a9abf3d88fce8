"""Classification of calls with wrong arguments: a finite result, an error of the package, or a fault."""

import dataclasses
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import dmm_fast
from dmm_fast.distributions import SequenceDistribution

PACKAGE = Path(dmm_fast.__file__).parent
_MESSAGE = re.compile(r".+: expected .+, got .+", re.DOTALL)
_SECONDS = 5.0


class NoEndError(BaseException):
    """Raised when a call takes longer than any of these calls should."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A call with a wrong outcome.

    Attributes:
        kind: the type of the raw error, or a description of the wrong result.
        message: the first characters of the error.
        place: file and line of the package that raised it.
    """

    kind: str
    message: str
    place: str


def judge(call: Callable[[], Any], *, may_be_infinite: bool) -> Fault | None:
    """Run ``call``; returns None for a finite result or an error of this package, else a fault."""
    try:
        with _time_limit(_SECONDS):
            tensors = list(_tensors(call()))
    except (Exception, NoEndError) as error:
        return None if _is_refusal(error) else _fault(error)
    if not may_be_infinite and not all(bool(t.isfinite().all()) for t in tensors):
        return Fault("not finite", "the answer is infinite or not a number", "")
    return None


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return True  # a missing file or a folder: the error of the operating system is sufficient
    house = isinstance(error, ValueError | TypeError | RuntimeError) and not isinstance(error, RecursionError)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return house and PACKAGE in Path(last.filename).parents and bool(_MESSAGE.fullmatch(str(error)))


def _fault(error: BaseException) -> Fault:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(f.filename).parents]
    place = "outside the package"
    if frames:
        place = f"{Path(frames[-1].filename).relative_to(PACKAGE)}:{frames[-1].lineno} {frames[-1].name}"
    return Fault(type(error).__name__, " ".join(str(error).split())[:90], place)


def _tensors(answer: Any) -> Iterator[Tensor]:
    """The floating-point tensors with values in a result."""
    if isinstance(answer, Tensor):
        if answer.is_floating_point() and answer.device.type != "meta":
            yield answer.detach().to_dense()
    elif isinstance(answer, float):
        yield torch.tensor(answer)
    elif isinstance(answer, tuple | list):
        for part in answer:
            yield from _tensors(part)
    elif isinstance(answer, dict):
        yield from _tensors(list(answer.values()))
    elif isinstance(answer, SequenceDistribution):
        yield from _tensors(answer.sample())


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """A limit on processor time, which is independent of other processes."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise NoEndError(f"no end within {seconds} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
