"""The mask matrix: images, reconstructed from the capsule of every class alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from capsnet.analysis import style
from capsnet.analysis.style import keep_numbers, page
from capsnet.analysis.subject import Context, subject
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.losses import squared_errors
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 20  # columns
CELL, TALLEST = 0.62, 40.0  # inches: a cell if there is room, and the whole matrix
ROOMY = 0.45  # inches: a cell that a length can be written in
NOTE = (
    "The top row has the images; below, each row keeps the capsule of one class, with all others set to zero. Framed: "
    "the true class (solid, blue) and, if it is another one (✗), the predicted class (dashed, orange)."
)
LENGTHS = " The number in a cell is the capsule's length."


def plot_masks(network: CapsNet, images: ImageSet, classes: tuple[str, ...], path: Path, *, per_class: int = 2) -> Path:
    """Plot the first images of each class above their reconstructions from every class's capsule, without the labels.

    There are at most 20 columns; if the classes need more, the first classes that have images are shown. Lengths
    [n, j] and squared errors [n, j], summed over pixels, of all reconstructions are written next to the figure, as
    JSON.
    Raises InputError for a network without decoder, a set without images, and `per_class` not in 1 to 20.
    """
    if not 1 <= per_class <= MOST:
        raise InputError(f"a mask matrix has 1 to {MOST} images of a class, not {per_class}")
    if not len(images):
        raise InputError("there are no images to plot")
    places = first_of_each(images.labels.cpu(), per_class)
    device = next(network.parameters()).device
    pixels, labels = next(batches(images.select(places).to(device), MOST))
    lengths, made = reconstruct_each(network, pixels)  # [n, j], [n, j, c, h, w]
    numbers = {"place": places, "label": labels, "prediction": lengths.argmax(dim=-1), "lengths": lengths}  # over j
    numbers["squared_errors"] = torch.stack([squared_errors(of_class, pixels) for of_class in made.unbind(1)], dim=1)
    columns = style.records(numbers)
    tiles = torch.cat([pixels.unsqueeze(1), made], dim=1).transpose(0, 1).cpu()  # [1 + j, n, c, h, w]
    present = len(images.labels.unique())
    _plot(tiles, columns, style.class_names(classes), path, _title(columns, len(images), per_class, present))
    keep_numbers(path, {"n": len(images), "classes": list(classes), "shown": columns})
    return path


def first_of_each(labels: Tensor, per_class: int) -> Tensor:
    """The places of the first images of each class, class by class, for as many classes as fill 20 places.

    labels [n] → places [m], m ≤ 20
    """
    kept = labels.unique()[: MOST // per_class]  # sorted
    return torch.cat([(labels == k).nonzero().flatten()[:per_class] for k in kept])


def reconstruct_each(network: CapsNet, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct from every capsule, all others set to zero (Section 4.1 of Sabour, Frosst and Hinton, 2017).

    images [n, c, h, w] in [0, 1] → lengths [n, j], reconstructions [n, j, c, h, w]
    """
    with torch.inference_mode():
        capsules = network.encode(pixels)  # [n, j, e]
        kept = (torch.full((len(pixels),), k, device=pixels.device) for k in range(capsules.shape[1]))
        made = torch.stack([network.decode(capsules, k) for k in kept], dim=1)
        return torch.linalg.vector_norm(capsules, dim=-1), made  # over the capsule's own axis e


def _title(columns: list[dict[str, Any]], n: int, per_class: int, present: int) -> str:
    shown = len({column["label"] for column in columns})
    which = f"{shown} classes" if shown == present else f"the first {shown} of {present} classes"
    images = f"first {per_class} images" if per_class > 1 else "first image"
    return f"Reconstructions from each capsule alone, for the {images} of each of {which} (n = {n:,} images)"


def _plot(tiles: Tensor, columns: list[dict[str, Any]], names: list[str], path: Path, title: str) -> None:
    tall = style.cell_height(*tiles.shape[-2:])
    cell = min(CELL, TALLEST / (len(tiles) * tall))  # inches across
    width, height = cell * len(columns), cell * tall * len(tiles)
    readable = max(6.0, width)  # inches
    with page(path, width, height) as figure:
        axes = style.plot_grid(figure, tiles, (0, 0), cell, ["image", *names])
        axes.tick_params("y", labelsize=min(style.SMALL, 0.8 * cell * tall * style.POINTS))
        _name_columns(axes, columns, names, cell)
        _frame(axes, columns)
        roomy = cell * min(1.0, tall) >= ROOMY
        if roomy:
            _write_lengths(axes, columns)
        axes.set_title(style.wrapped(title, readable, 1.15 * style.TITLE), loc="left", **style.HEADING)
        style.write_note(figure, NOTE + LENGTHS * roomy, -8 / style.POINTS, width=readable)


def _name_columns(axes: Axes, columns: list[dict[str, Any]], names: list[str], cell: float) -> None:
    """Write above each column, `cell` inches wide, its true class, with a mark where the prediction is another."""
    wrong = [column["label"] != column["prediction"] for column in columns]
    titles = ["✗ " * error + names[column["label"]] for error, column in zip(wrong, columns, strict=True)]
    axes.set_xticks(range(len(columns)), titles, fontsize=style.SMALL, rotation=style.rotation(titles, cell))
    for error, label in zip(wrong, axes.get_xticklabels(), strict=True):
        label.set(color=style.VERMILLION if error else style.BLACK)


def _frame(axes: Axes, columns: list[dict[str, Any]]) -> None:
    """Frame the true classes and, if they are others, the predicted ones."""
    for k, column in enumerate(columns):
        style.frame(axes, 1 + column["label"], k, style.BLUE)
        if column["prediction"] != column["label"]:
            style.frame(axes, 1 + column["prediction"], k, style.VERMILLION, dashes="--")


def _write_lengths(axes: Axes, columns: list[dict[str, Any]]) -> None:
    """Write every capsule's length in the upper left corner of its reconstruction."""
    from matplotlib.patheffects import withStroke

    outlined = [withStroke(linewidth=1, foreground="black")]  # readable on light images too
    for k, column in enumerate(columns):
        for j, length in enumerate(column["lengths"]):
            corner = k - 0.4, 1 + j - 0.4
            axes.text(*corner, f"{length:.2f}", fontsize=style.TINY, color="white", va="top", path_effects=outlined)


@subject(
    {
        "masks.png": "The mask matrix: test images and, below each, its reconstruction from the capsule of every "
        "class alone.",
    },
    needs="decoder",
)
@click.option("--per-class", default=2, show_default=True, help="Number of test images of each class.")
def masks(context: Context, per_class: int = 2) -> Iterator[Path]:
    """Plot, for test images, the reconstruction from the capsule of every class."""
    yield plot_masks(*context.on_test, context.folder / "masks.png", per_class=per_class)
