"""Imports go one way: a module imports from its own layer and from those below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmm_fast

PACKAGE = Path(dmm_fast.__file__).parent
LAYERS = (
    ("check", "_io", "_lazy", "_one_step", "_share"),
    ("reference", "_reference_emissions", "_reference_nade", "_reference_pieces", "_weights"),
    ("ops", "triton", "cuda", "_extension"),
    ("data", "optim"),
    ("nn", "_emitters", "_network", "_recurrent"),
    ("_flows",),
    ("distributions",),
    ("_minibatch", "_units", "_values"),
    ("model", "_arguments", "_handlers", "_heads", "_inputs", "_parameters", "_parts", "_step_sites"),
    ("infer",),
    ("_figures",),
    ("training",),
    ("music",),
    ("cli", "_commands", "_console", "__main__"),
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room_of(path: Path) -> str:
    """The module or package directly below ``dmm_fast`` that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "dmm_fast":
            yield from (alias.name for alias in node.names if alias.name in LEVELS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dmm_fast."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("dmm_fast."))


def test_every_module_has_a_layer() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == {*LEVELS}


@pytest.mark.parametrize("room", LEVELS)
def test_imports_go_down(room: str) -> None:
    files = [path for path in PACKAGE.rglob("*.py") if room_of(path) == room]
    upward = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        for name in imported_rooms(path.read_text(encoding="utf-8"))
        if LEVELS[name] > LEVELS[room]
    }
    assert not upward
