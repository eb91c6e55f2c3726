"""The help of the command line: it names every command and option, shows defaults as they are typed, and is quick."""

import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from capsnet.analysis import SUBJECTS
from capsnet.cli import COMMANDS
from capsnet.recipes import RECIPES, Recipe, flag
from tests.commands import capsnet

CODE = """
import atexit, sys
atexit.register(lambda: print(*{"torch", "numpy", "matplotlib", "rich"} & set(sys.modules), file=sys.stderr))
from capsnet.cli import main
main()
"""


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")


def shown(*arguments):
    """The words that a command line that asks for help prints."""
    said = capsnet(*arguments)
    assert (said.status, said.err) == (0, "")
    return " ".join(said.out.split())


def loaded(*arguments):
    """Exit status of a command line, and which of the slow packages it loads."""
    result = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
    return result.returncode, set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("ask", ["-h", "--help"])
def test_the_help_names_every_command_and_says_what_it_does(ask):
    said = shown(ask)
    for name in COMMANDS:
        assert re.search(rf" {name} +[A-Z]", said), name
    assert all(f" {name} {line}" in said for name, line in SUBJECTS.items())


def test_the_lines_of_the_help_are_no_wider_than_the_terminal():
    assert max(map(len, capsnet("--help").out.splitlines())) <= 60


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_says_how_to_call_it_and_what_it_does(name):
    assert re.match(rf"Usage: capsnet {name} \[OPTIONS\] [A-Z. ]+ [A-Z][a-z]+,? ", shown(name, "--help"))


def test_the_help_of_training_has_every_field_of_a_recipe_in_its_group():
    said = capsnet("train", "--help").out
    groups = {title: said.index(f"\n{title}:\n") for title in ("Run", "Network", "Losses", "Data", "Optimisation")}
    assert list(groups.values()) == sorted(groups.values())
    places = [re.search(rf"^  {flag(field.name)}\b", said, re.MULTILINE).start() for field in fields(Recipe)]
    assert places == sorted(places)
    for title, first in (("Network", "network"), ("Losses", "margin_present"), ("Data", "validation")):
        assert groups[title] < places[[field.name for field in fields(Recipe)].index(first)]


def test_every_recipe_is_named_in_the_help_of_training():
    said = shown("train", "--help")
    assert all(name in said for name in RECIPES)


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "report", "import-weights"])
def test_no_default_is_shown_that_a_user_would_not_type(name):
    assert not re.search(r"\b(None|True|False|Sentinel|UNSET)\b", shown(name, "--help"))


@pytest.mark.parametrize(
    ("recipe", "defaults"),
    [
        ("fast", ["--lr FLOAT .*? [default: 0.002]", "--steps INTEGER .*? [default: 2000]", "[default: no-prior]"]),
        ("chainer", ["--lr-decay-steps INTEGER|EPOCH .*? [default: epoch]", "--epochs INTEGER .*? [default: 500]"]),
        ("pytorch", ["--iterations INTEGER .*? [default: 4]", "--prior / --no-prior .*? [default: prior]"]),
    ],
)
def test_the_help_shows_the_defaults_of_the_recipe_that_is_named_before_it(recipe, defaults):
    said = shown("train", "--recipe", recipe, "--help")
    for words in defaults:
        option, _, default = words.rpartition(" .*? ")
        assert re.search(f"{re.escape(option)} [^[]*{re.escape(default)}".strip(), said), words


def test_the_version_is_that_of_the_package():
    assert re.fullmatch(r"capsnet \d+\.\d+\.\d+\n", capsnet("--version").out)


def test_the_package_is_the_command():
    """`capsnet` and `python -m capsnet` are the same."""
    line = [sys.executable, "-m", "capsnet", "evaluate"]
    result = subprocess.run(line, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == capsnet("evaluate")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["fly"], 2),
        (["evaluate", "--help"], 0),
        (["evaluate", "run", "--wings"], 2),
        (["train", "--help"], 0),
        (["train", "digits", "--wings"], 2),
        (["train", "digits", "--rate", "1"], 2),
    ],
)
def test_a_help_or_a_mistake_loads_nothing_slow(arguments, status):
    assert loaded(*arguments) == (status, set())


def test_the_help_takes_less_than_a_second_of_one_core():
    command = [sys.executable, "-c", "from capsnet.cli import main; main()", "--help"]

    def seconds():
        before = os.times()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    assert min(seconds() for _ in range(3)) < 1
