"""Builds the compiled library, one file for every torch from 2.10 on; the rest is in pyproject.toml.

The ops use LibTorch's stable ABI, so the build needs torch's headers, but the library runs with any torch
from 2.10 on. The headers are those of the installed torch, which an isolated build does not see: use
``pip install --no-build-isolation .``. pyproject.toml does not list torch as a build requirement, because pip
would then download the newest CUDA build, several gigabytes, for a few headers. Without torch or a working
C++ compiler the build stops with an error; it never leaves the library out by itself.

CUDA kernels are built if an nvcc is found; neither a GPU nor a CUDA build of torch is needed.

    DMM_FAST_PURE         1: install without the library; every op is computed in eager PyTorch or Triton
    CUDA_HOME             the CUDA toolkit; by default that of the nvcc on PATH
    DMM_FAST_CUDA         0: build no CUDA kernels; 1: fail if they cannot be built
    TORCH_CUDA_ARCH_LIST  architectures, "8.0 9.0+PTX" unless set
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import setuptools
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info
from setuptools.errors import BaseError, CCompilerError

HERE = Path(__file__).parent
SOURCES = sorted(str(p.relative_to(HERE)) for d in (".", "cpu") for p in (HERE / "csrc" / d).glob("*.cpp"))
CUDA_SOURCES = sorted(p.relative_to(HERE) for p in (HERE / "csrc" / "cuda").glob("*.cu"))
NVCC_FLAGS = ["-O3", "-std=c++17", "-Icsrc", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
TORCH_LIBRARIES = ["c10", "torch", "torch_cpu"]
OLDEST_SETUPTOOLS = 77
# The oldest torch whose stable ABI suffices, 2.10, in the form of the macro.
TARGET_TORCH = "0x020a000000000000"
# The oldest Python whose limited API suffices, 3.10, in the forms of the macro and of the wheel's tag.
TARGET_PYTHON = ("0x030a0000", "cp310")
# Marks an installed package whose library was left out on purpose; dmm_fast/_extension.py looks for it.
PURE_MARKER = "_pure"
WITHOUT = "to install without these ops, many times slower, run `DMM_FAST_PURE=1 pip install .`"


def is_pure() -> bool:
    """True if the package is to be installed without the library."""
    wanted = os.environ.get("DMM_FAST_PURE") or "0"
    if wanted not in ("0", "1"):
        sys.exit(f"DMM_FAST_PURE: expected 0 or 1, got {wanted!r}")
    return wanted == "1"


def has_limited_api() -> bool:
    """True if Python has the limited API, so that one library serves all later versions.

    Free-threaded builds of Python have none.
    """
    return not sysconfig.get_config_var("Py_GIL_DISABLED")


def toolkit() -> Path | None:
    """The CUDA toolkit to build with; None if there is none or CUDA kernels are disabled."""
    if os.environ.get("DMM_FAST_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME") or _home_of(shutil.which("nvcc"))
    return Path(home) if home and (Path(home) / "bin" / "nvcc").is_file() else None


def _home_of(nvcc: str | None) -> str | None:
    """The toolkit that an nvcc belongs to, by its own output, since it may be a script that calls another."""
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    here = re.search(r"^#\$ _HERE_=(.*)$", said.stderr, re.MULTILINE)
    return str(Path(here[1].strip()).parent) if here else None


def architectures() -> list[str]:
    """The flags of nvcc for the architectures in TORCH_CUDA_ARCH_LIST."""
    flags = []
    for name in re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or "8.0 9.0+PTX"):
        known = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if not known:
            sys.exit(f"TORCH_CUDA_ARCH_LIST: expected numbers as in '8.0 9.0+PTX', got {name!r}")
        number = known[1] + known[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if known[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def nvcc(home: Path) -> list[str]:
    """The command that compiles for all architectures, without its file arguments."""
    return [str(home / "bin" / "nvcc"), *NVCC_FLAGS, *architectures()]


def settings() -> dict[str, Any]:
    """Arguments for setuptools in addition to pyproject.toml.

    They do not need torch, so that a source distribution can be made without it.
    """
    # Without isolation pip ignores the build requirements, and older setuptools fail to read pyproject.toml.
    if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
        wanted = f"setuptools>={OLDEST_SETUPTOOLS}"
        sys.exit(
            f"dmm_fast: expected {wanted}, got {setuptools.__version__}: run `pip install '{wanted}'` first"
        )
    if is_pure():
        return {"cmdclass": {"build_py": PurePython}}
    return {
        "cmdclass": {"dist_info": Metadata, "build": Build, "build_ext": BuildLibrary},
        "ext_modules": [library()],
        "options": {"bdist_wheel": {"py_limited_api": TARGET_PYTHON[1]}} if has_limited_api() else {},
    }


def library() -> Extension:
    """The extension module of the library, to which torch and nvcc add paths and objects during the build."""
    limited = [("Py_LIMITED_API", TARGET_PYTHON[0])] if has_limited_api() else []
    return Extension(
        "dmm_fast._C",
        SOURCES,
        include_dirs=["csrc"],
        libraries=TORCH_LIBRARIES.copy(),
        define_macros=[*limited, ("TORCH_TARGET_VERSION", TARGET_TORCH)],
        # The environment's flags come last and take precedence.
        extra_compile_args=[
            *("-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wall"),
            *shlex.split(os.environ.get("CXXFLAGS", "")),
        ],
        depends=[str(p.relative_to(HERE)) for p in (HERE / "csrc").rglob("*.[hci]*")],
        py_limited_api=has_limited_api(),
    )


def torch_paths() -> tuple[list[str], list[str]]:
    """The folders of torch's headers and libraries. The build stops if torch is not installed."""
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError as error:
        sys.exit(
            f"dmm_fast: the C++ ops need torch to build ({error}): install torch first, then run "
            f"`pip install --no-build-isolation .`; {WITHOUT}"
        )
    return include_paths(), library_paths()


