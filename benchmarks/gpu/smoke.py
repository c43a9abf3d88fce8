"""Smoke test of a CUDA kernel in a process of its own: ``python -m benchmarks.gpu.smoke KERNEL``.

A kernel is compared with the float64 reference on ragged batches, small ones and of the tutorial's size. A
crash or hang of one process does not affect the tests of other kernels. If a kernel fails, its op is computed
by another backend in all later stages.
"""

import argparse
import importlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import errors, exchange_floor
from benchmarks.draws import Inputs, Sizes, map_tensors, to_double
from benchmarks.errors import QUICK, Results
from benchmarks.gpu.calls import backends_of, by, reference_of
from benchmarks.gpu.plans import exchanging
from benchmarks.gpu.record import Record, Row, whole_traceback
from benchmarks.precision import BF16, IEEE, TF32, multiplied_in
from dmm_fast import _extension, ops

SMALL = Sizes(B=5, T=7, D=7, Z=17, H=37, R=33, G=29, E=19)
# Enough rows for the planner to choose tensor cores if the precision allows them.
WIDE = Sizes(B=1024, T=6, H=600)
# Wider than the bounds of the stage "errors", which takes medians over seeds, because a kernel that fails
# here is not used in the rest of the run. For rounded factors, the bound corresponds to their ten or seven
# mantissa bits after a few dozen steps.
EAGER_FACTOR, FLOOR = 10.0, 1e-5
ROUNDED_BOUND = {TF32: 5e-3, BF16: 4e-2}
# An element is an outlier if its error exceeds this many times the bound of its tensor, relative to the RMS.
OUTLIER = 30.0
READY, RESULT = "ready", "smoke: "


class Kernel(NamedTuple):
    """A CUDA kernel under test.

    Attributes:
        op: the op it belongs to.
        backward: it is the backward kernel of the op.
        descending: it computes the last time step first.
        precision: of float32 products.
        by_memory: its blocks exchange through device memory, whether or not the planner would choose that.
    """

    op: str
    backward: bool = False
    descending: bool = False
    precision: str = IEEE
    by_memory: bool = False

    @property
    def replaced(self) -> str:
        """The op to be computed by another backend if this kernel fails; a name of no op if there is none."""
        return f"{self.op} through device memory" if self.by_memory else self.op


KERNELS = {
    "rnn_scan forward": Kernel("rnn_scan", descending=True),
    "rnn_scan backward": Kernel("rnn_scan", backward=True),
    "rnn_scan forward, tf32": Kernel("rnn_scan", descending=True, precision=TF32),
    "rnn_scan backward, tf32": Kernel("rnn_scan", backward=True, precision=TF32),
    "rnn_scan forward, bf16": Kernel("rnn_scan", descending=True, precision=BF16),
    "rnn_scan backward, bf16": Kernel("rnn_scan", backward=True, precision=BF16),
    "combiner_scan forward": Kernel("combiner_scan"),
    "combiner_scan backward": Kernel("combiner_scan", backward=True, descending=True),
    "rnn_scan forward, by memory": Kernel("rnn_scan", descending=True, by_memory=True),
    "rnn_scan backward, by memory": Kernel("rnn_scan", backward=True, by_memory=True),
    "combiner_scan forward, by memory": Kernel("combiner_scan", by_memory=True),
    "combiner_scan backward, by memory": Kernel(
        "combiner_scan", backward=True, descending=True, by_memory=True
    ),
    "combiner_scan forward, tf32": Kernel("combiner_scan", precision=TF32),
    "combiner_scan backward, tf32": Kernel("combiner_scan", backward=True, descending=True, precision=TF32),
    "clipped_adam": Kernel("clipped_adam"),
}
FLOOR_KERNEL = "exchange_floor"
FLOOR_STORES = ("async_b32", "async_v2", "async_v4")
WORDS = "words"  # of device memory
EVERY = (*KERNELS, FLOOR_KERNEL)
ROW = ("ok", "error", "bound", "worst", "nan", "first_bad", "by_step", "hang", "failed", "seconds")


