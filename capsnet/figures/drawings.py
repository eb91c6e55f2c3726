"""Images and what the network draws of them, as in Figure 3 of Sabour, Frosst and Hinton (2017)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import predict_batches
from capsnet.figures.grid import cell_height, draw_grid, frame
from capsnet.figures.style import (
    BLACK,
    GREY,
    SMALL,
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

LONGEST = 13  # letters of a class's name that fit above an image
CELL, GAP = 1.0, 0.3  # inches: an image and its gutter, and the space below a row of images and their drawings
LINE = 0.15  # inches from one line of an image's title to the next
TITLES = "Above each image: label → prediction and the length of the predicted capsule"
BY_PREDICTION = (
    f"{TITLES}; errors have ✗ and a frame. "
    "Drawn is the capsule of the prediction, with all others set to zero: the label takes no part."
)
BY_BOTH = (
    f"{TITLES}. Below are two drawings, each of one capsule, with all others set to zero: that of the predicted class "
    "and that of the true class."
)


class Told(NamedTuple):
    """An image and the network's answer, drawn from the capsule of that answer."""

    place: int
    """Where in the set the image is."""
    image: Tensor  # [c, h, w]
    drawing: Tensor  # [c, h, w]
    label: int
    prediction: int
    lengths: Tensor  # [j]


def draw_drawings(
    network: CapsNet,
    images: ImageSet,
    classes: tuple[str, ...],
    path: Path,
    *,
    count: int = 20,
    columns: int = 10,
    errors_only: bool = False,
) -> Path:
    """Draw the first images of a set over the network's drawings of them; its numbers are beside the picture, as JSON.

    What is drawn is the capsule of the network's prediction; the label takes no part in it. With `errors_only` it is
    the first misclassified images, and a second drawing of each is that of the true class's capsule. Squared errors of
    drawings are summed over pixels.
    Raises InputError for a network without decoder, a set without images, and counts below 1.
    """
    _check(network, images, count, columns)
    seen = images if errors_only else images.select(torch.arange(min(count, len(images))))
    with closing(_told(network, seen, errors_only)) as told:
        shown = list(islice(told, count))
    rows = _rows(network, images, shown, errors_only) if shown else {}
    if shown:
        which = f"The first {len(shown)}" if len(shown) == count else f"All {len(shown)}"
        title = f"{which}{' misclassified' * errors_only} of n = {len(images):,} images and their drawings"
        _draw(shown, rows, class_names(classes, LONGEST), path, min(columns, len(shown)), title)
    else:
        with page(path, 6, 1.2) as figure:
            figure.text(0.5, 0.5, f"no errors in n = {len(images):,} images", ha="center", va="center", fontsize=TITLE)
    keep_numbers(path, {"n": len(images), "errors_only": errors_only, "shown": _numbers(shown, rows)})
    return path


def _check(network: CapsNet, images: ImageSet, count: int, columns: int) -> None:
    network.check_decoder()
    if not len(images):
        raise InputError("there are no images to draw")
    if count < 1 or columns < 1:
        raise InputError(f"a picture has at least one image and one column, not {count} and {columns}")


def _told(network: CapsNet, images: ImageSet, errors_only: bool) -> Generator[Told]:
    """Go through a set in order, on the network's device."""
    place = 0
    for pixels, labels, given in predict_batches(network, images):
        places = range(place, place := place + len(labels))
        drawings = given.reconstructions.float().cpu()  # type: ignore[union-attr]
        lengths, predictions = given.scores.float().cpu(), given.predictions.tolist()
        told = zip(places, pixels.cpu(), drawings, labels.tolist(), predictions, lengths, strict=True)
        yield from (one for one in map(Told._make, told) if not errors_only or one.label != one.prediction)


def _rows(network: CapsNet, images: ImageSet, shown: list[Told], by_both: bool) -> dict[str, Tensor]:
    """The rows of the picture, by name: images, drawings and, where asked for, those of the true classes' capsules.

    Each of them is [n, c, h, w].
    """
    rows = {"image": torch.stack([one.image for one in shown])}
    drawings = torch.stack([one.drawing for one in shown])
    if not by_both:
        return rows | {"drawing": drawings}
    wrong = images.select(torch.tensor([one.place for one in shown]))
    given = [given.reconstructions for _, _, given in predict_batches(network, wrong, masked_by="label")]
    of_labels = torch.cat(given).float().cpu()  # type: ignore[arg-type]
    return rows | {"drawing of the\npredicted class": drawings, "drawing of the\ntrue class": of_labels}


def _numbers(shown: list[Told], rows: dict[str, Tensor]) -> list[dict[str, Any]]:
    """What each image is, was taken for, and how far off its drawings are."""
    numbers = []
    for k, one in enumerate(shown):
        about = {"place": one.place, "label": one.label, "prediction": one.prediction}
        lengths = {"length": float(one.lengths[one.prediction]), "length_of_label": float(one.lengths[one.label])}
        squares = [float((drawings[k] - one.image).square().sum()) for drawings in list(rows.values())[1:]]
        errors = dict(zip(("squared_error", "squared_error_of_label"), squares, strict=False))
        numbers.append(about | lengths | errors)
    return numbers


def _draw(shown: list[Told], rows: dict[str, Tensor], names: list[str], path: Path, columns: int, title: str) -> None:
    lines, by_both = 1 if max(map(len, names)) == 1 else 3, len(rows) == 3
    tiles = torch.stack(list(rows.values()))  # [rows, n, c, h, w]
    tall = CELL * cell_height(*tiles.shape[-2:]) * len(rows)  # inches
    band = lines * LINE + tall + GAP
    width, height = max(6.0, columns * CELL), -(-len(shown) // columns) * band
    with page(path, width, height) as figure:
        title = wrapped(title, width, 1.15 * TITLE)  # bold is wider
        figure.text(0, 1 + GAP / height, title, fontsize=TITLE, weight="bold", va="bottom", color=BLACK)
        caption = wrapped(BY_BOTH if by_both else BY_PREDICTION, width, SMALL)
        figure.text(0, 0, caption, fontsize=SMALL, va="top", color=GREY)
        for start in range(0, len(shown), columns):
            lower = height - (start // columns + 1) * band + GAP
            part = slice(start, start + columns)
            axes = draw_grid(figure, tiles[:, part], (0, lower), CELL, list(rows))
            _entitle(axes, shown[part], names, lines)
            if not by_both:  # there all are errors
                _frame_errors(axes, shown[part])


def _entitle(axes: Axes, shown: list[Told], names: list[str], lines: int) -> None:
    """Write above each image what it is and was taken for."""
    words, size = ("{} → {}  {:.2f}", SMALL) if lines == 1 else ("{}\n→ {}\n{:.2f}", SMALL - 1.5)
    titles = [words.format(names[one.label], names[one.prediction], one.lengths[one.prediction]) for one in shown]
    axes.set_xticks(range(len(shown)), ["✗ " * _wrong(one) + title for one, title in zip(shown, titles, strict=True)])
    axes.xaxis.tick_top()
    axes.tick_params("x", labelsize=size, pad=1)
    for one, label in zip(shown, axes.get_xticklabels(), strict=True):
        if _wrong(one):
            label.set(color=VERMILLION, weight="bold")


def _frame_errors(axes: Axes, shown: list[Told]) -> None:
    for column, one in enumerate(shown):
        if _wrong(one):
            frame(axes, 0, column, VERMILLION)
            frame(axes, 1, column, VERMILLION)


def _wrong(one: Told) -> bool:
    return one.label != one.prediction
