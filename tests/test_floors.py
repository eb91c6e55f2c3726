"""The house stands: a module imports from its own floor or below (DESIGN.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "capsnet"
FLOORS = {
    0: ("errors", "checks", "files", "ops"),
    1: ("losses", "data", "hardware", "interrupt", "launch", "processes"),
    2: ("layers", "hub", "models", "baselines"),
    3: ("recipes", "build"),
    4: ("steps", "training", "logs", "runs", "checkpoints", "evaluation", "detector", "weights"),
    5: ("analysis",),
    6: ("cli", "__main__"),
    7: ("__init__",),  # the outside: what is public
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(source: str) -> set[str]:
    """The rooms of the package that a module imports from, wherever in the module."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            rooms |= {room_in(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "name the package in an import, so that its floor can be read"
            rooms |= {room_in(f"{node.module}.{alias.name}") for alias in node.names}
    return rooms - {None}


def room_in(name: str) -> str | None:
    """The room of a dotted name, or None outside the package; what is in no room is public, and so in __init__."""
    package, room, *_ = (*name.split("."), "")
    if package != "capsnet":
        return None
    return room if room in FLOOR_OF or (PACKAGE / f"{room}.py").exists() else "__init__"


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_a_module_imports_from_its_own_floor_or_below(module):
    room = room_of(module)
    assert room in FLOOR_OF, f"{module} has no floor: give it one here and in DESIGN.md"
    above = {other for other in imported_rooms(module.read_text()) if FLOOR_OF.get(other, 0) > FLOOR_OF[room]}
    assert not above, f"{room} is on floor {FLOOR_OF[room]} and must not import {', '.join(sorted(above))}"


def test_every_room_that_has_a_floor_exists():
    assert set(FLOOR_OF) == {room_of(module) for module in MODULES}


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import torch\nfrom pathlib import Path", set()),
        ("from capsnet.ops.squash import squash", {"ops"}),
        ("import capsnet.data.sets as sets, capsnet.models", {"data", "models"}),
        ("from capsnet import cli", {"cli"}),
        ("from capsnet import CapsNet", {"__init__"}),
        ("def late():\n    from capsnet.training import train", {"training"}),
    ],
)
def test_no_way_to_import_goes_unseen(source, rooms):
    assert imported_rooms(source) == rooms
