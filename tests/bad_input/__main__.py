"""``python -m tests.bad_input --tries 20000``: find raw errors and print one of each kind by function."""

import argparse
import os
import tempfile
import time
import warnings
from collections import defaultdict

import pyro
import torch

from tests.bad_input.arguments import files
from tests.bad_input.calls import public_calls
from tests.bad_input.tries import Finding, bounds, find


def main() -> None:
    """Make the calls and print the faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.bad_input")
    parser.add_argument("--tries", type=int, default=20000, help="calls in all")
    parser.add_argument("--only", default=[""], nargs="*", help="functions whose names begin so")
    parser.add_argument("--times", action="store_true", help="also print what each function takes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(True)
    warnings.simplefilter("ignore")
    calls, uncovered = public_calls()
    chosen = [call for call in calls if call.name.startswith(tuple(args.only))]
    found: dict[str, list[Finding]] = defaultdict(list)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, bounds():
        os.chdir(folder)
        files()
        for call in chosen:
            before = time.perf_counter()
            for finding in find(call, args.tries // len(chosen)):
                found[finding.key].append(finding)
            if args.times:
                print(f"{time.perf_counter() - before:8.2f} s {call.name}")
        os.chdir("/")
    for key, findings in sorted(found.items()):
        print(f"{key}  [{len(findings)}]")
        for kind, finding in sorted({f.fault.kind: f for f in reversed(findings)}.items()):
            fault = finding.fault
            print(f"    {finding.how}: {kind}: {fault.message} ({fault.place})")
    total = sum(len(findings) for findings in found.values())
    print(f"{len(chosen)} functions, {args.tries} tries, {total} faults of {len(found)} kinds, "
          f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    for name in uncovered:
        print(f"not covered: {name}")


if __name__ == "__main__":
    main()
