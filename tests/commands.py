"""Command lines of capsnet, run in this process or to be run in one of their own."""

import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple

import pytest

from capsnet.cli import main

COMMAND = [sys.executable, "-c", "from capsnet.cli import main; main()"]
SMALL = shlex.split("--conv-channels 8 --primary-types 2 --precision 32-true --compile False --batch-size 32")


class Said(NamedTuple):
    status: int
    out: str
    err: str


def capsnet(*arguments):
    """Run a command line in this process."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        patch.setattr(sys, "argv", ["capsnet", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code
    return Said(status, out.getvalue(), err.getvalue())


def files(folder):
    """The files of a folder, and when each was last written to."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
