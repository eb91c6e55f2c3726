"""A module imports from its own floor or below (DESIGN.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "capsnet"
FLOORS = {  # modules and folders of the package
    0: ("errors", "checks", "files", "ops"),
    1: ("losses", "data", "hardware", "interrupt", "launch", "processes"),
    2: ("layers", "models", "baselines", "hub"),
    3: ("recipes", "build"),
    4: ("training", "steps", "logs", "runs", "checkpoints", "evaluation", "weights"),
    5: ("analysis",),
    6: (),  # experiments and explorer, neither of which imports the other
    7: ("cli", "__main__"),
    8: ("__init__",),  # the public names, from any floor
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str) -> set[str]:
    """The modules and folders of the package that some source imports from, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {part_of_package(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "name the package in an import, so that its floor can be read"
            names |= {part_of_package(f"{node.module}.{alias.name}") for alias in node.names}
    return names - {None}


def part_of_package(name: str) -> str | None:
    """The module or folder of a dotted name; __init__ for a public name, and None outside the package."""
    package, part, *_ = (*name.split("."), "")
    if package != "capsnet":
        return None
    return part if part in FLOOR_OF or (PACKAGE / f"{part}.py").exists() or (PACKAGE / part).is_dir() else "__init__"


def part_with(module: Path) -> str:
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_a_module_imports_from_its_own_floor_or_below(module):
    part = part_with(module)
    assert part in FLOOR_OF, f"{module} has no floor: give it one here and in DESIGN.md"
    unknown = imported(module.read_text()) - set(FLOOR_OF)
    assert not unknown, f"{module} imports from {', '.join(sorted(unknown))}, which has no floor"
    above = {name for name in imported(module.read_text()) if FLOOR_OF[name] > FLOOR_OF[part]}
    assert not above, f"{part} is on floor {FLOOR_OF[part]} and must not import {', '.join(sorted(above))}"


def test_every_module_that_has_a_floor_exists():
    assert set(FLOOR_OF) == {part_with(module) for module in MODULES}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\nfrom pathlib import Path", set()),
        ("from capsnet.ops.squash import squash", {"ops"}),
        ("import capsnet.data.sets as sets, capsnet.models", {"data", "models"}),
        ("from capsnet import cli", {"cli"}),
        ("from capsnet import CapsNet", {"__init__"}),
        ("def late():\n    from capsnet.training import train", {"training"}),
    ],
)
def test_every_way_to_import_is_seen(source, names):
    assert imported(source) == names
