"""``python -m benchmarks.run --suite cpu``: check, time interleaved, print, and write one JSON file."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO

from benchmarks import cases, errors, machine
from benchmarks.cases import Case
from benchmarks.correctness import CheckResult
from benchmarks.draws import Sizes
from benchmarks.equivalence import check_equivalence
from benchmarks.implementations import (
    BASELINE,
    EVERY_OURS,
    GPU_PEERS,
    IMPLEMENTATIONS,
    IN_STEPS,
    MENDED,
    OURS,
    jax_peers,
    starting_parameters,
)
from benchmarks.memory import memory
from benchmarks.precision import multiplied_in
from benchmarks.stepper import JAX_NAME, Implementation, Stepper
from benchmarks.suites import SUITES
from benchmarks.timing import Ratio, Samples, load_average, load_warning, paired_ratio, time_interleaved

RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite. Returns 0, or 1 if an implementation or an op exceeded its bound."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    suite = SUITES[args.suite]
    meta = machine.meta(device, quick=args.quick)
    results: dict[str, Any] = {"suite": args.suite, "meta": meta, "correctness": [], "cases": []}
    path = None if args.data is None else Path(args.data)
    to_run = suite.cases(cases.data_file(path), args.quick)
    most = max(case.threads or args.threads for case in to_run)
    meta["load_warning"] = load_warning(meta["load"], most, meta["cpus"])
    if meta["load_warning"]:
        print(f"warning: {meta['load_warning']}", file=sys.stderr)
    jax, why_not = jax_peers()
    if why_not:
        print(f"JAX is skipped: {why_not}")
    ours = [c for c in IMPLEMENTATIONS if c in OURS]
    everyone = [*(c for c in IMPLEMENTATIONS if c not in ours), *jax, *ours]
    results |= measure_errors(suite.errors_of, device, errors.QUICK if args.quick else Sizes())
    results["not_run"] = []
    for case in to_run:
        asked_for = [c for c in (IN_STEPS,) if c.name in (case.implementations or ())]
        check_results, rows = run_case(args.suite, case, chosen_by(case, [*everyone, *asked_for]), device)
        results["correctness"] += [v.as_dict() for v in check_results]
        results["cases"] += rows
        results["not_run"] += [{"case": case.name, "impl": n, "why": w} for n, w in case.not_run.items()]
    meta["load_at_end"] = load_average()
    written = write(results, Path(args.out))
    print(f"\nwritten: {written}")
    return 0 if all(row["ok"] for row in results["correctness"] + results.get("errors", [])) else 1


def measure_errors(backends: Sequence[str], device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """The results' ``errors`` and ``errors_about``; empty if a backend computes no op in this build."""
    rows: list[errors.ErrorRow] = []
    for name in backends:
        of_this = errors.measure(name, device.type, sizes)
        if not of_this:
            print(f"errors of single ops: not measured, {name} computes none here", file=sys.stderr)
            return {}
        bad = [row for row in of_this if not row.ok]
        print(f"errors of single ops: {len(of_this)} of {name} measured, {len(bad)} beyond their bound")
        for row in bad:
            print(f"  BAD {row.op}, {row.case}: error {row.max_rel_error:.2e}, bound {row.bound:.2e}")
        rows += of_this
    return {"errors": [row.as_dict() for row in rows], "errors_about": errors.about(sizes)}


