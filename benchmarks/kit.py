"""``python -m benchmarks.kit``: a folder with everything a GPU run needs besides a CUDA build of torch.

It is meant for machines without access to a package index. It has the package with its compiled library,
benchmarks and tests, the library of the exchange floor, which is built first, Pyro, the chorales, the hash of
the commit, ``run.sh``, and further data sets for ``run.sh quality`` in the folder ``sets``.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackagePath, distribution
from pathlib import Path

import dmm_fast
from benchmarks import ROOT, exchange_floor, machine
from benchmarks.cases import data_file
from dmm_fast.data import load, save_npz

OUT = ROOT / "build" / "gpu-kit"
FOLDERS = ("dmm_fast", "benchmarks", "tests")
# Pyro and what it imports beside torch and numpy.
PACKAGES = ("pyro-ppl", "pyro-api", "opt_einsum", "safetensors", "tqdm")
UNNEEDED = shutil.ignore_patterns("__pycache__", "results", ".*")
# Upload limits of GPU machines are often about this size.
MOST_BYTES = 60_000_000
RUN = """\
#!/bin/sh
# sh run.sh first DIR [more options of python -m benchmarks.gpu, absolute paths]: a preset, results in DIR.
# sh run.sh quality DIR [options of python -m benchmarks.quality]: models trained on all data sets of the kit.
set -eu
preset=${1:?usage: sh run.sh first|second|quality DIR [options]}
: "${2:?usage: sh run.sh first|second|quality DIR [options]}"
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
cd "$(dirname "$0")"
PYTHONPATH="$PWD/packages${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
if [ "$preset" = quality ]; then
  for data in *.npz sets/*.npz; do
    [ -f "$data" ] && set -- --data "$data" "$@"
  done
  exec "${PYTHON:-python3}" -m benchmarks.quality --cuda --out "$out" --work "$out/work" "$@"
fi
for chorales in *.npz; do
  [ -f "$chorales" ] && set -- --data "$chorales" "$@"
done
exec "${PYTHON:-python3}" -m benchmarks.gpu --preset "$preset" --out "$out" --commit "$(cat COMMIT)" "$@"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the folder, replacing an old one. Returns 0, or 1 if it is too large."""
    parser = _parser()
    args = parser.parse_args(argv)
    out, missing = Path(args.out), dmm_fast.info()["missing"].get("cuda")
    if missing:
        parser.error(f"the library: expected one with CUDA kernels, got none: {missing}")
    if out.exists() and not (out / "COMMIT").is_file():
        parser.error(f"--out: expected no folder or an old kit, got {out}")
    try:
        data = data_file(args.data)
        sequences = data and load(data)
    except (OSError, ValueError) as error:
        parser.error(f"--data: {error}")
    try:
        sets = {path.stem: load(path) for path in args.sets}
    except (OSError, ValueError) as error:
        parser.error(f"--sets: {error}")
    if why := exchange_floor.ensure():
        print(f"The kit will not measure the floors of the scans' exchanges: {why}.", file=sys.stderr)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "COMMIT").write_text(f"{machine.commit()}\n", encoding="utf-8")
    (out / "run.sh").write_text(RUN, encoding="utf-8")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, out / folder, ignore=UNNEEDED)
    (out / "tests" / "__init__.py").touch()  # takes precedence over other packages of that name
    shutil.copy(ROOT / "pyproject.toml", out)
    for source, name in packages():
        (out / "packages" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / "packages" / name)
    if data and sequences:
        save_npz(sequences, out / f"{data.stem}.npz")
    for name, each in sets.items():
        (out / "sets").mkdir(exist_ok=True)
        save_npz(each, out / "sets" / f"{name}.npz")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    chorales = data.name if data else "the built-in ones: JSB_Chorales.mat was not found, see --data"
    print(f"{out}: {size / 1e6:.1f} MB, commit {machine.commit()}, chorales: {chorales}")
    print(f"on the machine with the GPU: sh {out.name}/run.sh first DIR")
    if size > MOST_BYTES:
        print(f"kit: expected at most {MOST_BYTES} bytes, got {size}", file=sys.stderr)
        return 1
    return 0


def packages() -> Iterator[tuple[Path, PackagePath]]:
    """The files of the installed packages in the kit, with their relative paths."""
    for name in PACKAGES:
        found: Distribution = distribution(name)
        for path in found.files or ():
            if path.suffix != ".pyc" and ".." not in path.parts:
                yield Path(str(found.locate_file(path))), path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kit", description=__doc__)
    parser.add_argument("--out", default=OUT, help="the folder; an old kit is replaced")
    parser.add_argument("--data", help="a file of chorales, or a folder holding JSB_Chorales.mat")
    parser.add_argument(
        "--sets", type=Path, nargs="+", default=[], help="further data files, for run.sh quality"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
