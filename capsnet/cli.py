"""The command line, from its words to a verb and from a mistake to one line and exit status 2."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsnet.errors import InputError
from capsnet.verbs import VERBS, find_verb

if TYPE_CHECKING:
    from capsnet.recipe import Recipe


def settings_of(arguments: list[str]) -> "tuple[str, Recipe]":
    """The recipe that a command line of `train` starts from, by name, before its flags change it."""
    import argparse
    from dataclasses import asdict

    from capsnet.recipe import Recipe
    from capsnet.recipes import find_recipe
    from capsnet.verbs.train import run_folder

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
    """The verb that a command line asks for, with its flags; only that verb's module is imported.

    Raises InputError, in one line, for what cannot be understood.
    """
    if not arguments:
        raise InputError(f"name a verb: one of {', '.join(VERBS)}; `capsnet --help` says what each does")
    if arguments[0] in ("-h", "--help"):
        from capsnet.verbs.overview import overview

        print(overview())
        sys.exit()
    name, rest = arguments[0], arguments[1:]
    verb, start = find_verb(name), {}
    import tyro

    if name == "train":
        recipe, settings = settings_of(rest)
        start["default"] = verb(data=tyro.MISSING, recipe=recipe, settings=settings)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(verb, prog=f"capsnet {name}", args=rest, **start)
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


SYSTEM_ERRORS = {  # what a system lacks or forbids, which a user can put right; other errors are faults of ours
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE),
}


def main() -> None:
    """Run a command line; what a user can put right becomes one line on stderr and exit status 2.

    SIGTERM and SIGHUP end it as Ctrl-C does, with the status that a shell gives: 128 and the signal's number.
    """
    from capsnet.interrupt import Interrupted, interrupting

    try:
        with interrupting():
            verb = parse(sys.argv[1:])
            import logging  # not for a help or a mistake, which are to come at once

            logging.basicConfig(format="%(message)s")
            logging.getLogger("capsnet").setLevel(logging.INFO)
            verb()
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        fail(f"{error.filename or 'the system'}: {error.strerror}: mend that, and go on with --resume if it trained")
    except KeyboardInterrupt as interruption:
        sys.exit(128 + (interruption.number if isinstance(interruption, Interrupted) else signal.SIGINT))


def fail(message: str) -> None:
    """Print one line on stderr and end with status 2."""
    print(f"capsnet: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
