"""C++ code generated from the table of ops: parameter structs, schemas and bindings, in three files of csrc.

``cpu/ops.inc`` and ``cuda/ops.inc`` hold the parameter structs of the CPU kernels and of the launches of
scans, independent of any framework. ``ops.inc`` defines and registers the ops, with the checks of
``checks.h``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dmm_fast.ops.schema import signatures
from dmm_fast.ops.schema._cpp_bindings import bindings
from dmm_fast.ops.schema._cpp_structs import cpu_structs, cuda_structs

_COMMAND = "python -m dmm_fast.ops.schema --cpp"
_HEADER = f"// Written by `{_COMMAND}` from the table of ops: change that, not this file.\n"
_CSRC = Path(__file__).parents[3] / "csrc"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the schemas, or write the generated C++, or compare it (``--check``); return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dmm_fast.ops.schema", description=__doc__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--list", action="store_true", help="print the schema of every op")
    task.add_argument("--cpp", action="store_true", help="write the C++ of the table")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    given = parser.parse_args(arguments)
    if given.check and not given.cpp:
        parser.error("--check: expected --cpp beside it, got --list")
    if given.list:
        print(*(signature.schema for signature in signatures()), sep="\n")
        return 0
    if not _CSRC.is_dir():
        print(f"{_CSRC}: expected the C++ sources, which exist only in a checkout", file=sys.stderr)
        return 1
    stale = [path for path, text in files().items() if not path.is_file() or path.read_text() != text]
    if given.check and stale:
        names = ", ".join(str(path.relative_to(_CSRC.parent)) for path in stale)
        print(f"{names}: expected the code of the table of ops; run `{_COMMAND}`", file=sys.stderr)
        return 1
    for path in stale:
        path.write_text(files()[path])
    return 0


def files() -> dict[Path, str]:
    """The text of each generated file."""
    made = {"cpu/ops.inc": cpu_structs(), "cuda/ops.inc": cuda_structs(), "ops.inc": bindings()}
    return {_CSRC / name: "\n".join((_HEADER, *parts)) for name, parts in made.items()}
