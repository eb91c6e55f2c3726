"""The confusion matrix: images by true class and predicted class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from capsnet.analysis import style
from capsnet.analysis.style import BLACK, GREY, LABEL, keep_numbers, page
from capsnet.analysis.subject import Context, subject
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL, LEAST, MOST = 0.5, 3.2, 14.0  # inches: a cell if there is room, and the sides of the matrix
DIAGONAL = 0.16  # from white, 0, to black, 1


def plot_confusion(evaluation: Evaluation, classes: tuple[str, ...], path: Path) -> Path:
    """Plot the numbers of images by true class (row) and predicted class (column); only the errors are coloured.

    Right predictions are hundreds of times as many: if they were coloured too, no error would be visible. Counts are
    written in the cells where they fit.
    Raises InputError if there is not one name for each class.
    """
    counts = np.array(evaluation.confusion)
    n = len(counts)
    if len(classes) != n:
        raise InputError(f"the network has {n} classes, but there are {len(classes)} names")
    side = min(MOST, max(LEAST, CELL * n))
    with page(path, side, side) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        _colour(axes, counts)
        _write_counts(axes, counts, side / n * style.POINTS)
        _name(axes, style.class_names(classes), side / n)
        note = f"{evaluation.errors:,} errors in n = {evaluation.n:,} images; the grey diagonal is right"
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
        axes.annotate(note, (0, 1), (0, 6), **style.NOTE, **place)
        axes.annotate("True and predicted classes", (0, 1), (0, 22), **style.HEADING, **place)
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
    scale = axes.inset_axes((1.04, 0.15, 0.03, 0.7))
    bar = axes.figure.colorbar(image, cax=scale, ticks=style.round_numbers(1, max(2, most)), format="{x:g}")
    bar.minorticks_off()
    scale.tick_params(labelsize=style.SMALL)
    bar.set_label("errors in a cell", **style.NOTE)


def _most_errors(counts: np.ndarray) -> int:
    return int((counts - np.diag(np.diag(counts))).max())


def _write_counts(axes: Axes, counts: np.ndarray, cell: float) -> None:
    """Write the counts, except errors of zero, into cells of `cell` points, if they fit."""
    size = min(LABEL, cell / (style.LETTER * len(str(counts.max())) + 0.4))
    if size < style.TINY:
        return
    middle = max(2, _most_errors(counts)) ** 0.5  # of the logarithmic scale: colours beyond it are dark
    for row, column in np.argwhere((counts > 0) | np.eye(len(counts), dtype=bool)):
        count = counts[row, column]
        colour = GREY if row == column else "white" if count > middle else BLACK
        axes.text(column, row, str(count), ha="center", va="center_baseline", fontsize=size, color=colour)


def _name(axes: Axes, names: list[str], cell: float) -> None:
    """Name rows and columns of cells of `cell` inches; columns are named vertically where a name is too wide."""
    n, size = len(names), min(LABEL, 0.75 * cell * style.POINTS)
    axes.set_xticks(range(n), names, fontsize=size, rotation=style.rotation(names, cell, size))
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set_xlabel("predicted class", fontsize=LABEL)
    axes.set_ylabel("true class", fontsize=LABEL)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=style.PALE, linewidth=min(0.8, 0.02 * cell * style.POINTS))
    axes.tick_params(which="both", length=0)


@subject(
    {
        "confusion.png": "Test images by true class (row) and predicted class (column). Errors, off the diagonal, are "
        "coloured.",
    },
)
def confusion(context: Context) -> Iterator[Path]:
    """Plot the confusion matrix of the test images."""
    yield plot_confusion(context.predictions.evaluation(), context.data.classes, context.folder / "confusion.png")
