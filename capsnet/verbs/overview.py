"""What `capsnet --help` prints: every verb in the words of its class, which are read without importing it."""

import ast
import os
import sys
from functools import cache
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap

from capsnet.verbs import VERBS

ABOUT = "Capsule networks: train, evaluate, predict, look."
HELP = {"-h, --help": "show this help message and exit", "VERB --help": "show what a verb takes"}


def overview() -> str:
    """The verbs and what each is for, as wide as the terminal."""
    about = {name: words_of(name) for name in VERBS}
    name_width = max(map(len, {**about, **HELP})) + 2
    width = min(120, max(name_width + 30, get_terminal_size().columns))
    parts = ["usage: capsnet [-h] VERB ...", ABOUT, _box("options", HELP, name_width, width)]
    return "\n\n".join(parts) + "\n" + _box("verbs", about, name_width, width)


def words_of(name: str) -> str:
    """What a verb's class says of itself: to import all of them would take longer than their help may."""
    module, _, kind = VERBS[name].partition(":")
    return _docstrings(Path(__file__).with_name(f"{module}.py"))[kind]


@cache
def _docstrings(path: Path) -> dict[str, str]:
    """The docstrings of a module's classes, by name."""
    classes = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    return {node.name: ast.get_docstring(node) or "" for node in classes}


def _box(title: str, rows: dict[str, str], name_width: int, width: int) -> str:
    """A frame around names and, beside each, its text in lines that fit."""
    dim = "\x1b[2m{}\x1b[0m".format if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" else str
    corners, across, down = ("╭╮╰╯", "─", "│") if "utf" in (sys.stdout.encoding or "").lower() else ("++++", "-", "|")
    lines = [dim(f"{corners[0]}{across} {title} {across * (width - len(title) - 5)}{corners[1]}")]
    for name, text in rows.items():
        for k, line in enumerate(_lines(text, width - name_width - 4)):
            words = dim(line.ljust(width - name_width - 4))
            lines.append(f"{dim(down)} {'' if k else name:<{name_width}}{words} {dim(down)}")
    return "\n".join([*lines, dim(corners[2] + across * (width - 2) + corners[3])])


def _lines(text: str, width: int) -> list[str]:
    """Paragraphs, an empty line apart, broken to a width."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        lines += [""] * bool(lines) + wrap(" ".join(paragraph.split()), width, break_on_hyphens=False)
    return lines
