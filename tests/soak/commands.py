"""Command lines of random flags and odd values: accepted, or refused in one line with exit status 2."""

import contextlib
import io
import json
import os
import random
import re
import sys
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click

from capsnet import cli
from capsnet.errors import InputError
from tests.commands import parsed
from tests.soak.processes import fork, import_all

LINES = 5_000
VALUES = (
    *("0", "1", "-1", "3", "0.5", "-0.5", "nan", "inf", "-inf", "1e999", "1e-999", "9" * 30, "1" * 5000, "0x10", "1_0"),
    *("", " ", "-", "--", "---", "None", "none", "True", "False", "null", "[]", "{}", "a b", "a\nb", "\x00", "\udcff"),
    *("digits", "mnist", "fast", "paper", "digits.npz", ".", "/", "/dev/null", "/dev/zero", "/nowhere/x", "~nobody/x"),
    *("x" * 300, "../" * 100, "é", "🧀", "%s", "{0}", "-h", "--run", "--resume", "--seed=1", "@file", "*"),
)
SOUND = ("1", "2", "3", "0.5", "8", "digits", "dense", "capsnet", "fast", "mnist", "True", "a", "small-cnn", "auto")
DATA = ("digits", "mnist", "fashion_mnist")


def commands(room: Path, rng: random.Random, count: int | None) -> dict[str, Any]:
    """Parse random command lines, and run those that do not name data to train on: their runs do not exist."""
    import_all()
    record = room / "counted.json"
    ended = fork(partial(try_lines, room, rng, count or LINES, record)).wait(limit=7200)
    if ended.status:
        raise RuntimeError(ended.said)
    counted: dict[str, Any] = json.loads(record.read_text())
    return counted


def try_lines(room: Path, rng: random.Random, n: int, record: Path) -> None:
    """Try n lines, and write their outcomes to a file."""
    os.chdir(room)
    flags = {name: flags_of(name) for name in cli.COMMANDS}
    outcomes, found, examples = Counter[str](), Counter[str](), dict[str, list[str]]()
    slowest = 0.0
    for _ in range(n):
        line = random_line(rng, flags)
        begun = time.process_time()
        outcome, fault = outcome_of(line)
        slowest = max(slowest, time.process_time() - begun)
        outcomes[outcome] += 1
        if fault:
            found[fault] += 1
            examples.setdefault(fault, line)
    counted = {"lines": n, "outcomes": outcomes, "cpu_seconds": round(slowest, 3)}
    record.write_text(json.dumps(counted | {"findings": found, "examples": examples}))


def flags_of(name: str) -> list[str]:
    """The options that the help of a command names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(click.exceptions.Exit):
        cli.execute([name, "--help"])
    return sorted({*re.findall(r"--[a-z][a-z-]*", said.getvalue())})


def outcome_of(line: list[str]) -> tuple[str, str | None]:
    """The outcome of a command line, and what is wrong with it, if anything."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            context = parsed(line)
        if context.params.get("data") in DATA and context.info_name == "train":
            return "accepted", None
        sys.argv = ["capsnet", *line]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            cli.main()
        return "done", None
    except InputError as error:
        return "refused", None if len(str(error).splitlines()) == 1 else "an InputError of several lines"
    except click.exceptions.Exit:
        return "help", None
    except click.UsageError as error:
        return "refused", None if len(cli.explanation(error).splitlines()) == 1 else "a refusal of several lines"
    except SystemExit as stop:
        if not stop.code:
            return "help", None
        lines = said.getvalue().strip().splitlines()
        return "refused when run", None if stop.code == 2 and len(lines) == 1 else f"status {stop.code}: {lines[-1:]}"
    except BaseException as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return "broken", f"{type(error).__name__} in {Path(at.filename).name}:{at.name}"


def random_line(rng: random.Random, flags: dict[str, list[str]]) -> list[str]:
    """A command, or an invalid one, and up to eight words."""
    command = rng.choice([*cli.COMMANDS, "train", "train", "evaluate", "predict", rng.choice(VALUES)])
    words = [command] if rng.random() < 0.97 else []
    known, odd = flags.get(command, ["--run"]), rng.choice((0.1, 0.5, 1.0))
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 8))):
        flag = rng.choice(known)
        kind = rng.random()
        if kind < 0.45:
            words += [flag, rng.choice(VALUES if rng.random() < odd else SOUND)]
        elif kind < 0.6:
            words.append(f"{flag}={rng.choice(VALUES)}")
        elif kind < 0.7:
            like = (flag, flag[:-1], flag.replace("--", "--no-"), flag.upper(), flag.replace("-", "_"))
            words.append(rng.choice(like))
        else:
            words.append(rng.choice(VALUES if rng.random() < odd else SOUND))
    return words
