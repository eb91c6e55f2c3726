"""The mask matrix: what each class's capsule draws of an image when it alone is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.figures.grid import cell_height, draw_grid, frame
from capsnet.figures.style import (
    BLACK,
    BLUE,
    GREY,
    SMALL,
    TINY,
    TITLE,
    VERMILLION,
    class_names,
    keep_numbers,
    page,
    wrapped,
)
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 18  # letters of a class's name that fit beside a row
MOST = 20  # columns
CELL, TALLEST = 0.62, 40.0  # inches: a cell where there is room, and the whole matrix
ROOMY = 0.45  # inches: a cell that a length can be written in
POINTS = 72  # an inch
LETTER = 0.66  # width of a letter in its type size
CAPTION = (
    "The top row has the images; below, each row keeps the capsule of one class, with all others set to zero. Framed: "
    "the true class (solid, blue) and, where it is another (✗), the predicted class (dashed, orange)."
)
LENGTHS = " The number in a cell is the capsule's length."


def draw_masks(network: CapsNet, images: ImageSet, classes: tuple[str, ...], path: Path, *, per_class: int = 2) -> Path:
    """Draw the first images of each class and what every class's capsule makes of them, the labels taking no part.

    There are at most 20 columns: with more classes than have room in them, the first ones that have images. Lengths
    [n, j] and squared errors [n, j], summed over pixels, of all drawings are beside the picture, as JSON.
    Raises InputError for a network without decoder, a set without images, and `per_class` not in 1 to 20.
    """
    if not 1 <= per_class <= MOST:
        raise InputError(f"a mask matrix has 1 to {MOST} images of a class, not {per_class}")
    if not len(images):
        raise InputError("there are no images to draw")
    places = first_of_each(images.labels.cpu(), per_class)
    device = next(network.parameters()).device
    pixels, labels = next(batches(images.select(places).to(device), MOST))
    lengths, drawings = masked(network, pixels)  # [n, j], [n, j, c, h, w]
    errors = (drawings - pixels.unsqueeze(1)).square().flatten(start_dim=2).sum(dim=-1)  # over pixels
    told = {"place": places, "label": labels, "prediction": lengths.argmax(dim=-1)}  # over classes j
    told |= {"lengths": lengths, "squared_errors": errors}
    columns = [dict(zip(told, one, strict=True)) for one in zip(*(of.tolist() for of in told.values()), strict=True)]
    tiles = torch.cat([pixels.unsqueeze(1), drawings], dim=1).transpose(0, 1).cpu()  # [1 + j, n, c, h, w]
    present = len(images.labels.unique())
    _draw(tiles, columns, class_names(classes, LONGEST), path, _title(columns, len(images), per_class, present))
    keep_numbers(path, {"n": len(images), "classes": list(classes), "shown": columns})
    return path


def first_of_each(labels: Tensor, per_class: int) -> Tensor:
    """Where the first images of each class are, class by class, for as many classes as fill 20 places.

    labels [n] → places [m], m ≤ 20
    """
    kept = labels.unique()[: MOST // per_class]  # sorted
    return torch.cat([(labels == k).nonzero().flatten()[:per_class] for k in kept])


def masked(network: CapsNet, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Draw every capsule alone, all others set to zero (Section 4.1 of Sabour, Frosst and Hinton, 2017).

    images [n, c, h, w] in [0, 1] → lengths [n, j], drawings [n, j, c, h, w]
    """
    with torch.inference_mode():
        capsules = network.encode(pixels)  # [n, j, e]
        kept = (torch.full((len(pixels),), k, device=pixels.device) for k in range(capsules.shape[1]))
        drawings = torch.stack([network.decode(capsules, k) for k in kept], dim=1)
        return torch.linalg.vector_norm(capsules, dim=-1), drawings  # over the capsule's own axis e


def _title(columns: list[dict[str, Any]], n: int, per_class: int, present: int) -> str:
    shown = len({column["label"] for column in columns})
    which = f"{shown} classes" if shown == present else f"the first {shown} of {present} classes"
    images = f"first {per_class} images" if per_class > 1 else "first image"
    return f"What each capsule draws alone, of the {images} of each of {which} (n = {n:,} images)"


def _draw(tiles: Tensor, columns: list[dict[str, Any]], names: list[str], path: Path, title: str) -> None:
    tall = cell_height(*tiles.shape[-2:])
    cell = min(CELL, TALLEST / (len(tiles) * tall))  # inches across
    width, height = cell * len(columns), cell * tall * len(tiles)
    readable = max(6.0, width)  # inches
    with page(path, width, height) as figure:
        axes = draw_grid(figure, tiles, (0, 0), cell, ["image", *names])
        axes.tick_params("y", labelsize=min(SMALL, 0.8 * cell * tall * POINTS))
        _name_columns(axes, columns, names, cell * POINTS)
        _frame(axes, columns)
        caption = CAPTION
        if cell * min(1.0, tall) >= ROOMY:
            _write_lengths(axes, columns)
            caption += LENGTHS
        title = wrapped(title, readable, 1.15 * TITLE)  # bold is wider
        axes.set_title(title, loc="left", fontsize=TITLE, weight="bold", color=BLACK)
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(wrapped(caption, readable, SMALL), (0, 0), (0, -8), va="top", fontsize=SMALL, color=GREY, **place)


def _name_columns(axes: Axes, columns: list[dict[str, Any]], names: list[str], cell: float) -> None:
    """Write above each column of so many points its true class, with a mark where it was taken for another."""
    wrong = [column["label"] != column["prediction"] for column in columns]
    titles = ["✗ " * error + names[column["label"]] for error, column in zip(wrong, columns, strict=True)]
    upright = LETTER * SMALL * max(map(len, titles)) > cell
    axes.set_xticks(range(len(columns)), titles, fontsize=SMALL, rotation=90 if upright else 0)
    axes.xaxis.tick_top()
    axes.tick_params("x", pad=2)
    for error, label in zip(wrong, axes.get_xticklabels(), strict=True):
        label.set(color=VERMILLION if error else BLACK)


def _frame(axes: Axes, columns: list[dict[str, Any]]) -> None:
    """Frame the true classes and, where they are others, the predicted ones."""
    for k, column in enumerate(columns):
        frame(axes, 1 + column["label"], k, BLUE)
        if column["prediction"] != column["label"]:
            frame(axes, 1 + column["prediction"], k, VERMILLION, dashes="--")


def _write_lengths(axes: Axes, columns: list[dict[str, Any]]) -> None:
    """Write every capsule's length in the upper left corner of its drawing."""
    from matplotlib.patheffects import withStroke

    outlined = [withStroke(linewidth=1, foreground="black")]  # readable on light drawings too
    for k, column in enumerate(columns):
        for j, length in enumerate(column["lengths"]):
            corner = k - 0.4, 1 + j - 0.4
            axes.text(*corner, f"{length:.2f}", fontsize=TINY, color="white", va="top", path_effects=outlined)
