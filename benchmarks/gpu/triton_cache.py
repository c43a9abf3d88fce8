"""Triton's cache of compiled kernels: the same names for them in every process, and an archive of it.

Nothing here imports torch until it is asked for names.
"""

import importlib
import json
import pkgutil
import shutil
import tarfile
from pathlib import Path

ARCHIVE = "triton-cache.tar.xz"
# Stages of the compiler, which no launch needs. Metadata stay, and launchers, which triton 3.6 compiles.
UNUSED = {".source", ".ttir", ".ttgir", ".llir", ".ptx"}
GROUP = "__grp__*.json"


def same_names() -> None:
    """Have Triton name the kernels of :mod:`dmm_fast` alike in every process that begins with this call.

    A name is made of the source of a kernel and of the functions that it calls, and of their constants.
    Triton 3.6 leaves out the constants of a function that it has not named before: what a process launches
    first would decide whether it finds the kernels of another one or compiles them again.
    """
    from dmm_fast import triton

    if triton.missing is not None or triton.INTERPRETED:
        return
    from triton.runtime.jit import JITFunction

    for found in pkgutil.iter_modules(triton.__path__, f"{triton.__name__}."):
        for function in vars(importlib.import_module(found.name)).values():
            if isinstance(function, JITFunction):
                _ = function.cache_key  # it is made by the first look at it


def pack(cache: Path, archive: Path) -> None:
    """Write what launches need of a cache: a folder for each kernel or launcher.

    By a fifth larger than with xz's own preset, and ten times as fast.
    """
    with tarfile.open(archive, "w:xz", preset=1) as file:
        for path in sorted(cache.glob("*/*")):
            if path.is_file() and path.suffix not in UNUSED:
                file.add(path, path.relative_to(cache))


def unpack(archive: str | Path, cache: Path) -> None:
    """Read an archive into an empty cache.

    Triton lists the files of a kernel with their whole paths, and finds the kernel where all of them are
    there: the lists are written again, with those that there are. A list that cannot be read is left out,
    and its kernel compiled again.
    """
    shutil.unpack_archive(archive, cache, filter="data")  # nothing outside the folder, and no devices
    for group in cache.glob(f"*/{GROUP}"):
        try:
            names = [Path(name).name for name in json.loads(group.read_text(encoding="utf-8"))["child_paths"]]
        except (ValueError, KeyError, TypeError):
            group.unlink()
            continue
        there = {name: str(group.parent / name) for name in names if (group.parent / name).is_file()}
        group.write_text(json.dumps({"child_paths": there}), encoding="utf-8")
