"""Images and what the network draws of them, as in Figure 3 of Sabour, Frosst and Hinton (2017)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import answers
from capsnet.figures.style import BLACK, GREY, PALE, SMALL, TITLE, VERMILLION, class_names, page, wrapped
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 13  # letters of a class's name that fit above a pair
CELL, GAP = 0.88, 0.12  # inches: an image's width, and the space around it
LINE = 0.15  # inches from one line of a pair's title to the next
CAPTION = (
    "Above each pair: label → prediction and the length of the predicted capsule; errors have ✗ and a thick frame. "
    "Drawn is the capsule of the prediction, with all others set to zero: the label takes no part."
)


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
    _check(network, images, count, columns)
    seen = images if errors_only else images.select(torch.arange(min(count, len(images))))
    with closing(_pairs(network, seen, errors_only)) as pairs:
        shown = list(islice(pairs, count))
    if shown:
        which = f"The first {len(shown)}" if len(shown) == count else f"All {len(shown)}"
        title = f"{which}{' misclassified' * errors_only} of n = {len(images):,} images and their drawings"
        _draw(shown, class_names(classes, LONGEST), path, min(columns, len(shown)), title)
    else:
        with page(path, 6, 1.2) as figure:
            figure.text(0.5, 0.5, f"no errors in n = {len(images):,} images", ha="center", va="center", fontsize=TITLE)
    return path


def _check(network: CapsNet, images: ImageSet, count: int, columns: int) -> None:
    if network.decoder is None:
        raise InputError("this network has no decoder, so it cannot draw: train one with --decoder dense")
    if not len(images):
        raise InputError("there are no images to draw")
    if count < 1 or columns < 1:
        raise InputError(f"a picture has at least one image and one column, not {count} and {columns}")


def _pairs(network: CapsNet, images: ImageSet, errors_only: bool) -> Generator[Pair]:
    """Go through a set in order, on the network's device."""
    for pixels, labels, given in answers(network, images):
        lengths, predictions = given.scores.float().cpu().max(dim=-1)  # over classes j
        drawings = given.drawings.float().cpu()  # type: ignore[union-attr]
        told = zip(pixels.cpu(), drawings, labels.tolist(), predictions.tolist(), lengths.tolist(), strict=True)
        yield from (pair for pair in map(Pair._make, told) if not errors_only or pair.label != pair.prediction)


def _draw(pairs: list[Pair], names: list[str], path: Path, columns: int, title: str) -> None:
    lines = 1 if max(map(len, names)) == 1 else 3
    _, h, w = pairs[0].image.shape
    tall = CELL * min(3.0, max(1 / 3, h / w))  # inches; an image that is a mere stripe is stretched
    band = lines * LINE + 2 * (tall + GAP) + GAP
    width, height = max(6.0, columns * (CELL + GAP)), -(-len(pairs) // columns) * band
    with page(path, width, height) as figure:
        title = wrapped(title, width, 1.15 * TITLE)  # bold is wider
        figure.text(0, 1 + GAP / height, title, fontsize=TITLE, weight="bold", va="bottom", color=BLACK)
        figure.text(0, 0, wrapped(CAPTION, width, SMALL), fontsize=SMALL, va="top", color=GREY)
        for k, pair in enumerate(pairs):
            row, column = divmod(k, columns)
            left, lower = column * (CELL + GAP), height - row * band - lines * LINE - GAP / 2 - tall
            above = _pair_title(pair, names, "{} → {}  {}" if lines == 1 else "{}\n→ {}\n{}")
            _draw_image(figure, pair.image, pair.label != pair.prediction, (left, lower), tall, above)
            _draw_image(figure, pair.drawing, pair.label != pair.prediction, (left, lower - tall - GAP), tall)
            if column == 0:
                for words, bottom in (("image", lower), ("drawing", lower - tall - GAP)):
                    at = -GAP / width, (bottom + tall / 2) / height
                    figure.text(*at, words, fontsize=SMALL, ha="right", va="center", color=GREY)


def _pair_title(pair: Pair, names: list[str], words: str) -> str:
    told = words.format(names[pair.label], names[pair.prediction], f"{pair.length:.2f}")
    return told if pair.label == pair.prediction else f"✗ {told}"


def _draw_image(
    figure: Figure, pixels: Tensor, wrong: bool, corner: tuple[float, float], tall: float, title: str = ""
) -> None:
    """Draw an image whose lower left corner is at a place in inches."""
    (width, height), (left, lower) = figure.get_size_inches(), corner
    axes = figure.add_axes((left / width, lower / height, CELL / width, tall / height))
    axes.imshow(_shown(pixels).numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=VERMILLION if wrong else PALE, linewidth=2.5 if wrong else 0.5)
    weight, colour = ("bold", VERMILLION) if wrong else ("normal", BLACK)
    axes.set_title(title, fontsize=SMALL if "\n" not in title else SMALL - 1.5, color=colour, weight=weight, pad=4)


def _shown(pixels: Tensor) -> Tensor:
    """Pixels [c, h, w] as a picture: three channels in colour, any other number as their mean, in grey."""
    if len(pixels) == 3:
        return rearrange(pixels, "c h w -> h w c")
    return reduce(pixels, "c h w -> h w", "mean")