def under_test(op: str, device: str) -> str:
    """The tested backend: the preferred one, which is "cuda" on a GPU and usually "cpp" on a CPU."""
    return backends_of(op, device)[0]


def row_of(name: str, device: str) -> Row:
    """A row for a kernel, without results."""
    op = KERNELS[name].replaced if name in KERNELS else name
    backend = under_test(KERNELS[name].op, device) if name in KERNELS else "cuda"
    return dict.fromkeys(ROW) | {"kernel": name, "op": op, "backend": backend}


def fall_back(record: Record, device: str) -> None:
    """Make the next backend compute the ops whose kernels failed, in this process and in later stages.

    A kernel without a row also counts as failed, as the process that tested it has died.
    """
    for name in {*EVERY} - {row["kernel"] for row in record.found("smoke")}:
        record.add(
            "smoke", row_of(name, device) | {"ok": False, "failed": "its process died without a result"}
        )
    for row in record.failed_kernels():
        op = row["op"]
        if op in record.replaced or op not in {kernel.op for kernel in KERNELS.values()}:
            continue
        record.replaced[op] = next(name for name in backends_of(op, device) if name != row["backend"])
        ops.use_backend(record.replaced[op], ops=(op,))
        print(f"{op} is computed by {record.replaced[op]}: {row['kernel']} failed its smoke test", flush=True)


# --- one kernel -----------------------------------------------------------------------------------------


def check(kernel: Kernel, device: str, quick: bool) -> Row:
    """The worst result of a kernel over all cases; prints :data:`READY` after the float64 results."""
    with multiplied_in(kernel.precision):
        expected = [Expected(kernel, device, inputs) for inputs in cases(kernel, quick)]
        print(READY, flush=True)
        with exchanging("memory" if kernel.by_memory else None):
            rows = [row for each in expected for row in each.compare(under_test(kernel.op, device))]
    return max(rows, key=_rank)


def check_floor(device: str) -> Row:
    """Check the exchange floor: rings must turn by one place per step, for every width of the stores."""
    if why := exchange_floor.missing(device):
        return {"worst": why}
    # Before compute capability 9.0 there are only clusters of one block.
    size = 8 if torch.cuda.get_device_capability() >= (9, 0) else 1
    sizes = {**dict.fromkeys(FLOOR_STORES, size), WORDS: 10}
    rings = {store: torch.randn(2, size * 60, device=device) for store, size in sizes.items()}
    wrong = []
    print(READY, flush=True)
    for store, steps in itertools.product(sizes, (1, 2, 129)):
        given = rings[store], steps, sizes[store], 256, store, 1
        turned = torch.ops.dmm_fast_benchmarks.exchange_floor(*given)
        wrong += [] if torch.equal(turned, rings[store].roll(-steps, 1)) else [f"{store}, {steps} steps"]
    hang = _hang(exchange_floor.raise_on_hang)
    return {"ok": not wrong and hang is None, "worst": ", ".join(wrong), "hang": hang}


def cases(kernel: Kernel, quick: bool) -> list[Inputs]:
    """Draw arguments of ragged batches: small, without ReLU inputs near zero, and of the tutorial's size.

    The latter use tanh, because some of so many ReLU inputs would change their sign by rounding.
    """
    small, large = (QUICK, QUICK) if quick else (SMALL, Sizes() if kernel.precision == IEEE else WIDE)
    smooth = replace(large, lengths="ragged", nonlinearity="tanh")
    drawn = errors.arguments(kernel.op, smooth, torch.Generator().manual_seed(1))
    if kernel.precision != IEEE:  # rounding exceeds any margin around zero
        return [drawn]
    return [errors.arguments_off_kinks(kernel.op, replace(small, lengths="ragged"), seed=0), drawn]


