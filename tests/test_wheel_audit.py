"""The audit of wheels finds a wrong name, missing and foreign files, and libraries that run only here."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests import wheel_audit

MODULES = {"dmm_fast/__init__.py", "dmm_fast/ops/__init__.py"}
CONTENTS = {*MODULES, "dmm_fast/py.typed", "dmm_fast/_C.abi3.so", "dmm_fast-0.1.0.dist-info/licenses/LICENSE"}
NAME = "dmm_fast-0.1.0-cp310-abi3-manylinux_2_{}_x86_64.whl"


@pytest.fixture
def library(tmp_path: Path) -> bytes:
    """A library with a run path, foreign needs, a path of this machine, and a function of glibc 2.34."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc")
    source = tmp_path / "planted.c"
    source.write_text(
        "#include <pthread.h>\nextern int _ZN2at4sizeEv(void), own(void);\nconst char *path = __FILE__;\n"
        "int f(pthread_t t) { return _ZN2at4sizeEv() + own() + pthread_join(t, 0); }\n"
    )
    subprocess.run(
        [compiler, "-shared", "-o", "libown.so", "-xc", "-"], input=b"int own;", cwd=tmp_path, check=True
    )
    flags = ["-shared", "-fPIC", "-Wl,-rpath,/opt/own", "-o", "planted.so"]
    subprocess.run([compiler, *flags, source, "libown.so", "-lpthread"], cwd=tmp_path, check=True)
    return (tmp_path / "planted.so").read_bytes()


def test_faults_of_a_library_are_found(library: bytes, tmp_path: Path) -> None:
    assert wheel_audit.faults_of_library(library) == [
        "needs libown.so, which no wheel may expect",
        "has the run path '/opt/own'",
        "imports _ZN2at4sizeEv, which is in no stable ABI",
        f"holds the path {tmp_path / 'planted.c'}",
    ]


def test_contents_of_a_wheel_are_the_package_alone() -> None:
    assert wheel_audit.faults_of_contents(CONTENTS, MODULES) == []
    planted = {"tests/conftest.py", "dmm_fast/_pure", "dmm_fast.libs/libown.so"}
    less = {"dmm_fast/ops/__init__.py", "dmm_fast/py.typed", "dmm_fast-0.1.0.dist-info/licenses/LICENSE"}
    assert wheel_audit.faults_of_contents(CONTENTS - less | planted, MODULES) == [
        *(f"lacks {name}" for name in ("dmm_fast/ops/__init__.py", "dmm_fast/py.typed")),
        *(f"holds {name}" for name in sorted(planted)),
        "lacks LICENSE",
    ]


@pytest.mark.parametrize(
    "name", ["dmm_fast-0.1.0-cp311-cp311-linux_x86_64.whl", "other-0.1.0-py3-none-any.whl"]
)
def test_a_wheel_for_one_python_is_refused(name: str) -> None:
    (fault,) = wheel_audit.audit(Path(name))
    assert fault.startswith("expected a name as in ")


def test_a_tag_of_an_older_glibc_is_refused(
    library: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wheel_audit.main([]) == 1
    if wheel_audit.read_library(library).versions["GLIBC"] < (2, 34):
        pytest.skip("a glibc before 2.34, in which threads joined the C library")
    for glibc, refused in ((28, True), (34, False)):
        wheel = tmp_path / NAME.format(glibc)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("dmm_fast/_C.abi3.so", library)
        assert wheel_audit.main([str(wheel)]) == 1
        printed = capsys.readouterr()
        assert "newest symbol versions: GLIBC 2.34" in printed.out
        assert ("needs a newer glibc than its tag says" in printed.err) is refused