class Metadata(dist_info):
    """Checks for torch before the metadata is written, since pip then starts to download the requirements."""

    def run(self) -> None:
        torch_paths()
        super().run()


class Build(build):
    """Compiles before it copies files, so that an error is not buried in a long list of copied files."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")


class PurePython(build_py):
    """Copies the package and adds the marker of a library that was left out on purpose."""

    def run(self) -> None:
        super().run()
        folder = HERE if self.editable_mode else Path(self.build_lib)
        (folder / "dmm_fast" / PURE_MARKER).touch()


class BuildLibrary(build_ext):
    """Compiles the files of the extension in parallel, the CUDA sources with nvcc."""

    def run(self) -> None:
        include_dirs, library_dirs = torch_paths()
        for extension in self.extensions:
            extension.include_dirs += include_dirs
            extension.library_dirs += library_dirs
            # Errors of torch's headers quote __FILE__, here without the folder of the machine that builds.
            extension.extra_compile_args += [f"-ffile-prefix-map={folder}/=" for folder in include_dirs]
        try:
            super().run()
        except (CCompilerError, BaseError) as error:
            sys.exit(
                f"dmm_fast: the C++ ops do not compile ({error}): install a C++ compiler, such as g++, or "
                f"fix the errors that it reports above; {WITHOUT}"
            )
        if self.inplace:
            (HERE / "dmm_fast" / PURE_MARKER).unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._add_cuda(ext, pool)
            compile_all = self.compiler.compile

            def compile_each(sources: list[str], **options: object) -> list[str]:
                jobs = [pool.submit(compile_all, [source], **options) for source in sources]
                return [obj for job in jobs for obj in job.result()]

            self.compiler.compile = compile_each
            super().build_extension(ext)

    def _add_cuda(self, ext: Extension, pool: ThreadPoolExecutor) -> None:
        """Compile the CUDA kernels and link the extension with them; they are optional."""
        must = os.environ.get("DMM_FAST_CUDA") == "1"
        home = toolkit()
        if home is None:
            if must:
                sys.exit("DMM_FAST_CUDA=1: expected an nvcc in CUDA_HOME or on PATH, got none")
            return
        jobs = [pool.submit(self._compile_cuda, home, source) for source in CUDA_SOURCES]
        try:
            objects = [job.result() for job in jobs]
        except subprocess.CalledProcessError as error:
            if must:
                sys.exit(f"DMM_FAST_CUDA=1: {error}")
            print(f"dmm_fast: built without CUDA kernels: {error}", file=sys.stderr)
            return
        names = [flag.rpartition("code=")[2] for flag in architectures()]
        ext.define_macros.append(("DMM_FAST_CUDA", f'"{" ".join(names)}"'))
        ext.extra_objects += objects
        ext.library_dirs.append(str(home / "lib64"))
        ext.libraries += ["cudart_static", "rt", "pthread", "dl"]

    def _compile_cuda(self, home: Path, source: Path) -> str:
        target = Path(self.build_temp) / source.with_suffix(".cu.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [*nvcc(home), "-c", str(source), "-o", str(target)]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True, cwd=HERE)
        return str(target)


if __name__ == "__main__":
    setup(**settings())
