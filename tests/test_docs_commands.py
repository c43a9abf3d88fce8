"""Commands on the pages of the documentation have the flags that the command line knows."""

import re
import shlex
from pathlib import Path

import pytest

from dmm_fast.cli import build_parser

DOCS = Path(__file__).parents[1] / "docs"
SHELL = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```$", re.M | re.S)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")


def commands(page: Path) -> list[list[str]]:
    """Arguments of each ``dmm-fast`` on a page; a backslash continues a line."""
    text = "\n".join(SHELL.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    # Other lines may be output, which need not be a command.
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dmm-fast ")]


@pytest.mark.parametrize(
    "page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix()
)
def test_the_command_line_takes_the_commands_of_a_page(page: Path) -> None:
    for arguments in commands(page):
        assert build_parser().parse_args(arguments).command == arguments[0]


def test_there_are_commands_on_the_pages() -> None:
    assert len(commands(DOCS / "data.md")) > 3
