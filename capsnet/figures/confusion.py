"""Which classes a network takes for which."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.figures.style import (
    BLACK,
    GREY,
    LABEL,
    PALE,
    SMALL,
    TINY,
    TITLE,
    class_names,
    keep_numbers,
    page,
    round_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 24  # letters of a class's name that fit beside a row
CELL, LEAST, MOST = 0.5, 3.2, 14.0  # inches: a cell where there is room, and the sides of the matrix
POINTS = 72  # an inch
DIAGONAL = 0.16  # from white, 0, to black, 1
LETTER = 0.66  # width of a letter in its type size


def draw_confusion(evaluation: Evaluation, classes: tuple[str, ...], path: Path) -> Path:
    """Draw the images by true class (row) and predicted class (column), coloured by the errors alone.

    The right answers are hundreds of times as many: coloured too, they would hide every error. The counts are written
    in the cells where they fit.
    Raises InputError where there is not one name for each class.
    """
    counts = np.array(evaluation.confusion)
    n = len(counts)
    if len(classes) != n:
        raise InputError(f"the network told {n} classes apart, but there are {len(classes)} names")
    side = min(MOST, max(LEAST, CELL * n))
    with page(path, side, side) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        _colour(axes, counts)
        _write_counts(axes, counts, side / n * POINTS)
        _name(axes, class_names(classes, LONGEST), side / n * POINTS)
        caption = f"{evaluation.errors:,} errors in n = {evaluation.n:,} images; the grey diagonal was right"
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
        axes.annotate(caption, (0, 1), (0, 6), fontsize=SMALL, color=GREY, **place)
        axes.annotate(
            "True and predicted classes", (0, 1), (0, 22), fontsize=TITLE, weight="bold", color=BLACK, **place
        )
    keep_numbers(path, {"classes": classes, "per_class": evaluation.per_class} | asdict(evaluation))
    return path


def _colour(axes: Axes, counts: np.ndarray) -> None:
    """Colour each cell off the diagonal by its errors, on a logarithmic scale, and the diagonal in grey."""
    right = np.eye(len(counts), dtype=bool)
    axes.imshow(np.where(right, DIAGONAL, np.nan), cmap="Greys", vmin=0, vmax=1)
    errors = np.where(right | (counts == 0), np.nan, counts)
    most = _most_errors(counts)
    image = axes.imshow(errors, cmap="viridis_r", norm="log", vmin=1, vmax=max(2, most))
    if not most:
        return
    beside = axes.inset_axes((1.04, 0.15, 0.03, 0.7))
    bar = axes.figure.colorbar(image, cax=beside, ticks=round_numbers(1, max(2, most)), format="{x:g}")
    bar.minorticks_off()
    beside.tick_params(labelsize=SMALL)
    bar.set_label("errors in a cell", fontsize=SMALL, color=GREY)


def _most_errors(counts: np.ndarray) -> int:
    return int((counts - np.diag(np.diag(counts))).max())


def _write_counts(axes: Axes, counts: np.ndarray, cell: float) -> None:
    """Write the counts, but for no errors, into cells of so many points, if they fit."""
    size = min(LABEL, cell / (LETTER * len(str(counts.max())) + 0.4))
    if size < TINY:
        return
    middle = max(2, _most_errors(counts)) ** 0.5  # of the logarithmic scale: colours beyond it are dark
    for row, column in np.argwhere((counts > 0) | np.eye(len(counts), dtype=bool)):
        count = counts[row, column]
        colour = GREY if row == column else "white" if count > middle else BLACK
        axes.text(column, row, str(count), ha="center", va="center_baseline", fontsize=size, color=colour)


def _name(axes: Axes, names: list[str], cell: float) -> None:
    """Name rows and columns, the columns upright where the names are wider than a cell of so many points."""
    n, size = len(names), min(LABEL, 0.75 * cell)
    upright = LETTER * size * max(map(len, names)) > cell
    axes.set_xticks(range(n), names, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xlabel("predicted class", fontsize=LABEL)
    axes.set_ylabel("true class", fontsize=LABEL)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PALE, linewidth=min(0.8, 0.02 * cell))
    axes.tick_params(which="both", length=0)
