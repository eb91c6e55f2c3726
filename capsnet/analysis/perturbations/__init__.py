"""What the dimensions of a capsule stand for: Figure 4 of Sabour, Frosst and Hinton (2017), and an animation of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from PIL import Image

from capsnet.analysis import style
from capsnet.analysis.perturbations.effects import EFFECTS
from capsnet.analysis.perturbations.measure import Perturbations, measure_perturbations
from capsnet.analysis.style import BLACK, BLUE, GREY, SMALL, keep_numbers, page
from capsnet.analysis.subject import Context, subject
from capsnet.errors import InputError
from capsnet.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

CELL, WIDEST, TALLEST = 0.5, 13.0, 40.0  # inches: a cell if there is room, and the whole grid
LEFT, RIGHT, HEAD = 1.45, 2.1, 0.5  # inches at the left and the right of the grid, and above it
NUMBER = 0.45  # inches that the number above a column takes
CAPTION = (
    "A number is added to one dimension of one capsule; in the framed column nothing is added. Change: absolute "
    "difference from that column, averaged over the others and summed over pixels; the rows are sorted by it. A word "
    "names an effect, with its size in the first and the last image, in pixels (contrast from 0 to 1). It is named if "
    "it steadily grows or shrinks by a pixel or more, and alone explains at least 40 % of the row's change and 1.5 "
    "times as much as any other effect; thickness is not compared with contrast, nor loop size with width and height. "
    "Slant is how far the top is to the right of the bottom, loop size is a radius, and shifts are to the right and up."
)
TILE, ABOVE = 0.95, 0.38  # inches, in the animation: a cell, and the names above it
PAUSE = 120  # milliseconds per frame
LEVELS = 32  # of brightness in the animation: with more, invisible noise makes the file large


def plot_perturbations(measured: Perturbations, classes: tuple[str, ...], path: Path) -> Path:
    """Plot the reconstructions of all dimensions, a row each; write the numbers next to the figure, as JSON.

    Raises InputError if there is not one name for each class.
    """
    rows, columns, _, h, w = measured.reconstructions.shape
    names, tall = _class_names(measured, classes), style.cell_height(h, w)
    cell = min(CELL, WIDEST / columns, TALLEST / (rows * tall))  # inches across
    width, height = cell * columns, cell * tall * rows
    readable = LEFT + max(width, 8 * CELL) + RIGHT
    labels = [f"dim {k}   change {change:.1f}" for k, change in zip(measured.dimensions, measured.change, strict=True)]
    with page(path, width, height) as figure:
        axes = style.plot_grid(figure, measured.reconstructions, (0, 0), cell, labels)
        axes.tick_params("y", labelsize=min(SMALL, 0.8 * cell * tall * style.POINTS))
        _mark_columns(axes, measured.offsets, cell)
        _name_effects(axes, measured, cell * tall * style.POINTS)
        _plot_head(figure, measured, names, readable)
        style.write_note(figure, CAPTION, -0.12, -LEFT, readable)
    keep_numbers(path, _numbers(measured, classes))
    return path


def animate_perturbations(measured: Perturbations, classes: tuple[str, ...], path: Path) -> Path:
    """Write a GIF of the reconstructions of all dimensions side by side, from the first offset to the last and back.

    Above each is its dimension, and its effect where one is clear. The same numbers make the same bytes.
    Raises InputError if there is not one name for each class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = _class_names(measured, classes)[measured.label]
    names = [f"{effect or ''}\ndim {k}" for k, effect in zip(measured.dimensions, measured.effects, strict=True)]
    tiles = (measured.reconstructions.clamp(0, 1) * (LEVELS - 1)).round() / (LEVELS - 1)  # [n, t, c, h, w]
    columns, band = ceil(sqrt(len(tiles))), ABOVE + TILE * style.cell_height(*tiles.shape[-2:])
    width, height = max(5.5, columns * TILE + 0.3), band * ceil(len(tiles) / columns) + 0.9
    figure = Figure((width, height), dpi=100, facecolor="white")
    canvas, grids = FigureCanvasAgg(figure), []
    for start in range(0, len(tiles), columns):
        row, corner = slice(start, start + columns), (0.1, height - 0.8 - (start // columns + 1) * band)
        grids.append((row, style.plot_grid(figure, tiles[None, row, 0], corner, TILE, [""])))
        grids[-1][1].set_xticks(range(len(names[row])), names[row], fontsize=SMALL)
    style.write_title(figure, f"Capsule {name}, with this added to one dimension:", height - 0.3, 0.1)
    mark, number = _plot_scale(figure, measured.offsets)
    frames = []
    for k, offset in enumerate(measured.offsets):
        mark.set_data([offset], [0])
        number.set_text(_signed(offset))
        for row, axes in grids:
            axes.images[0].set_data(style.composed(tiles[None, row, k]).numpy())
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB" if tiles.shape[2] == 3 else "L"))
    frames += frames[-2:0:-1]
    with atomic_write(path) as part:
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=PAUSE, loop=0)
    return path


def _class_names(measured: Perturbations, classes: tuple[str, ...]) -> list[str]:
    if len(classes) != len(measured.lengths):
        raise InputError(f"the network has {len(measured.lengths)} classes, but there are {len(classes)} names")
    return style.class_names(classes)


def _numbers(measured: Perturbations, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the figure shows, for JSON; sizes in pixels, at each offset."""
    each = zip(measured.dimensions, measured.change, measured.effects, measured.sizes, strict=True)
    rows = [
        {
            "dimension": dimension,
            "change": round(change, 4),
            "effect": effect,
            "sizes": dict(zip(EFFECTS, sizes.round(decimals=3).T.tolist(), strict=True)),
        }
        for dimension, change, effect, sizes in each
    ]
    about = {"n": 1, "images": measured.n, "image": measured.place, "label": classes[measured.truth]}
    about |= {"capsule": classes[measured.label], "prediction": classes[measured.prediction]}
    return about | {"lengths": measured.lengths.tolist(), "offsets": measured.offsets, "dimensions": rows}


def _mark_columns(axes: Axes, offsets: list[float], cell: float) -> None:
    """Write above the columns what is added, and frame the one with nothing added."""
    from matplotlib.patches import Rectangle

    middle = len(offsets) // 2
    axes.set_xticks(range(len(offsets)), [_signed(offset) for offset in offsets], rotation=90 if cell < NUMBER else 0)
    axes.tick_params("x", labelsize=SMALL if cell > SMALL / style.POINTS else style.TINY, labelcolor=GREY)
    axes.get_xticklabels()[middle].set(color=BLUE)
    lower, upper = axes.get_ylim()
    corner = middle - 0.5, upper
    axes.add_patch(Rectangle(corner, 1, lower - upper, fill=False, edgecolor=BLUE, linewidth=2, clip_on=False))


def _name_effects(axes: Axes, measured: Perturbations, cell: float) -> None:
    """Write at the right of each row, `cell` points high, the effect that is clear, and its first and last size."""
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    for row, effect in enumerate(measured.effects):
        if effect:
            first, last = (f"{measured.sizes[row, k, EFFECTS.index(effect)]:.1f}" for k in (0, -1))
            text, size = f"{effect}  {first} → {last}", min(SMALL, 0.8 * cell)
            axes.annotate(text, (1, row), (6, 0), fontsize=size, color=BLACK, **at)


def _plot_head(figure: Figure, measured: Perturbations, names: list[str], readable: float) -> None:
    """Plot the image at the upper left, above the rows' names, and say what it is."""
    (width, height), (h, w) = figure.get_size_inches(), measured.image.shape[-2:]
    tall = CELL * style.cell_height(h, w)
    top = height + max(HEAD, tall) + 0.1
    style.plot_grid(figure, measured.image[None, None], (-LEFT, top - tall), CELL, [""])
    text = (
        f"Image {measured.place:,} of n = {measured.n:,} images: label {names[measured.truth]}, predicted "
        f"{names[measured.prediction]}, length of the perturbed capsule {measured.lengths[measured.label]:.2f}"
    )
    lines = style.wrapped(text, readable, SMALL)
    figure.text(-LEFT / width, (top + 0.12) / height, lines, va="bottom", **style.NOTE)
    title = f"What the dimensions of capsule {names[measured.label]} stand for"
    style.write_title(figure, title, top + 0.2 + 0.14 * (1 + lines.count("\n")), -LEFT, readable)


def _plot_scale(figure: Figure, offsets: list[float]) -> tuple[Line2D, Text]:
    """Plot the range of the offsets below the title; return the mark and the number of the one that is shown."""
    y = 1 - 0.6 / figure.get_figheight()
    scale = figure.add_axes((0.2, y, 0.7, 0.2 / figure.get_figheight()))
    scale.set_axis_off()
    scale.plot(offsets, [0] * len(offsets), color=GREY)
    (mark,) = scale.plot([], [], "s", color=BLACK)
    return mark, figure.text(0.02, y, "", fontsize=style.TITLE)


def _signed(offset: float) -> str:
    """A number with its sign; zero has none."""
    return f"{offset:+.3g}" if offset else "0"


@subject(
    {
        "perturbations-*.png": "Reconstructions from one capsule, with a number added to one of its dimensions and "
        "all else unchanged. Rows are sorted by how much they change; a word names the effect where one is clear.",
    },
    needs="decoder",
)
@click.option("--class", "name", metavar="NAME", help="The class whose capsule is perturbed. All classes by default.")
@click.option(
    "--range",
    "extent",
    default=0.25,
    show_default=True,
    help="Largest number that is added to a dimension, or subtracted.",
)
@click.option("--step", default=0.05, show_default=True, help="Difference from one number to the next.")
@click.option(
    "--image",
    type=int,
    metavar="N",
    help="Index of a test image, from 0. By default the first of the class that is classified right.",
)
@click.option(
    "--dimension",
    "dimensions",
    type=int,
    multiple=True,
    metavar="N",
    help="A dimension to perturb, counted from 0; repeatable. All dimensions by default.",
)
def perturbations(
    context: Context,
    name: str | None = None,
    extent: float = 0.25,
    step: float = 0.05,
    image: int | None = None,
    dimensions: Sequence[int] = (),
) -> Iterator[Path]:
    """Plot what each dimension of a class's capsule stands for (Figure 4), and animate it."""
    network, images, classes = context.on_test
    if name is not None and name not in classes:
        raise InputError(f"no class {name!r} in {context.data.name}: its classes are {', '.join(classes)}")
    present = images.labels.unique().tolist() if image is None else range(len(classes))
    labels = present if name is None else [classes.index(name)]
    for label in labels:
        path = context.folder / f"perturbations-{label}.png"
        options: dict[str, Any] = {"label": label, "image": image, "extent": extent, "step": step}
        measured = measure_perturbations(network, images, dimensions=dimensions or None, **options)
        yield plot_perturbations(measured, classes, path)
        yield animate_perturbations(measured, classes, path.with_suffix(".gif"))
