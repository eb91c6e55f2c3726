"""Which classes a network takes for which."""

from pathlib import Path

import numpy as np

from capsnet.errors import InputError
from capsnet.evaluate import Evaluation
from capsnet.figures.style import BLACK, GREY, LABEL, SMALL, TINY, TITLE, class_names, page, round_numbers, wrapped

LONGEST = 18  # letters of a class's name that fit beside a row
CELL, LEAST, MOST = 0.5, 3.6, 14.0  # inches: a cell where there is room, and the sides of the matrix
DIGIT = 0.66  # width of a digit in its type size


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
    right = np.eye(n, dtype=bool)
    errors = np.where(right | (counts == 0), np.nan, counts)
    side = min(MOST, max(LEAST, CELL * n))
    with page(path, side + 2.6, side + 2.2, layout="constrained") as figure:
        axes = figure.add_subplot()
        axes.imshow(np.where(right, 0.16, np.nan), cmap="Greys", vmin=0, vmax=1)
        most = int(np.nanmax(errors)) if evaluation.errors else 1
        colours = axes.imshow(errors, cmap="cividis_r", norm="log", vmin=1, vmax=max(2, most))
        if evaluation.errors:
            bar = figure.colorbar(colours, ax=axes, shrink=0.7, ticks=round_numbers(1, max(2, most)), format="{x:g}")
            bar.minorticks_off()
            bar.ax.tick_params(labelsize=SMALL)
            bar.set_label("errors: images in a cell off the diagonal", fontsize=SMALL, color=GREY)
        size = min(LABEL, side / n * 72 / (DIGIT * len(str(counts.max())) + 0.4))
        for row, column in np.argwhere(counts.astype(bool) | right) if size >= TINY else ():
            count = counts[row, column]
            dark = row != column and count > max(2, most) ** 0.5  # past the middle of the logarithmic scale
            colour = "white" if dark else GREY if row == column else BLACK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=colour)
        names = class_names(classes, LONGEST)
        size = min(LABEL, side / n * 72 * 0.75)
        upright = max(map(len, names)) > 2
        axes.set_xticks(range(n), names, fontsize=size, rotation=90 if upright else 0)
        axes.set_yticks(range(n), names, fontsize=size)
        axes.set_xlabel("predicted class", fontsize=LABEL)
        axes.set_ylabel("true class", fontsize=LABEL)
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#ececec", linewidth=min(1.0, 0.02 * side / n * 72))
        axes.tick_params(which="both", length=0)
        caption = f"{evaluation.errors:,} errors in n = {evaluation.n:,} images; right answers are on the grey diagonal"
        axes.set_title(wrapped(caption, side, SMALL), fontsize=SMALL, color=GREY, loc="left")
        figure.suptitle("True and predicted classes", fontsize=TITLE, weight="bold", color=BLACK)
    return path
