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
from capsnet.files import usable_path
from capsnet.launch import is_first, is_first_here, leave, process_count
from capsnet.verbs import VERBS, find_verb

if TYPE_CHECKING:
    from capsnet.recipe import Recipe


def settings_of(arguments: list[str]) -> "tuple[str, Recipe]":
    """The recipe that a command line of `train` starts from, by name, before its flags change it.

    Of epochs and steps it keeps the one that the flags name: what the user says takes the place of what the recipe has.
    """
    from dataclasses import replace

    from capsnet.recipes import find_recipe
    from capsnet.verbs.train import run_folder

    typed = typed_flags(arguments)
    name = typed.get("recipe") or ("digits" if typed["data"] == "digits" else "fast")
    if not typed.get("resume") or not typed["data"]:  # which the parser will miss
        settings = find_recipe(name)()
    elif "recipe" in typed:
        raise InputError("--resume goes on by the run's own recipe: leave --recipe out, and name the run with --run")
    else:
        from capsnet.runs import load_run

        run = load_run(usable_path(typed["run"]) if "run" in typed else run_folder(typed["data"], name))
        name, settings = run.recipe_name, run.recipe
    for given, other in (("epochs", "steps"), ("steps", "epochs")):
        if given in typed and other not in typed:  # 1 stands for the number that is given
            ends: dict[str, Any] = {given: 1, other: None}
            settings = replace(settings, **ends)
    return name, settings


def typed_flags(arguments: list[str]) -> dict[str, Any]:
    """The flags of `train` on a command line, as words under their names, and under "data" what stands for the data."""
    import argparse
    from dataclasses import fields

    from capsnet.recipe import Recipe
    from capsnet.verbs.train import Train

    peek = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    for field in (*fields(Train), *fields(Recipe)):  # all of them, lest their values be taken for the data
        if field.name not in ("data", "settings"):
            action = argparse.BooleanOptionalAction if isinstance(field.default, bool) else "store"
            peek.add_argument(f"--{field.name.replace('_', '-')}", f"--{field.name}", dest=field.name, action=action)
    try:
        known, rest = peek.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    return vars(known) | {"data": next((word for word in rest if not word.startswith("-")), "")}


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
    if name != "train" and process_count() > 1:
        raise InputError(f"{name} runs in one process, not in {process_count()}: start it without torchrun")
    if empty := [word for word in rest if re.fullmatch("(--[^=]+=)?", word)]:
        raise InputError(f"an argument is empty: give {empty[0] or 'it'} a value or leave it out")
    import tyro

    if name == "train":
        recipe, settings = settings_of(rest)
        start["default"] = verb(data=tyro.MISSING, recipe=recipe, settings=settings)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return with_usable_paths(tyro.cli(verb, prog=f"capsnet {name}", args=rest, **start))
    except SystemExit as stop:
        if stop.code != 2:
            raise
    raise InputError(one_line(said.getvalue()))


def with_usable_paths(verb: Any) -> Any:
    """A verb with the ~ of its paths expanded; InputError for what no file can be called, data included."""
    from dataclasses import fields, replace

    paths: dict[str, Any] = {}
    for field in fields(verb):
        value = getattr(verb, field.name)
        if isinstance(value, Path):
            paths[field.name] = usable_path(value)
        elif isinstance(value, tuple):
            paths[field.name] = tuple(usable_path(one) if isinstance(one, Path) else one for one in value)
        elif isinstance(value, str) and field.name in ("data", "other"):  # a name of data, or a path
            usable_path(value)
    return replace(verb, **paths)


def one_line(box: str) -> str:
    """What tyro prints in a box with a title, as one line without the title."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+", " ", line) for line in box.splitlines()[1:]]
    words = " ".join(" ".join(lines).split())
    words = re.sub(r"^Error parsing (__\S+|settings): ", "", words)  # a dataclass's own words need no such preface
    words = re.sub(r" ?(\(required\) )?(Argument helptext: .*)?For full helptext, (run|see):? .*$", "", words)
    none_fits = r"no type matching (\S+) could be instantiated from \['(.*?)'\]\. Got errors.*"
    words = re.sub(none_fits, r"\1, not '\2'", words)
    words = words.replace("invalid literal for int() with base 10:", "not a whole number:")
    return words if len(words) < 500 else f"{words[:300]} ... {words[-150:]}"


SYSTEM_ERRORS = {  # what a system lacks or forbids, which a user can put right; other errors are faults of ours
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE),
}

NOISY_LOGGERS = (  # on having no GPU, on using bf16, on processes that connect
    *("torch.utils.cpp_extension", "lightning_fabric.utilities.rank_zero", "lightning_fabric.utilities.distributed"),
)


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
            logging.getLogger("capsnet").setLevel(logging.INFO if is_first() else logging.CRITICAL)
            for noisy in NOISY_LOGGERS:
                logging.getLogger(noisy).setLevel(logging.ERROR)
            verb()
            if lost_its_reader():
                sys.exit(128 + signal.SIGPIPE)
            if process_count() > 1:
                leave(0)
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        end(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        fail(f"{error.filename or 'the system'}: {error.strerror}: mend that, and go on with --resume if it trained")
    except KeyboardInterrupt as interruption:
        end(128 + (interruption.number if isinstance(interruption, Interrupted) else signal.SIGINT))


def fail(message: str) -> None:
    """Print one line on stderr, in the first of a node's processes alone, and end with status 2."""
    if is_first_here():
        with contextlib.suppress(OSError):  # of a terminal that is gone
            print(f"capsnet: {' '.join(message.split())}", file=sys.stderr)
    end(2)


def end(status: int) -> None:
    """End with a status, also where nobody is left to read what was printed."""
    lost_its_reader()
    leave(status)


def lost_its_reader() -> bool:
    """Whether a pipe that we print to was closed, as of `capsnet ... | head`; what has no reader is dropped."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # a terminal that is gone is another of them
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            closed |= isinstance(error, BrokenPipeError)
    return closed
