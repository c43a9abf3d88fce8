"""Pages of the documentation: their code runs, their links lead to files, every public name has an entry."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *(ROOT / "docs").rglob("*.md")])

# A block of code, with the comment above it that keeps it from being run.
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n+)?```python\n(.*?)^```$", re.M | re.S)
ANY_BLOCK = re.compile(r"^(```+|:::+).*?^\1$", re.M | re.S)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
ENTRY = re.compile(r"^\.\. auto(?:class|function|exception|data):: ([\w.]+)$", re.M)
PUBLIC = ("", ".data", ".distributions", ".infer", ".music", ".nn", ".ops", ".optim", ".training")

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is not here")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    """Blocks of Python that can be run, each below as many empty lines as stand above it in the page."""
    text = page.read_text(encoding="utf-8")
    return [
        "\n" * text.count("\n", 0, found.start(2)) + found[2]
        for found in BLOCK.finditer(text)
        if not found[1]
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    for source in blocks(page):
        exec(compile(source, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_of_a_page_lead_to_files(page: Path) -> None:
    prose = ANY_BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert [link for link in LINK.findall(prose) if not (page.parent / link).exists()] == []


def test_every_example_is_on_its_page() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    missing = [
        path.name for path in (ROOT / "examples").glob("*.*") if f"](../examples/{path.name})" not in page
    ]
    assert missing == []


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    entries = [
        entry for page in (ROOT / "docs" / "api").glob("*.md") for entry in ENTRY.findall(page.read_text())
    ]
    documented = [_resolve(entry) for entry in entries]
    for package in PUBLIC:
        module = importlib.import_module(f"dmm_fast{package}")
        names = [name for name in module.__all__ if not name.startswith("__")]
        missing = [name for name in names if not any(getattr(module, name) is thing for thing in documented)]
        assert missing == [], module.__name__
    assert len(entries) == len({*entries})


def _resolve(entry: str) -> object:
    module, _, name = entry.rpartition(".")
    return getattr(importlib.import_module(module), name)
