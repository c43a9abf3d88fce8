"""Messages and output that the documentation quotes are those of the package."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dmm_fast import cli
from dmm_fast.cuda.plan import use_measured

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# A row of the table of messages; the first column is a message with or without its type.
ROW = re.compile(r"^\| `(?:\w+: )?\w+: expected (.+?)`", re.M)
ANSWER = re.compile(r"^### `CaptureError`.+?(?=^### )", re.M | re.S)
ENTRY = re.compile(r'[Nn]otebook(?:\]\([^)]*\))?[^".;]{0,45}"([^"]+)"')
PLANS = re.compile(r"^\$ dmm-fast (info --plan .+)\n((?:(?!\$ |```).*\n)+)", re.M)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")


@cache
def texts() -> str:
    """Every string of the modules from which the messages come, with adjacent literals joined."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "dmm_fast/infer").glob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join(value for value in constants if isinstance(value, str))


def quoted_messages() -> list[str]:
    table = ROW.findall((DOCS / "gpu.md").read_text(encoding="utf-8"))
    answer = ANSWER.search((DOCS / "faq.md").read_text(encoding="utf-8"))
    assert len(table) > 6
    assert answer
    quotes = re.findall(r'"(.+?)"', re.sub(r"`[^`]*`", "", answer[0]), re.S)
    assert len(quotes) > 4
    return [" ".join(message.split()) for message in (*table, *quotes)]


def test_messages_on_the_pages_stand_in_the_source() -> None:
    assert [message for message in quoted_messages() if message not in texts()] == []


def test_entries_of_the_notebook_that_pages_cite_exist() -> None:
    notebook = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")
    pages = [" ".join(page.read_text(encoding="utf-8").split()) for page in DOCS.rglob("*.md")]
    cited = {entry.rstrip(".,") for page in pages for entry in ENTRY.findall(page)}
    assert len(cited) > 8
    # An entry is a section, or a paragraph with a bold title; citations may leave out the end of the title.
    assert [
        entry for entry in cited if not re.search(rf"^(?:## |\*\*){re.escape(entry)}", notebook, re.M)
    ] == []


@pytest.fixture
def only_estimates() -> Iterator[None]:
    yield
    use_measured(None)


@pytest.mark.usefixtures("only_estimates")
def test_the_page_on_plans_shows_the_output_of_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    commands = PLANS.findall((DOCS / "kernels" / "planner.md").read_text(encoding="utf-8"))
    assert len(commands) > 1
    for command, output in commands:
        # Long lines are wrapped on the page, and dots stand for lines that are left out.
        shown = [" ".join(part.split()) for part in output.split("...\n")]
        assert len(shown) > 1
        cli.main(shlex.split(command))
        printed = " ".join(capsys.readouterr().out.split())
        assert [part for part in shown if part not in printed] == []