class Expected:
    """The float64 results of one case, and the bounds of their errors."""

    def __init__(self, kernel: Kernel, device: str, inputs: Inputs) -> None:
        self._kernel = kernel
        self._inputs = map_tensors(inputs, lambda _, tensor: tensor.to(device))
        self._truth = self._results(reference_of(kernel.op), map_tensors(self._inputs, to_double))
        eager = errors.relative_errors(self._results(reference_of(kernel.op), self._inputs), self._truth)
        rounded = ROUNDED_BOUND.get(kernel.precision)
        self._bounds = {name: rounded or max(EAGER_FACTOR * off, FLOOR) for name, off in eager.items()}

    def _results(self, function: Any, inputs: Inputs) -> Results:
        backward = self._kernel.backward
        every = errors.results_of(self._kernel.op)(function, inputs, gradients=backward)
        return {name: value for name, value in every.items() if name.startswith("gradient") == backward}

    def compare(self, backend: str) -> Iterator[Row]:
        """Compare each result of the backend; yields a row for each."""
        _poison(next(iter(self._truth.values())).device)
        got, hang = self._results(by(backend, self._kernel.op), self._inputs), _hang(_extension.raise_on_hang)
        for name, off in errors.relative_errors(got, self._truth).items():
            bound = self._bounds[name]
            row = {"ok": off <= bound and hang is None, "error": _finite(off), "bound": bound, "worst": name}
            found = where_bad(got[name], self._truth[name], self._kernel.descending, row)
            yield row | {"hang": hang} | found


def where_bad(got: Tensor, truth: Tensor, descending: bool, row: Row) -> Row:
    """The number of NaN, the error of each time step, and the first outlier in the order of computation.

    Errors by time step and the order of computation apply to tensors ``[B, T, units]`` only.
    """
    off, rms = (got.double() - truth).abs(), truth.square().mean().sqrt().clamp_min(1e-30)
    sequences = truth.dim() == 3
    by_step = (off.square().mean((0, 2)).sqrt() / rms).tolist() if sequences else []
    first: dict[str, int] | None = None
    if not row["ok"]:
        bad = ~(off <= OUTLIER * row["bound"] * rms)  # NaN counts as an outlier
        at = bad.nonzero() if bad.any() else (off == off.max()).nonzero()
        if sequences:  # earliest computed time step first, then row and unit
            when = -at[:, 1] if descending else at[:, 1]
            at = at[when == when.min()]
        names = ("row", "t", "unit") if sequences else [f"dim {d}" for d in range(at.shape[1])]
        first = dict(zip(names, at[0].tolist(), strict=True))
    return {"nan": int(got.isnan().sum()), "by_step": list(map(_finite, by_step)), "first_bad": first}


def _rank(row: Row) -> tuple[bool, bool, float]:
    """A sort key, the worst last; among failures, results with time steps are the most informative."""
    by_step = not row["ok"] and bool(row["by_step"])
    return not row["ok"], by_step, math.inf if row["error"] is None else row["error"] / row["bound"]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinities


def _hang(raise_on_hang: Callable[[], None]) -> str | None:
    """Synchronise; returns the message of a recorded wait that timed out, or None."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        raise_on_hang()
    except RuntimeError as error:
        return str(error)
    return None


def _poison(device: torch.device) -> None:
    """Fill free memory of the allocator with NaN, which reads of uninitialised memory would return."""
    if device.type == "cuda":
        for numbers in (1 << 26, 1 << 18):
            torch.full((numbers,), math.nan, device=device)


def main(argv: Sequence[str] | None = None) -> int:
    """Check one kernel and print its row. Returns 0, or 1 after an exception."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.smoke", description=__doc__)
    parser.add_argument("kernel", choices=EVERY)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plugin")
    args = parser.parse_args(argv)
    if args.plugin:
        importlib.import_module(args.plugin).install()
    torch.zeros(1, device=args.device)  # creates the context before timing
    start, kernel = time.monotonic(), KERNELS.get(args.kernel)
    row = row_of(args.kernel, args.device)
    try:
        found = check(kernel, args.device, args.quick) if kernel else check_floor(args.device)
    except Exception as error:
        print(whole_traceback(error), flush=True)
        return 1
    print(RESULT + json.dumps(row | found | {"seconds": round(time.monotonic() - start, 2)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
