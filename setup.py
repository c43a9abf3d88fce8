"""Builds the compiled library, one file for every torch from 2.10 on; the rest is in pyproject.toml.

The library is optional: without a C++ compiler, or with one that fails, the package installs all the
same and ``dmm_fast.info()`` says what is missing. Its ops go through LibTorch's stable ABI, so it needs
torch's headers to build and no particular torch to run.

CUDA kernels are built where there is an nvcc: no GPU is needed for it, and no CUDA build of torch.

    CUDA_HOME             the toolkit; else the one the nvcc on PATH belongs to
    DMM_FAST_CUDA         0: no CUDA kernels; 1: fail without them
    TORCH_CUDA_ARCH_LIST  architectures, "8.0 9.0+PTX" unless set
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SOURCES = sorted(str(p.relative_to(HERE)) for d in (".", "cpu") for p in (HERE / "csrc" / d).glob("*.cpp"))
CUDA_SOURCES = sorted(p.relative_to(HERE) for p in (HERE / "csrc" / "cuda").glob("*.cu"))
NVCC_FLAGS = ["-O3", "-std=c++17", "-Icsrc"]
# The oldest torch whose stable ABI is enough, as the macro wants it: 2.10.
TARGET_TORCH = "0x020a000000000000"


def toolkit() -> Path | None:
    """The CUDA toolkit to build with, or None where there is none or it is not wanted."""
    if os.environ.get("DMM_FAST_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME") or _home_of(shutil.which("nvcc"))
    return Path(home) if home and (Path(home) / "bin" / "nvcc").is_file() else None


def _home_of(nvcc: str | None) -> str | None:
    """The toolkit an nvcc belongs to. It may be a script that calls another one, so it is asked."""
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    here = re.search(r"^#\$ _HERE_=(.*)$", said.stderr, re.MULTILINE)
    return str(Path(here[1].strip()).parent) if here else None


def architectures() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST names, as nvcc wants it."""
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


def extensions() -> list[Extension]:
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:
        print("dmm_fast: torch is not installed, so the C++ library is not built", file=sys.stderr)
        return []
    return [
        Extension(
            "dmm_fast._C",
            SOURCES,
            include_dirs=["csrc", *include_paths()],
            library_dirs=library_paths(),
            libraries=["c10", "torch", "torch_cpu"],
            define_macros=[
                ("Py_LIMITED_API", "0x030a0000"),
                ("TORCH_TARGET_VERSION", TARGET_TORCH),
            ],
            # What the environment asks for has the last word.
            extra_compile_args=[
                *("-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wall"),
                *shlex.split(os.environ.get("CXXFLAGS", "")),
            ],
            depends=[str(p.relative_to(HERE)) for p in (HERE / "csrc").rglob("*.[hc]*")],
            py_limited_api=True,
            optional=True,
        )
    ]


class Build(build_ext):
    """Compiles the files of the extension at the same time, those for the GPU with nvcc."""

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
        """Compile the kernels and have the extension linked with them; without them it is whole too."""
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
        flags = [*NVCC_FLAGS, "-Xcompiler", "-fPIC,-fvisibility=hidden", *architectures()]
        command = [str(home / "bin" / "nvcc"), *flags, "-c", str(source), "-o", str(target)]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True, cwd=HERE)
        return str(target)


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
