"""The generated C++ files match the table of ops."""

from dataclasses import replace
from pathlib import Path

import pytest

from dmm_fast.ops import schema
from dmm_fast.ops.schema import OPS, _cpp

pytestmark = pytest.mark.skipif(not _cpp._CSRC.is_dir(), reason="the C++ sources are not here")


def test_the_committed_files_match_the_table() -> None:
    assert _cpp.main(["--cpp", "--check"]) == 0


# Changes of a row, and the generated files that they affect.
CHANGES = {
    "a wider result": ({"outputs": {"h": "PBTHH"}}, {"cpu/ops.inc", "ops.inc"}),
    "another input": ({"inputs": {**OPS["rnn_scan"].inputs, "b": "H"}}, {"cpu/ops.inc", "ops.inc"}),
    "another leading argument": ({"leading": "h_0"}, {"cpu/ops.inc", "ops.inc"}),
    "another choice": (
        {"inputs": {**OPS["rnn_scan"].inputs, "nonlinearity": "choice:relu|gelu"}},
        {"cpu/ops.inc", "ops.inc"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_changes_the_files(
    change: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields, expected = CHANGES[change]
    before = _cpp.files()
    monkeypatch.setitem(OPS, "rnn_scan", replace(OPS["rnn_scan"], **fields))
    after = _cpp.files()
    changed = {str(path.relative_to(_cpp._CSRC)) for path in after if after[path] != before[path]}
    assert changed == expected
    assert _cpp.main(["--cpp", "--check"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(", ".join(f"csrc/{name}" for name in sorted(expected)))
    assert message.endswith("run `python -m dmm_fast.ops.schema --cpp`\n")


def test_files_that_differ_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_cpp, "_CSRC", tmp_path / "csrc")
    assert _cpp.main(["--cpp"]) == 1
    assert "expected the C++ sources" in capsys.readouterr().err
    for folder in ("cpu", "cuda"):
        (tmp_path / "csrc" / folder).mkdir(parents=True)
    assert _cpp.main(["--cpp"]) == 0
    assert _cpp.main(["--cpp", "--check"]) == 0
    (tmp_path / "csrc" / "ops.inc").write_text("// stale\n")
    assert _cpp.main(["--cpp", "--check"]) == 1
    assert capsys.readouterr().err.startswith("csrc/ops.inc: expected the code of the table of ops")


def test_a_check_of_the_list_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _cpp.main(["--list", "--check"])
    assert "--check: expected --cpp beside it" in capsys.readouterr().err


def test_every_op_of_the_table_is_defined() -> None:
    text = next(text for path, text in _cpp.files().items() if path == _cpp._CSRC / "ops.inc")
    defined = text.partition("STABLE_TORCH_LIBRARY_FRAGMENT")[2].partition("\n}\n")[0]
    joined = defined.replace('"\n      "', "")
    assert all(f'"{signature.schema}"' in joined for signature in schema.signatures())
