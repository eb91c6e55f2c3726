"""The help of the command line: it says what the verbs say of themselves, and it comes at once."""

import inspect
import re
import subprocess
import sys
from time import perf_counter

import pytest

from capsnet.cli import main
from capsnet.errors import InputError
from capsnet.recipes import RECIPES
from capsnet.verbs import VERBS, find_verb
from capsnet.verbs.overview import words_of

CODE = """
import atexit, sys
atexit.register(lambda: print(*{"torch", "numpy", "tyro", "capsnet.recipes"} & set(sys.modules), file=sys.stderr))
from capsnet.cli import main
main()
"""


def shown(monkeypatch, capsys, *arguments):
    """What a command line that asks for help prints on 60 columns."""
    monkeypatch.setattr(sys, "argv", ["capsnet", *arguments])
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def words(text):
    """The words of a text, without frames and breaks of lines."""
    return re.sub(r"[│╭╮╰╯─\s]+", " ", text)


def loaded(*arguments):
    """Which of the slow packages a command line loads before it ends."""
    result = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
    return result.returncode, set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_described_without_being_imported_in_the_words_of_its_class(name):
    assert words_of(name) == inspect.getdoc(find_verb(name))


@pytest.mark.parametrize("ask", ["-h", "--help"])
def test_the_help_names_every_verb_with_all_that_its_class_says(ask, monkeypatch, capsys):
    said = words(shown(monkeypatch, capsys, ask))
    assert all(f" {name} {words(inspect.getdoc(find_verb(name)))} " in said for name in VERBS)


def test_the_lines_of_the_help_are_as_wide_as_the_terminal(monkeypatch, capsys):
    _, _, _, _, *boxes = shown(monkeypatch, capsys, "--help").splitlines()
    assert {len(line) for line in boxes} == {60}


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_names_its_flags_and_says_what_it_is_for(name, monkeypatch, capsys):
    said = words(shown(monkeypatch, capsys, name, "--help"))
    assert f"usage: capsnet {name} [-h]" in said
    assert words(inspect.getdoc(find_verb(name))) in said


def test_every_recipe_is_named_in_the_help_of_training(monkeypatch, capsys):
    said = words(shown(monkeypatch, capsys, "train", "--help"))
    assert all(name in said for name in RECIPES)


def test_a_verb_that_there_is_not_is_refused_with_the_verbs_that_there_are():
    with pytest.raises(InputError, match=r"no verb 'fly': choose one of train, evaluate, .*import-weights"):
        find_verb("fly")


@pytest.mark.parametrize(
    ("arguments", "status", "allowed"),
    [
        (["--help"], 0, set()),
        ([], 2, set()),
        (["fly"], 2, set()),
        (["evaluate", "--help"], 0, {"tyro"}),
        (["evaluate", "run", "--wings"], 2, {"tyro"}),
        (["train", "--help"], 0, {"tyro", "capsnet.recipes"}),
        (["train", "digits", "--wings"], 2, {"tyro", "capsnet.recipes"}),
    ],
)
def test_a_help_or_a_mistake_loads_no_more_than_it_needs(arguments, status, allowed):
    assert loaded(*arguments) == (status, allowed)


def test_the_help_comes_within_0_3_seconds():
    command = [sys.executable, "-c", "from capsnet.cli import main; main()", "--help"]

    def seconds():
        start = perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3  # the least of several: the machine may be busy
