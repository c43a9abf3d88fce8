"""Builds the compiled library, one file for every torch from 2.10 on; the rest is in pyproject.toml.

The library is optional: without a C++ compiler, or with one that fails, the package installs all the
same and ``dmm_fast.info()`` says what is missing. Its ops go through LibTorch's stable ABI, so it needs
torch's headers to build and no particular torch to run.
"""

import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SOURCES = sorted(str(p.relative_to(HERE)) for p in (HERE / "csrc").rglob("*.cpp"))
# The oldest torch whose stable ABI is enough, as the macro wants it: 2.10.
TARGET_TORCH = "0x020a000000000000"


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
            depends=[str(p.relative_to(HERE)) for p in (HERE / "csrc").rglob("*.h")],
            py_limited_api=True,
            optional=True,
        )
    ]


class ParallelBuild(build_ext):
    """Compiles the files of an extension at the same time; setuptools takes them in turn."""

    def build_extension(self, ext: Extension) -> None:
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor() as pool:
                jobs = [pool.submit(compile_all, [source], **options) for source in sources]
                return [obj for job in jobs for obj in job.result()]

        self.compiler.compile = compile_each
        super().build_extension(ext)


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": ParallelBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
