"""Images and what the network draws of them, as in Figure 3 of Sabour, Frosst and Hinton (2017)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluate import answers
from capsnet.figures.style import BLACK, GREY, LABEL, PALE, SMALL, TITLE, VERMILLION, class_names, page, wrapped
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 14  # letters of a class's name that fit above a pair
CELL, GAP, LEFT, TOP, BOTTOM = 0.88, 0.14, 0.75, 0.45, 0.75  # inches
LINE = 0.15  # inches from one line of a pair's title to the next


class Pair(NamedTuple):
    """An image and the network's answer, drawn from the capsule of that answer."""

    image: Tensor  # [c, h, w]
    drawing: Tensor  # [c, h, w]
    label: int
    prediction: int
    length: float
    """Length of the predicted class's capsule."""


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
    """Draw the first images of a set, or the first misclassified ones, over the network's drawings of them.

    What is drawn is the capsule of the network's prediction; the label takes no part in it.
    Raises InputError for a network without decoder, a set without images, and counts below 1.
    """
    if network.decoder is None:
        raise InputError("this network has no decoder, so it cannot draw: train one with --decoder dense")
    if not len(images):
        raise InputError("there are no images to draw")
    if count < 1 or columns < 1:
        raise InputError(f"a picture has at least one image and one column, not {count} and {columns}")
    with closing(_pairs(network, images if errors_only else first(images, count), errors_only)) as pairs:
        shown = list(islice(pairs, count))
    if not shown:
        with page(path, 6, 1.2) as figure:
            figure.text(0.5, 0.5, f"no errors in n = {len(images):,} images", ha="center", va="center", fontsize=TITLE)
        return path
    _draw(shown, classes, path, min(columns, len(shown)), _title(len(shown), len(images), count, errors_only))
    return path


def first(images: ImageSet, count: int) -> ImageSet:
    """The first images of a set, in its order."""
    return images.select(torch.arange(min(count, len(images))))


def _pairs(network: CapsNet, images: ImageSet, errors_only: bool) -> Iterator[Pair]:
    """Go through a set in order, on the network's device."""
    device = next(network.parameters()).device
    for pixels, labels, given in answers(network, images.to(device), masked_by="prediction"):
        lengths, predictions = given.scores.float().cpu().max(dim=-1)  # over classes j
        drawings = given.drawings.float().cpu()  # type: ignore[union-attr]
        told = zip(pixels.cpu(), drawings, labels.tolist(), predictions.tolist(), lengths.tolist(), strict=True)
        yield from (pair for pair in map(Pair._make, told) if not errors_only or pair.label != pair.prediction)


def _title(shown: int, n: int, count: int, errors_only: bool) -> str:
    if not errors_only:
        return f"The first {shown} of n = {n:,} images, and the network's drawings of them"
    which = f"The first {shown}" if shown == count else f"All {shown}"
    return f"{which} misclassified of n = {n:,} images, and the network's drawings of them"


def _draw(pairs: list[Pair], classes: tuple[str, ...], path: Path, columns: int, title: str) -> None:
    names = class_names(classes, LONGEST)
    lines = 1 if max(map(len, names)) <= 2 else 3
    _, h, w = pairs[0].image.shape
    tall = CELL * min(3.0, max(1 / 3, h / w))  # an image's height in inches
    band = lines * LINE + 2 * tall + 2.5 * GAP
    bands = -(-len(pairs) // columns)
    width = max(6.4, LEFT + columns * (CELL + GAP) + GAP)
    title = wrapped(title, width - GAP, TITLE * 1.15)
    top = TOP + 0.2 * title.count("\n")
    height = top + bands * band + BOTTOM
    with page(path, width, height) as figure:
        figure.text(GAP / width, 1 - GAP / height, title, fontsize=TITLE, weight="bold", va="top", color=BLACK)
        caption = (
            "Above each pair: label → prediction and the length of the predicted capsule; errors have ✗ and a thick "
            "frame. Drawn is the capsule of the prediction, with all others set to zero: the label takes no part."
        )
        at = GAP / width, GAP / height
        figure.text(*at, wrapped(caption, width - 2 * GAP, SMALL), fontsize=SMALL, va="bottom", color=GREY)
        for k, pair in enumerate(pairs):
            row, column = divmod(k, columns)
            left, upper = LEFT + column * (CELL + GAP), height - top - row * band - lines * LINE
            _draw_pair(figure, pair, names, lines, (left, upper - tall), tall)
            if column == 0:
                for words, above in (("image", upper - tall / 2), ("drawing", upper - 1.5 * tall - GAP / 2)):
                    at = (LEFT - GAP) / width, above / height
                    figure.text(*at, words, fontsize=SMALL, ha="right", va="center", color=GREY)


def _draw_pair(
    figure: Figure, pair: Pair, names: list[str], lines: int, corner: tuple[float, float], tall: float
) -> None:
    """Draw an image with its lower left corner at a place in inches, and its drawing below."""
    width, height = figure.get_size_inches()
    wrong = pair.label != pair.prediction
    mark, colour = ("✗ ", VERMILLION) if wrong else ("", BLACK)
    label, prediction = names[pair.label], names[pair.prediction]
    between = (" → ", "  ") if lines == 1 else ("\n→ ", "\n")
    title = f"{mark}{label}{between[0]}{prediction}{between[1]}{pair.length:.2f}"
    left, lower = corner
    for pixels, bottom in ((pair.image, lower), (pair.drawing, lower - tall - GAP / 2)):
        axes = figure.add_axes((left / width, bottom / height, CELL / width, tall / height))
        axes.imshow(_shown(pixels), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=VERMILLION if wrong else PALE, linewidth=2.5 if wrong else 0.5)
        if pixels is pair.image:
            size = LABEL - 2 if lines == 1 else SMALL - 1
            axes.set_title(title, fontsize=size, color=colour, weight="bold" if wrong else "normal", pad=4)


def _shown(pixels: Tensor) -> Tensor:
    """Pixels [c, h, w] as a picture: three channels in colour, any other number as their mean, in grey."""
    if len(pixels) == 3:
        return rearrange(pixels, "c h w -> h w c")
    return reduce(pixels, "c h w -> h w", "mean")
