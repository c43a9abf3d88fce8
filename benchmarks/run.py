"""``python -m benchmarks.run --suite cpu``: check, time in turn, print, and write one JSON file."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks import cases, machine
from benchmarks.cases import Case
from benchmarks.contestants import BASELINE, CONTESTANTS, LEFT_OUT, MENDED, OURS, PEERS
from benchmarks.correctness import Verdict, check
from benchmarks.pyro_racer import PyroRacer
from benchmarks.racer import Contestant
from benchmarks.timing import Ratio, Samples, load_average, load_warning, paired_ratio, time_in_turn

RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite. Returns 0, or 1 when a contestant did not agree with the baseline."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    meta = machine.meta(device, quick=args.quick)
    meta["load_warning"] = load_warning(meta["load"], meta["threads"], meta["cpus"])
    if meta["load_warning"]:
        print(f"warning: {meta['load_warning']}", file=sys.stderr)
    for line in LEFT_OUT:
        print(line)
    results: dict[str, Any] = {
        "suite": args.suite,
        "meta": meta,
        "correctness": [],
        "cases": [],
    }
    path = None if args.data is None else Path(args.data)
    for case in cases.SUITES[args.suite](cases.data_file(path), args.quick):
        verdicts, rows = run_case(args.suite, case, CONTESTANTS, device)
        results["correctness"] += [v.as_dict() for v in verdicts]
        results["cases"] += rows
    meta["load_at_end"] = load_average()
    written = write(results, Path(args.out))
    print(f"\nwritten: {written}")
    return 0 if all(v["ok"] for v in results["correctness"]) else 1


def run_case(
    suite: str, case: Case, contestants: Sequence[Contestant], device: torch.device
) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Gate, clock and rows of one case. Nothing is timed when a contestant disagrees."""
    print(f"\n{case.name} ({case.data})")
    pyro.set_rng_seed(0)
    parameters = BASELINE.module(case.sizes).state_dict()
    verdicts = check(case, parameters, contestants)
    for v in verdicts:
        mark = "ok " if v.ok else "BAD"
        batch = v.case.rpartition(", ")[2]
        error = f"error {v.max_rel_error:.1e}, bound {v.bound:.1e}"
        print(f"  {mark} {v.op:14s} {v.backend:30s} {batch:8s} {error}")
    if not all(v.ok for v in verdicts):
        print("  not timed: the sides do not compute the same", file=sys.stderr)
        return verdicts, []
    racers = {c.name: c.setup(case, parameters) for c in contestants}
    in_pyro = {name: racer for name, racer in racers.items() if isinstance(racer, PyroRacer)}
    held = {name: machine.memory(racer, device) for name, racer in in_pyro.items()}
    samples = time_in_turn(
        {name: racer.timed() for name, racer in racers.items()},
        warmup=case.warmup,
        rounds=case.rounds,
    )
    rows = []
    for contestant in contestants:
        name, sample = contestant.name, samples[contestant.name]
        ratios = {b.name: paired_ratio(samples[b.name], sample) for b in (BASELINE, MENDED)}
        speed_up = {b: r.as_dict() for b, r in ratios.items()}
        peers = {p: r.as_dict() for p, r in against_peers(contestant, samples).items()}
        extra = {"speed_up": speed_up, "against_peers": peers, **held.get(name, {}), **case.describe()}
        rows.append({"suite": suite, "case": case.name, "impl": name, **sample.as_dict(), "extra": extra})
        print(
            f"  {name:30s} {sample.median:9.1f} ms ({min(sample.ms):.1f} to {max(sample.ms):.1f}), "
            f"times faster than {_sentence(ratios)}"
        )
    return verdicts, rows


def against_peers(contestant: Contestant, samples: Mapping[str, Samples]) -> dict[str, Ratio]:
    """How many times faster one of ours is than each peer that minimises the same loss."""
    if contestant not in OURS:
        return {}
    like = [p.name for p in PEERS if p.name in samples and p.elbo is contestant.elbo]
    return {peer: paired_ratio(samples[peer], samples[contestant.name]) for peer in like}


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
    parser.add_argument("--suite", choices=sorted(cases.SUITES), default="cpu")
    parser.add_argument("--out", default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the machinery")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


if __name__ == "__main__":
    sys.exit(main())