def chosen_by(case: Case, implementations: Sequence[Implementation]) -> list[Implementation]:
    """The implementations that ``case`` asks for, in the order given.

    Raises:
        ValueError: ``case`` names an unknown implementation.
    """
    known = [c.name for c in implementations]
    wanted = known if case.implementations is None else case.implementations
    unknown = {*wanted, *case.not_run} - set(known)
    if unknown:
        raise ValueError(f"implementations: expected some of {known}, got {sorted(unknown)}")
    return [c for c in implementations if c.name in wanted and c.name not in case.not_run]


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute with ``number`` threads; None: unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_case(
    suite: str, case: Case, implementations: Sequence[Implementation], device: torch.device
) -> tuple[list[CheckResult], list[dict[str, Any]]]:
    """Check and time one case; returns check results and rows. If a check fails, nothing is timed."""
    print(f"\n{case.name} ({case.data})")
    with threads(case.threads), multiplied_in(case.precision):
        parameters = starting_parameters(case.sizes)
        check_results = check_equivalence(case, parameters, implementations)
        for v in check_results:
            batch = v.case.removeprefix(f"{case.name}, ")
            error = f"error {v.max_rel_error:.1e}, bound {v.bound:.1e}"
            print(f"  {'ok ' if v.ok else 'BAD'} {v.op:14s} {v.backend:40s} {batch:8s} {error}")
        if not all(v.ok for v in check_results):
            print("  not timed: the implementations do not agree", file=sys.stderr)
            return check_results, []
        steppers = {c.name: c.setup(case, parameters) for c in implementations}
        return check_results, timed_rows(suite, case, implementations, steppers, device)


def timed_rows(
    suite: str,
    case: Case,
    implementations: Sequence[Implementation],
    steppers: Mapping[str, Stepper],
    device: torch.device,
) -> list[dict[str, Any]]:
    """Time the steppers of one case interleaved, then measure their memory; returns a row for each."""
    timed = {name: stepper.timed() for name, stepper in steppers.items()}
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    # A single step of a millisecond cannot be told from the latency of a synchronisation.
    at_least = 0.02 if device.type == "cuda" else 0.0
    # A step this long on a GPU is bound by Python, which a second warm-up does not speed up.
    warm_after = 0.2 if device.type == "cuda" else math.inf
    samples = time_interleaved(
        timed,
        warmup=case.warmup,
        rounds=case.rounds,
        synchronize=wait,
        at_least=at_least,
        warm_after=warm_after,
    )
    baselines = [b.name for b in (BASELINE, MENDED) if b.name in samples]
    rows = []
    for implementation in implementations:
        name, sample = implementation.name, samples[implementation.name]
        ratios = {b: paired_ratio(samples[b], sample) for b in baselines}
        speed_up = {b: r.as_dict() for b, r in ratios.items()}
        peers = {p: r.as_dict() for p, r in against_peers(implementation, samples).items()}
        held = memory(steppers[name], device)
        extra = {"speed_up": speed_up, "against_peers": peers, **held, **case.describe()}
        rows.append({"suite": suite, "case": case.name, "impl": name, **sample.as_dict(), "extra": extra})
        faster = f", times faster than {_sentence(ratios)}" if ratios else ""
        print(f"  {name:40s} {sample.median:9.1f} ms ({min(sample.ms):.1f} to {max(sample.ms):.1f}){faster}")
    return rows


def against_peers(implementation: Implementation, samples: Mapping[str, Samples]) -> dict[str, Ratio]:
    """Speed-ups of an implementation of this package over each peer that minimises the same loss."""
    if implementation not in EVERY_OURS:
        return {}
    like = [p.name for p in GPU_PEERS if p.elbo is implementation.elbo]
    like += [JAX_NAME] if implementation.elbo is Trace_ELBO else []
    return {p: paired_ratio(samples[p], samples[implementation.name]) for p in like if p in samples}


def _sentence(ratios: Mapping[str, Ratio]) -> str:
    return ", than ".join(
        f"{baseline}: {r.median:.2f} ({r.low:.2f} to {r.high:.2f})" for baseline, r in ratios.items()
    )


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write ``results`` to a new file named after suite, date and commit.

    Raises:
        FileExistsError: a file of that name exists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meta = results["meta"]
    stamp = "".join(c for c in meta["date"][:19] if c not in "-:")
    path = folder / f"{results['suite']}-{stamp}-{meta['commit']}.json"
    with path.open("x", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--suite", choices=sorted(SUITES), default="cpu")
    parser.add_argument("--out", default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the command")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    sys.exit(main())
