"""What the dimensions of a capsule stand for: Figure 4 of Sabour, Frosst and Hinton (2017), as a sheet and moving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.figures.animation import signed, write_animation
from capsnet.figures.dimensions import Tweaks, tweak
from capsnet.figures.effects import EFFECTS
from capsnet.figures.grid import cell_height, draw_grid
from capsnet.figures.style import BLACK, BLUE, GREY, SMALL, TINY, TITLE, class_names, keep_numbers, page, wrapped
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 24  # letters of a class's name in a title
CELL, WIDEST, TALLEST = 0.5, 13.0, 40.0  # inches: a cell where there is room, and the whole grid
LEFT, RIGHT, HEAD = 1.35, 2.1, 0.5  # inches beside the grid and above it
NUMBER = 0.45  # inches that the number above a column takes
POINTS = 72  # an inch
CAPTION = (
    "A number is added to one dimension of one capsule; all else stays as it is, and in the framed column nothing is "
    "added. Ink: how far the other drawings of a row are from that one, on average, summed over pixels; the rows are "
    "sorted by it. A word names the effect, as measured in the first drawing and the last, in pixels (contrast from 0 "
    "to 1): of the effects that steadily grow or shrink by a pixel or more, it alone explains 40 % or more of how the "
    "row changes, and 1.5 times as much as any other. Thickness and contrast do not compete, nor does loop size with "
    "width and height. Slant is how far the top leans over to the right of the "
    "bottom, loop size is a radius, and shifts are to the right and up."
)


def draw_tweaks(
    network: CapsNet,
    images: ImageSet,
    classes: tuple[str, ...],
    path: Path,
    *,
    label: int = 0,
    image: int | None = None,
    extent: float = 0.25,
    step: float = 0.05,
    dimensions: Sequence[int] | None = None,
) -> Path:
    """Draw what the dimensions of a class's capsule do, a row each; the numbers are beside the picture, as JSON.

    Raises InputError as `dimensions.tweak` does, and where there is not one name for each class.
    """
    told = tweak(network, images, label=label, image=image, extent=extent, step=step, dimensions=dimensions)
    names = _names(network, classes)
    _draw(told, names, len(images), path)
    keep_numbers(path, _numbers(told, classes, len(images)))
    return path


def animate_tweaks(
    network: CapsNet,
    images: ImageSet,
    classes: tuple[str, ...],
    path: Path,
    *,
    label: int = 0,
    image: int | None = None,
    extent: float = 0.25,
    step: float = 0.05,
    dimensions: Sequence[int] | None = None,
) -> Path:
    """Write a GIF of what `draw_tweaks` draws, all dimensions side by side, from -extent to extent and back.

    Raises InputError as `draw_tweaks` does.
    """
    told = tweak(network, images, label=label, image=image, extent=extent, step=step, dimensions=dimensions)
    title = f"Capsule {_names(network, classes)[label]}, with this added to one dimension:".replace(r"\$", "$")
    labels = [f"dim {k}\n{effect or ''}" for k, effect in zip(told.dimensions, told.effects, strict=True)]
    return write_animation(told.reconstructions, labels, title, told.offsets, path)


def _names(network: CapsNet, classes: tuple[str, ...]) -> list[str]:
    if len(classes) != network.classes:
        raise InputError(f"the network tells {network.classes} classes apart, but there are {len(classes)} names")
    return class_names(classes, LONGEST)


def _numbers(told: Tweaks, classes: tuple[str, ...], n: int) -> dict[str, Any]:
    """What the sheet shows, for JSON; sizes in pixels, at each offset."""
    rows = [
        {
            "dimension": dimension,
            "ink": round(ink, 4),
            "effect": effect,
            "sizes": dict(zip(EFFECTS, sizes.round(decimals=3).T.tolist(), strict=True)),
        }
        for dimension, ink, effect, sizes in zip(told.dimensions, told.ink, told.effects, told.sizes, strict=True)
    ]
    about = {"n": 1, "images": n, "image": told.place, "label": classes[told.truth], "drawn": classes[told.label]}
    about |= {"prediction": classes[told.prediction], "lengths": told.lengths.tolist()}
    return about | {"offsets": told.offsets, "dimensions": rows}


def _draw(told: Tweaks, names: list[str], n: int, path: Path) -> None:
    rows, columns, _, h, w = told.reconstructions.shape
    tall = cell_height(h, w)
    cell = min(CELL, WIDEST / columns, TALLEST / (rows * tall))  # inches across
    width, height = cell * columns, cell * tall * rows
    readable = LEFT + max(width, 8 * CELL) + RIGHT
    labels = [f"dim {k}   ink {ink:.1f}" for k, ink in zip(told.dimensions, told.ink, strict=True)]
    with page(path, width, height) as figure:
        axes = draw_grid(figure, told.reconstructions, (0, 0), cell, labels)
        axes.tick_params("y", labelsize=min(SMALL, 0.8 * cell * tall * POINTS))
        _mark_columns(axes, told.offsets, cell)
        _name_effects(axes, told, cell * tall * POINTS)
        _draw_head(figure, told, names, n, readable)
        below = -0.12 / height
        figure.text(-LEFT / width, below, wrapped(CAPTION, readable, SMALL), fontsize=SMALL, va="top", color=GREY)


def _mark_columns(axes: Axes, offsets: list[float], cell: float) -> None:
    """Write above the columns what is added, and frame the one with nothing added."""
    from matplotlib.patches import Rectangle

    middle = len(offsets) // 2
    upright = cell < NUMBER
    axes.set_xticks(range(len(offsets)), [signed(offset) for offset in offsets], rotation=90 if upright else 0)
    axes.xaxis.tick_top()
    axes.tick_params("x", labelsize=SMALL if cell > SMALL / POINTS else TINY, pad=2, labelcolor=GREY)
    axes.get_xticklabels()[middle].set(color=BLUE)
    lower, upper = axes.get_ylim()
    corner = middle - 0.5, upper
    axes.add_patch(Rectangle(corner, 1, lower - upper, fill=False, edgecolor=BLUE, linewidth=2, clip_on=False))


def _name_effects(axes: Axes, told: Tweaks, cell: float) -> None:
    """Write at the right of each row of so many points the effect that is clear, and its first and last length."""
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    for row, effect in enumerate(told.effects):
        if effect:
            first, last = (f"{told.sizes[row, k, EFFECTS.index(effect)]:.1f}" for k in (0, -1))
            text, size = f"{effect}  {first} → {last}", min(SMALL, 0.8 * cell)
            axes.annotate(text, (1, row), (6, 0), fontsize=size, color=BLACK, **at)


def _draw_head(figure: Figure, told: Tweaks, names: list[str], n: int, readable: float) -> None:
    """Draw the image at the upper left, above the rows' names, and say what it is."""
    (width, height), (h, w) = figure.get_size_inches(), told.image.shape[-2:]
    tall = CELL * cell_height(h, w)
    top = height + max(HEAD, tall) + 0.1
    draw_grid(figure, told.image[None, None], (-LEFT, top - tall), CELL, [""])
    text = f"{told.place:,} of n = {n:,} images: label {names[told.truth]}, predicted {names[told.prediction]}"
    text = f"Image {text}, length of the drawn capsule {told.lengths[told.label]:.2f}"
    title = wrapped(f"What the dimensions of capsule {names[told.label]} draw", readable, 1.15 * TITLE)
    top += 0.12
    lines = wrapped(text, readable, SMALL)
    figure.text(-LEFT / width, top / height, lines, fontsize=SMALL, va="bottom", color=GREY)
    top += 0.08 + 0.14 * (1 + lines.count("\n"))
    figure.text(-LEFT / width, top / height, title, fontsize=TITLE, weight="bold", va="bottom", color=BLACK)
