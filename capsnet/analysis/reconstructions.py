"""Test images and their reconstructions: Figure 3 of Sabour, Frosst and Hinton (2017), and the same for the errors."""

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
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import MaskedBy, predict_batches
from capsnet.losses import squared_errors
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL, GAP = 1.0, 0.3  # inches: an image and its gutter, and the space below a row of images and their reconstructions
LINE = 0.15  # inches from one line of an image's title to the next
TITLES = "Above each image: label → prediction and the length of the predicted capsule"
OF_ALL = (
    f"{TITLES}; errors have ✗ and a frame. "
    "An image is reconstructed from the capsule of the predicted class, with all others set to zero, without the label."
)
OF_ERRORS = (
    f"{TITLES}. Below are two reconstructions, each from one capsule, with all others set to zero: that of the "
    "predicted class and that of the true class."
)


def plot_reconstructions(
    network: CapsNet,
    images: ImageSet,
    classes: tuple[str, ...],
    path: Path,
    *,
    count: int = 20,
    columns: int = 10,
    predictions: Tensor | None = None,
) -> Path:
    """Plot the first images of a set above their reconstructions; write the numbers next to the figure, as JSON.

    An image is reconstructed from the capsule of the predicted class, without the label. With the `predictions` [n] of
    the whole set, the images are the first that are misclassified, and a second reconstruction of each is from the
    capsule of its true class. Squared errors are summed over pixels.
    Raises InputError for a network without decoder, a set without images, and a count or columns below 1.
    """
    network.check_decoder()
    if not len(images):
        raise InputError("there are no images to plot")
    if count < 1 or columns < 1:
        raise InputError(f"a figure has at least one image and one column, not {count} and {columns}")
    labels, errors_only = images.labels.cpu(), predictions is not None
    chosen = torch.ones_like(labels) if predictions is None else predictions.cpu() != labels
    places = chosen.nonzero().flatten()[:count]
    shown: list[dict[str, Any]] = []
    if len(places):
        tiles, shown = _reconstruct(network, images, places, errors_only)
        which = f"The first {len(shown)}" if len(shown) == count else f"All {len(shown)}"
        title = f"{which}{' misclassified' * errors_only} of n = {len(images):,} images and their reconstructions"
        _plot(tiles, shown, style.class_names(classes, style.SHORT), path, min(columns, len(shown)), title)
    else:
        with page(path, 6, 1.2) as figure:
            words = f"no errors in n = {len(images):,} images"
            figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=style.TITLE)
    keep_numbers(path, {"n": len(images), "errors_only": errors_only, "shown": shown})
    return path


def _reconstruct(
    network: CapsNet, images: ImageSet, places: Tensor, by_label: bool
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Reconstruct the images at places [n] of a set from the predicted class and, if asked for, from the true class.

    → tiles [rows, n, c, h, w] of the images and their reconstructions, the numbers of each image
    """
    chosen = images.select(places)
    masks: list[MaskedBy] = ["prediction", "label"] if by_label else ["prediction"]
    batches = [
        each for mask in masks for each in predict_batches(network, chosen, masked_by=mask, batch_size=len(chosen))
    ]
    pixels, labels, given = batches[0]
    parts = [pixels, *(each.reconstructions for _, _, each in batches)]
    tiles = torch.stack([part.float().cpu() for part in parts if part is not None])
    labels, lengths = labels.cpu(), given.scores.float().cpu()
    numbers = {"place": places, "label": labels, "prediction": lengths.argmax(dim=-1)}  # over classes j
    numbers |= {"length": lengths.amax(dim=-1), "length_of_label": lengths[range(len(labels)), labels]}
    for name, made in zip(("squared_error", "squared_error_of_label"), tiles[1:], strict=False):
        numbers[name] = squared_errors(made, tiles[0])
    return tiles, style.records(numbers)


def _plot(tiles: Tensor, shown: list[dict[str, Any]], names: list[str], path: Path, columns: int, title: str) -> None:
    lines, errors_only = 1 if max(map(len, names)) == 1 else 3, len(tiles) == 3
    rows = (
        ["image", "from the\npredicted class", "from the\ntrue class"] if errors_only else ["image", "reconstruction"]
    )
    tall = CELL * style.cell_height(*tiles.shape[-2:]) * len(tiles)  # inches
    band = lines * LINE + tall + GAP
    width, height = max(6.0, columns * CELL), -(-len(shown) // columns) * band
    with page(path, width, height) as figure:
        style.write_title(figure, title, height + GAP)
        style.write_note(figure, OF_ERRORS if errors_only else OF_ALL, 0)
        for start in range(0, len(shown), columns):
            lower = height - (start // columns + 1) * band + GAP
            part = slice(start, start + columns)
            axes = style.plot_grid(figure, tiles[:, part], (0, lower), CELL, rows)
            _mark(axes, shown[part], names, lines, framed=not errors_only)


def _mark(axes: Axes, shown: list[dict[str, Any]], names: list[str], lines: int, *, framed: bool) -> None:
    """Write above each image its label, its prediction and the length of the predicted capsule; mark the errors."""
    words, size = ("{} → {}  {:.2f}", style.SMALL) if lines == 1 else ("{}\n→ {}\n{:.2f}", style.SMALL - 1.5)
    titles = [words.format(names[one["label"]], names[one["prediction"]], one["length"]) for one in shown]
    wrong = [one["label"] != one["prediction"] for one in shown]
    axes.set_xticks(range(len(shown)), ["✗ " * error + title for error, title in zip(wrong, titles, strict=True)])
    axes.tick_params("x", labelsize=size, pad=1)
    for column, label in enumerate(axes.get_xticklabels()):
        if wrong[column]:
            label.set(color=style.VERMILLION, weight="bold")
        if wrong[column] and framed:
            style.frame(axes, 0, column, style.VERMILLION)
            style.frame(axes, 1, column, style.VERMILLION)


images_option = click.option("--images", default=20, show_default=True, help="Number of test images.")
columns_option = click.option("--columns", default=10, show_default=True, help="Number of images side by side.")


@subject(
    {
        "reconstructions.png": "The first test images and, below each, its reconstruction from the capsule of the "
        "predicted class, without the label.",
    },
    needs="decoder",
)
@images_option
@columns_option
def reconstructions(context: Context, images: int = 20, columns: int = 10) -> Iterator[Path]:
    """Plot test images and their reconstructions (Figure 3)."""
    path = context.folder / "reconstructions.png"
    yield plot_reconstructions(*context.on_test, path, count=images, columns=columns)


@subject(
    {
        "errors.png": "The first misclassified test images: reconstructed from the predicted class and from the true "
        "class.",
    },
    needs="decoder",
)
@images_option
@columns_option
def errors(context: Context, images: int = 20, columns: int = 10) -> Iterator[Path]:
    """Plot misclassified test images, reconstructed from the predicted and from the true class."""
    path, predictions = context.folder / "errors.png", context.predictions.predictions
    yield plot_reconstructions(*context.on_test, path, count=images, columns=columns, predictions=predictions)
