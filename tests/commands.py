"""Command lines of capsnet: run in this process, parsed only, or to be run in a process of their own."""

import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

import click
import pytest

from capsnet import cli

COMMAND = [sys.executable, "-c", "from capsnet.cli import main; main()"]
SMALL = shlex.split("--conv-channels 8 --primary-types 2 --precision 32-true --no-compile --batch-size 32")


class Result(NamedTuple):
    status: int
    out: str
    err: str


def capsnet(*arguments):
    """Run a command line in this process."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        patch.setattr(sys, "argv", ["capsnet", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
    return Result(status, out.getvalue(), err.getvalue())


def parsed(line):
    """The context of a command line, given as one string or as words, which is parsed and not run."""
    contexts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click.Command, "invoke", lambda command, context: contexts.append(context))
        cli.execute(shlex.split(line) if isinstance(line, str) else list(line))
    return contexts[-1]


def files(folder):
    """The files of a folder, and when each was last written to."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
