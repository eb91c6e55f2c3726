"""The README is right: its Python runs, its commands are understood, its tree and its table agree with the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from capsnet.cli import COMMANDS as ALL
from capsnet.cli.train import make_request
from tests.commands import parsed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    re.sub(r"^\.venv/bin/", "", line.split("#")[0]).strip()
    for kind, block in BLOCKS
    for line in block.splitlines()
    if not kind and re.match(r"(\.venv/bin/)?capsnet \w", line)
]


def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (program,) = [block for kind, block in BLOCKS if kind == "python"]
    names = {}
    exec(program, names)
    assert names["parents"].shape == (8, 10, 16)
    assert (tmp_path / "my-capsnet" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_understood(command):
    context = parsed(command.removeprefix("capsnet "))
    assert context.info_name == command.split()[1]
    if context.info_name == "train":
        make_request(context)


def test_the_readme_shows_every_command():
    shown = {command.split()[1] for command in COMMANDS} | set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE))
    assert shown | {"import-weights"} == set(ALL)  # which has a page of its own: docs/coming-from.md


def test_the_make_targets_of_the_readme_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`?make (\w+)", README)) <= set(targets)


def test_the_readme_s_tree_names_the_files_that_are_there():
    tree = next(block for _, block in BLOCKS if block.startswith("capsnet/\n"))
    folders: list[str] = []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        assert (ROOT / "".join(folders)).exists(), line
        if not name.endswith("/"):
            folders.pop()


def test_the_pictures_of_the_readme_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file(), picture


def test_the_tables_are_what_the_results_say():
    made = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout
