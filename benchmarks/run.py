"""``python -m benchmarks.run --suite cpu``: check, time in turn, print, and write one JSON file."""

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
from benchmarks.contestants import (
    BASELINE,
    CONTESTANTS,
    EVERY_OURS,
    GPU_PEERS,
    IN_STEPS,
    MENDED,
    OURS,
    jax_peers,
    starting_parameters,
)
from benchmarks.correctness import Verdict
from benchmarks.draws import Sizes
from benchmarks.gate import gate
from benchmarks.memory import memory
from benchmarks.precision import multiplied_in
from benchmarks.racer import JAX_NAME, Contestant, Racer
from benchmarks.suites import SUITES
from benchmarks.timing import Ratio, Samples, load_average, load_warning, paired_ratio, time_in_turn

RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite. Returns 0, or 1 when a contestant or an op was not within its bound."""
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
        print(f"JAX is left out: {why_not}")
    ours = [c for c in CONTESTANTS if c in OURS]
    everyone = [*(c for c in CONTESTANTS if c not in ours), *jax, *ours]
    results |= measure_errors(suite.errors_of, device, errors.QUICK if args.quick else Sizes())
    results["not_run"] = []
    for case in to_run:
        asked_for = [c for c in (IN_STEPS,) if c.name in (case.contestants or ())]
        verdicts, rows = run_case(args.suite, case, taking_part(case, [*everyone, *asked_for]), device)
        results["correctness"] += [v.as_dict() for v in verdicts]
        results["cases"] += rows
        results["not_run"] += [{"case": case.name, "impl": n, "why": w} for n, w in case.not_run.items()]
    meta["load_at_end"] = load_average()
    written = write(results, Path(args.out))
    print(f"\nwritten: {written}")
    return 0 if all(row["ok"] for row in results["correctness"] + results.get("errors", [])) else 1


def measure_errors(backends: Sequence[str], device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """``errors`` and what they are about; nothing where a backend computes no op in this build."""
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


def taking_part(case: Case, contestants: Sequence[Contestant]) -> list[Contestant]:
    """Those that ``case`` asks for, in their own order.

    Raises:
        ValueError: ``case`` names one that is not among ``contestants``.
    """
    known = [c.name for c in contestants]
    wanted = known if case.contestants is None else case.contestants
    strangers = {*wanted, *case.not_run} - set(known)
    if strangers:
        raise ValueError(f"contestants: expected some of {known}, got {sorted(strangers)}")
    return [c for c in contestants if c.name in wanted and c.name not in case.not_run]


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Compute with ``number`` threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_case(
    suite: str, case: Case, contestants: Sequence[Contestant], device: torch.device
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Gate, clock and rows of one case. Nothing is timed when a contestant disagrees."""
    print(f"\n{case.name} ({case.data})")
    with threads(case.threads), multiplied_in(case.precision):
        parameters = starting_parameters(case.sizes)
        verdicts = gate(case, parameters, contestants)
        for v in verdicts:
            batch = v.case.removeprefix(f"{case.name}, ")
            error = f"error {v.max_rel_error:.1e}, bound {v.bound:.1e}"
            print(f"  {'ok ' if v.ok else 'BAD'} {v.op:14s} {v.backend:40s} {batch:8s} {error}")
        if not all(v.ok for v in verdicts):
            print("  not timed: the sides do not compute the same", file=sys.stderr)
            return verdicts, []
        racers = {c.name: c.setup(case, parameters) for c in contestants}
        return verdicts, clocked(suite, case, contestants, racers, device)


def clocked(
    suite: str,
    case: Case,
    contestants: Sequence[Contestant],
    racers: Mapping[str, Racer],
    device: torch.device,
) -> list[dict[str, Any]]:
    """The rows of one case: time in turn, then memory."""
    timed = {name: racer.timed() for name, racer in racers.items()}
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    # A step of a millisecond is not told from the time to wait for it unless there are several.
    at_least = 0.02 if device.type == "cuda" else 0.0
    # A step that takes so long on a GPU is Python's, which a second warm-up makes no faster.
    warm_after = 0.2 if device.type == "cuda" else math.inf
    samples = time_in_turn(
        timed,
        warmup=case.warmup,
        rounds=case.rounds,
        synchronize=wait,
        at_least=at_least,
        warm_after=warm_after,
    )
    baselines = [b.name for b in (BASELINE, MENDED) if b.name in samples]
    rows = []
    for contestant in contestants:
        name, sample = contestant.name, samples[contestant.name]
        ratios = {b: paired_ratio(samples[b], sample) for b in baselines}
        speed_up = {b: r.as_dict() for b, r in ratios.items()}
        peers = {p: r.as_dict() for p, r in against_peers(contestant, samples).items()}
        held = memory(racers[name], device)
        extra = {"speed_up": speed_up, "against_peers": peers, **held, **case.describe()}
        rows.append({"suite": suite, "case": case.name, "impl": name, **sample.as_dict(), "extra": extra})
        faster = f", times faster than {_sentence(ratios)}" if ratios else ""
        print(f"  {name:40s} {sample.median:9.1f} ms ({min(sample.ms):.1f} to {max(sample.ms):.1f}){faster}")
    return rows


def against_peers(contestant: Contestant, samples: Mapping[str, Samples]) -> dict[str, Ratio]:
    """How many times faster one of ours is than each peer that minimises the same loss."""
    if contestant not in EVERY_OURS:
        return {}
    like = [p.name for p in GPU_PEERS if p.elbo is contestant.elbo]
    like += [JAX_NAME] if contestant.elbo is Trace_ELBO else []
    return {p: paired_ratio(samples[p], samples[contestant.name]) for p in like if p in samples}


def _sentence(ratios: Mapping[str, Ratio]) -> str:
    return ", than ".join(
        f"{baseline}: {r.median:.2f} ({r.low:.2f} to {r.high:.2f})" for baseline, r in ratios.items()
    )


def write(results: dict[str, Any], folder: Path) -> Path:
    """Write ``results`` to a new file named after suite, date and commit; never over an old one.

    Raises:
        FileExistsError: a file of that name is there already.
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
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the machinery")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    sys.exit(main())
