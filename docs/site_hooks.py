"""Sphinx extension: the repository's own Markdown, help texts and docstrings as pages of the site."""

import contextlib
import io
import os
import re
from pathlib import Path
from unittest import mock

from sphinx.application import Sphinx

from dmm_fast.cli import build_parser

ROOT = Path(__file__).parents[1]

# Pages that show a file of the repository. Their own text is for readers of the repository.
SHOWN = {
    "all_results": ROOT / "benchmarks" / "results" / "README.md",
    "changelog": ROOT / "CHANGELOG.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "notes": ROOT / "benchmarks" / "NOTES.md",
}
LINKED = {ROOT / "README.md": "index", ROOT / "examples": "examples"} | {p: page for page, p in SHOWN.items()}
RELATIVE_LINK = re.compile(r"\[([^\]\n]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]+)?\)")
HELP = re.compile(r"^<!-- help: (.*) -->$", re.M)
SEVERAL_NAMES = re.compile(r"^:(param|ivar) ([\w*]+(?:, [\w*]+)+):(.*)$")


def show_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replaces a page by the file that it shows, and links to files that have a page by links to the page."""
    page = Path(app.env.doc2path(docname))
    file = SHOWN.get(docname, page)
    app.env.note_dependency(str(file))

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], (file.parent / match[2]).resolve(), match[3] or ""
        if not target.exists():
            return match[0]
        if target in LINKED:
            target = Path(app.env.doc2path(LINKED[target]))
        return text if target.is_dir() else f"[{text}]({os.path.relpath(target, page.parent)}{anchor})"

    source[0] = RELATIVE_LINK.sub(link, file.read_text(encoding="utf-8"))


def show_help(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replaces the comment ``help: COMMAND`` by the output of ``dmm-fast COMMAND --help``."""

    def printed(match: re.Match[str]) -> str:
        text = io.StringIO()
        with (
            mock.patch.dict(os.environ, COLUMNS="100"),
            contextlib.redirect_stdout(text),
            contextlib.suppress(SystemExit),
        ):
            build_parser().parse_args([*match[1].split(), "--help"])
        return f"```text\n{text.getvalue()}```"

    source[0] = HELP.sub(printed, source[0])


def split_names(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Gives names that share a line of a docstring a field each: Sphinx takes the first for a type."""
    fields: list[list[str]] = []
    for line in lines:
        if line.startswith(":") or not fields:
            fields.append([line])
        else:
            fields[-1].append(line)
    result: list[str] = []
    for first, *rest in fields:
        match = SEVERAL_NAMES.match(first)
        each = [f":{match[1]} {name}:{match[3]}" for name in match[2].split(", ")] if match else [first]
        for field in each:
            result += [field, *rest]
    lines[:] = result


def skip_field_aliases(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leaves out fields of named tuples without a text of their own: the signature has them."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    """Registers the hooks, the last after napoleon's."""
    app.connect("source-read", show_repository)
    app.connect("source-read", show_help)
    app.connect("autodoc-skip-member", skip_field_aliases)
    app.connect("autodoc-process-docstring", split_names, priority=600)
