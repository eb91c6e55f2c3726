"""The page for users of other implementations: its commands are understood, its links and its fault numbers exist."""

import ast
import re
from pathlib import Path

import pytest

from capsnet.cli.train import make_request
from capsnet.data import load_data
from capsnet.files import write_json
from capsnet.recipes import RECIPES, TensorFlowCode
from capsnet.runs import Run
from tests.commands import parsed
from tests.faults import FAULTS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^|`)(capsnet [a-z][^`\n]*)", PAGE, re.MULTILINE)))
SECTIONS = {title.lower() for title in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A place where the run to resume exists."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "mnist-tensorflow"
    folder.mkdir(parents=True)
    digits = load_data("digits").fingerprint()
    run = Run(folder, TensorFlowCode(), "mnist", tuple("0123456789"), (1, 28, 28), digits)
    write_json(run.folder / "recipe.json", run.description())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("run")
def test_a_command_of_the_page_is_understood(command):
    context = parsed(command.removeprefix("capsnet "))
    assert context.info_name == command.split()[1]
    if context.info_name == "train":
        make_request(context)


def test_the_page_moves_users_to_every_command_and_recipe_that_they_need():
    commands = {command.split()[1] for command in COMMANDS}
    assert commands >= {"train", "evaluate", "curves", "reconstructions", "errors", "masks", "perturbations"}
    assert commands >= {"targeted", "affine", "import-weights"}
    recipes = set(re.findall(r"--recipe (\S+)", " ".join(COMMANDS)))
    assert recipes == {"chainer", "tensorflow", "pytorch", "notebook", "paper"}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)(.*?)\)", PAGE))))
def test_a_link_of_the_page_leads_somewhere(target):
    if target.startswith("#"):
        assert target[1:].replace("-", " ") in SECTIONS
    else:
        assert (ROOT / "docs" / target).is_file()


def test_the_fault_numbers_of_the_page_are_explained_and_are_those_of_the_tests():
    explained = set(re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE))
    assert set(re.findall(r"\((\d+)\)", PAGE)) <= explained
    assert {re.match(r"\d+", name)[0] for name in FAULTS} <= explained


def test_the_page_s_python_names_what_exists():
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        lines = [node for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
        exec(compile(ast.Module(lines, []), "page", "exec"), {})


def test_the_page_refers_to_the_differences_in_the_docstring_of_each_recipe_of_an_implementation():
    recipes = {RECIPES[name].__name__: RECIPES[name] for name in ("chainer", "tensorflow", "pytorch", "notebook")}
    assert set(re.findall(r"see `(\w+Code)`", PAGE)) == set(recipes)
    assert all("Different there: " in recipe.__doc__ for recipe in recipes.values())
