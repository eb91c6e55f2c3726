"""What all pictures share: colours, sizes of type, names that fit, and how a page is made and kept.

Matplotlib is used through its objects, never through pyplot, so that drawing neither needs a screen nor leaves a trace
in a notebook that draws too. It is imported when the first page is made.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsnet.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

DPI = 200
MARGIN = 0.15  # inches around a picture
FONT = "DejaVu Sans"  # comes with matplotlib
TITLE, LABEL, SMALL, TINY = 12, 10, 8, 5  # points
BLACK, GREY, PALE = "#1a1a1a", "#595959", "#d9d9d9"
BLUE, GREEN, VERMILLION = "#0072b2", "#009e73", "#d55e00"  # Okabe and Ito: told apart by all eyes


@contextmanager
def page(path: Path, width: float, height: float, *, layout: str | None = None) -> Iterator[Figure]:
    """A white page of width x height inches to draw on, saved as a PNG, whole or not at all, when all is drawn.

    What reaches beyond the page is not cut: the picture is as large as what is on it. The file says nothing of when or
    by what it was made: the same picture has the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=DPI, facecolor="white", layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    yield figure
    with atomic_write(path) as part:
        figure.savefig(part, format="png", bbox_inches="tight", pad_inches=MARGIN, metadata={"Software": None})


def keep_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Write what a picture shows beside it, as JSON under the same name, whole or not at all."""
    path = path.with_suffix(".json")
    with atomic_write(path) as part:
        part.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def wrapped(text: str, width: float, size: float) -> str:
    """Break a text of a type size in points into lines of at most width inches."""
    return textwrap.fill(text, max(20, int(width * 72 / (0.56 * size))))


def class_names(classes: tuple[str, ...], longest: int) -> list[str]:
    """The names as a picture can show them: at most so many characters, and a number where the font has no letters."""
    return [fitting(name, longest, f"class {k}") for k, name in enumerate(classes)]


def fitting(name: str, longest: int, otherwise: str) -> str:
    """A name on one line, cut to so many characters, with $ as itself; `otherwise` if the font lacks its letters."""
    name = " ".join(name.split())
    if not all(_font().get_char_index(ord(letter)) for letter in name):
        name = otherwise
    if len(name) > longest:
        name = name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def round_numbers(low: float, high: float) -> list[float]:
    """The numbers 1, 2, 5, 10, 20, 50, … and 0.5, 0.2, 0.1, … from low to high, for a logarithmic scale."""
    numbers = [float(f"{digit}e{power}") for power in range(-9, 10) for digit in (1, 2, 5)]
    return [number for number in numbers if low <= number <= high]


@cache
def _font() -> FT2Font:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont(FONT))
