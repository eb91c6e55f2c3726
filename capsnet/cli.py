"""The command line, from its words to a verb and from a mistake to one line and exit status 2."""

import argparse
import contextlib
import errno
import io
import logging
import re
import sys
from dataclasses import asdict
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from capsnet.errors import InputError
from capsnet.recipe import Recipe
from capsnet.recipes import find_recipe
from capsnet.verbs import VERBS
from capsnet.verbs.run import Train, run_folder

ABOUT = "Capsule networks: train, evaluate, predict, look."


def settings_of(arguments: list[str]) -> tuple[str, Recipe]:
    """The recipe that a command line of `train` starts from, by name, before its flags change it."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--recipe")
    peek.add_argument("--run", type=Path)
    peek.add_argument("--resume", action="store_true")
    for name, default in {"data_dir": None, **asdict(Recipe())}.items():  # lest their values be taken for the data
        action = "store_true" if isinstance(default, bool) else "store"
        peek.add_argument(f"--{name.replace('_', '-')}", action=action)
    try:
        known, rest = peek.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    data = next((word for word in rest if not word.startswith("-")), "")
    name = known.recipe or ("digits" if data == "digits" else "fast")
    if known.resume:
        from capsnet.runs import load_run

        run = load_run(known.run or run_folder(data, name))
        return run.recipe_name, run.recipe
    return name, find_recipe(name)()


def parse(arguments: list[str]) -> Any:
    """The verb that a command line asks for, with its flags.

    Raises InputError, in one line, for what cannot be understood.
    """
    train = subcommand("train")
    if arguments[:1] == ["train"]:
        name, settings = settings_of(arguments[1:])
        train = subcommand("train", default=Train(data=tyro.MISSING, recipe=name, settings=settings))
    others = (Annotated[VERBS[name], subcommand(name)] for name in VERBS if name != "train")
    verbs: Any = reduce(or_, others, Annotated[Train, train])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(verbs, prog="capsnet", args=arguments, description=ABOUT)
    except SystemExit as stop:
        if stop.code != 2:
            raise
    raise InputError(one_line(said.getvalue()))


def one_line(box: str) -> str:
    """What tyro prints in a box with a title, as one line without the title."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+", " ", line) for line in box.splitlines()[1:]]
    words = " ".join(" ".join(lines).split())
    words = re.sub(r"^Error parsing __\S+: ", "", words)  # a dataclass's own words need no such preface
    words = re.sub(r" ?(\(required\) )?(Argument helptext: .*)?For full helptext, (run|see):? .*$", "", words)
    return words.replace("invalid literal for int() with base 10:", "not a whole number:")


def main() -> None:
    """Run a command line; what a user can put right becomes one line on stderr and exit status 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("capsnet").setLevel(logging.INFO)
    try:
        parse(sys.argv[1:])()
    except InputError as error:
        print(f"capsnet: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("capsnet: no space left on the disk: free some and go on with --resume", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
