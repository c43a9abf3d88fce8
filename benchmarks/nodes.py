"""``python -m benchmarks.nodes``: count the launches of a captured SVI step on a machine without a GPU.

A CUDA graph of :class:`~dmm_fast.infer.GraphedSVI` has a node for each kernel, copy and fill of a step. The
copies of arguments into the graph's inputs, and of the loss, are outside the graph and not counted.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from benchmarks import launches, machine
from benchmarks.cases import TUTORIAL_BATCH, TUTORIAL_STEPS
from benchmarks.launches import Launch, Recorder
from benchmarks.stepper import OPTIMIZER
from dmm_fast._io import atomic_write
from dmm_fast.infer import GraphedSVI
from dmm_fast.model import DMM
from dmm_fast.optim import PyroClippedAdam

LIBRARIES = ("triton", "cuda", "torch")
ELBOS: dict[str, Callable[[], Any]] = {"trace": Trace_ELBO, "mean-field": TraceMeanField_ELBO}


@dataclass(frozen=True)
class Case:
    """A step of a model of the tutorial's sizes, except for those in ``sizes``.

    ``masked`` steps have a mask ``[B, T]``, as the tutorial's mini-batches do.
    """

    name: str
    elbo: str = "trace"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    steps: int = TUTORIAL_STEPS
    masked: bool = True

    def launches(self) -> list[Launch]:
        """The launches of a captured step, in order."""
        return step_launches(DMM(**self.sizes), ELBOS[self.elbo](), self.steps, masked=self.masked)


CASES = (
    Case("Trace_ELBO"),
    Case("Trace_ELBO without a mask", masked=False),
    Case("Trace_ELBO, Gaussian emission", sizes={"emission": "gaussian"}),
    Case("Trace_ELBO, a normalizing flow", sizes={"num_iafs": 1, "iaf_dim": 100}),
    Case("Trace_ELBO, two normalizing flows", sizes={"num_iafs": 2, "iaf_dim": 100}),
    Case("Trace_ELBO, st-lr", sizes={"inference": "st-lr"}),
    Case("Trace_ELBO, mf-lr", sizes={"inference": "mf-lr"}),
    Case("TraceMeanField_ELBO", elbo="mean-field"),
)


def step_launches(
    dmm: DMM, elbo: Any, T: int = TUTORIAL_STEPS, B: int = TUTORIAL_BATCH, *, masked: bool = True
) -> list[Launch]:
    """The launches of a captured SVI step of ``dmm``, in order; its parameters lose their values.

    Raises:
        RuntimeError: launches cannot be recorded here; see :func:`benchmarks.launches.missing`.
    """
    dmm.to("meta")
    parts = {
        type(dmm).guide.__code__: "guide",
        type(dmm).model.__code__: "model",
        launches.BACKWARD: "backward",
        PyroClippedAdam.__call__.__code__: "optimizer",
    }
    with torch.device("meta"):
        mask = torch.empty(B, T) if masked else None
        batch = torch.empty(B, T, dmm.input_dim), None, mask, torch.empty(B, dtype=torch.int64)
    # Validation reads values in the eager steps before the capture; a captured step has none.
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), launches.recorded(parts) as recorder:
        capture = _Capture(recorder)
        adam = PyroClippedAdam({**OPTIMIZER, "capturable": True})
        svi = GraphedSVI(dmm.model, dmm.guide, adam, elbo, capturer=capture)
        for _ in range(1 + svi.warm_up):
            svi.step(*batch, 0.7)
    return capture.launches


class _Capture:
    """Stand-in for CUDA graphs that keeps the launches of the capture."""

    def __init__(self, recorder: Recorder) -> None:
        self.launches: list[Launch] = []
        self._recorder = recorder

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        return step()

    def capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        before = len(self._recorder.launches)
        self._recorder.is_capturing = True
        try:
            loss = step()
        finally:
            self._recorder.is_capturing = False
        self.launches = self._recorder.launches[before:]
        return lambda: loss


def totals(launched: Sequence[Launch]) -> dict[str, int]:
    """The number of launches, in total and by library."""
    by = Counter(launch.by for launch in launched)
    return {"all": len(launched), **{library: by[library] for library in LIBRARIES}}


def table(launched: Sequence[Launch]) -> str:
    """A table with a line for each distinct launch, in the order of the step."""
    rows = [("part", "op", "launched by", "", "kernel", "nodes")]
    for launch, nodes in Counter(launched).items():
        kernel = launch.kernel + (f" (stream {launch.stream})" if launch.stream else "")
        rows.append((launch.part or "ELBO", launch.op, launch.function, launch.by, kernel, str(nodes)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True))][:-1])
        + f"  {row[-1]:>5s}"
        for row in rows
    )


def described(counts: Mapping[str, int]) -> str:
    """The totals as one line."""
    return f"{counts['all']} nodes: " + ", ".join(f"{counts[library]} {library}" for library in LIBRARIES)


def report(case: Case) -> dict[str, Any]:
    """Count the launches of a case and print them; returns its row of the JSON file."""
    launched = case.launches()
    counts = totals(launched)
    print(f"{case.name}, B={TUTORIAL_BATCH}, T={case.steps}: {described(counts)}\n{table(launched)}")
    row: dict[str, Any] = {
        "case": case.name,
        "B": TUTORIAL_BATCH,
        "T": case.steps,
        "nodes": counts,
        "launches": [
            {**launch._asdict(), "part": launch.part or "ELBO", "nodes": nodes}
            for launch, nodes in Counter(launched).items()
        ],
    }
    print()
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables. Returns 0, or 1 if launches cannot be recorded here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__)
    parser.add_argument("--elbo", choices=(*ELBOS, "all"), default="all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the counts to this file")
    args = parser.parse_args(argv)
    if args.json is not None and (args.json.is_dir() or not args.json.parent.is_dir()):
        parser.error(f"--json: expected a file in an existing folder, got {args.json}")
    if why := launches.missing():
        print(why, file=sys.stderr)
        return 1
    rows = [report(case) for case in CASES if args.elbo in (case.elbo, "all")]
    if args.json is not None:
        content = {"commit": machine.commit(), "torch": torch.__version__, "cases": rows}
        with atomic_write(args.json) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
