"""Versions, pins and targets that several files state are the same in each of them."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import dmm_fast

ROOT = Path(__file__).parents[1]
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the package's source is not here")


def text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def parsed(file: str) -> Any:
    return yaml.safe_load(text(file))


@pytest.fixture
def releases() -> list[tuple[str, str]]:
    """Version and date of each release in the changelog, newest first."""
    first, *others = re.findall(r"^## (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    assert first == "[Unreleased]"
    return [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", each).groups() for each in others]


def test_package_changelog_and_citation_have_the_same_version(releases: list[tuple[str, str]]) -> None:
    citation = parsed("CITATION.cff")
    assert (citation["version"], citation["date-released"]) == releases[0]
    assert dmm_fast.__version__ == releases[0][0]


def test_changelog_has_releases_in_order_and_the_usual_sections(releases: list[tuple[str, str]]) -> None:
    by_version = sorted(releases, key=lambda each: tuple(map(int, each[0].split("."))), reverse=True)
    by_date = sorted(releases, key=lambda each: each[1], reverse=True)
    assert releases == by_version == by_date
    assert {*re.findall(r"^### (.*)$", text("CHANGELOG.md"), re.MULTILINE)} <= SECTIONS


def test_hooks_before_a_commit_are_the_pinned_tools_as_make_runs_them() -> None:
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    pins = {re.split("[=<>;]", line)[0] for line in text("requirements-dev.txt").splitlines()}
    for hook in repository["hooks"]:
        command = hook["entry"].removesuffix(" --force-exclude")
        assert command.removeprefix(".venv/bin/").split()[0] in pins
        assert re.search(
            rf"^\t{re.escape(command.replace('.venv/bin', '$(BIN)'))}\b", text("Makefile"), re.MULTILINE
        )


def test_workflow_runs_targets_of_the_makefile_on_supported_versions() -> None:
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {command.split()[1] for command in commands if command.startswith("make ")}
    assert targets == {"docs", "wheel", "other-torch"}
    assert all(re.search(rf"^{target}:", text("Makefile"), re.MULTILINE) for target in targets)
    assert [command for command in commands if not command.startswith("make ")] == [".ci/run"]
    assert (ROOT / ".ci" / "run").is_file()

    metadata, matrix = text("pyproject.toml"), jobs["install"]["strategy"]["matrix"]
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', metadata)
    assert matrix["python"] == [pythons[0], pythons[-1]]
    assert f'requires-python = ">={pythons[0]}"' in metadata
    oldest, newest = matrix["torch"]
    assert f'"torch>={oldest.removesuffix(".0")}"' in metadata
    assert newest == "newest"
    assert re.search(rf"^OTHER_TORCH \?= {re.escape(oldest)} ", text("Makefile"), re.MULTILINE)


def test_pins_are_the_versions_that_are_installed() -> None:
    lines = [line for line in text("requirements-dev.txt").splitlines() if line and line[0] != "#"]
    pins = [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate()]
    wrong = [
        f"{pin}, got {version(pin.name)}" for pin in pins if not pin.specifier.contains(version(pin.name))
    ]
    assert wrong == []
