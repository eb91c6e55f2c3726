"""What a CapsNet answers and draws where images are rotated, shifted, scaled and sheared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from einops import rearrange
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
from capsnet.robustness.affine import amounts, changed, changed_at_random

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL, LINE = 0.92, 0.15  # inches: an image's cell, and a line of the answer above it
LONGEST = 12  # letters of a class's name that fit above an image
CAPTION = (
    "Above each pair: prediction and the length of its capsule; errors have ✗ and a frame. Drawn is the capsule of the "
    "prediction, with all others set to zero: the label takes no part."
)


class Changed(NamedTuple):
    """Images under each of k changes, and the network's answers."""

    names: list[str]  # k
    labels: list[int]  # n
    predictions: Tensor  # [n, k]
    lengths: Tensor  # [n, k], of the predicted capsules
    images: Tensor  # [n, k, c, h, w]
    drawings: Tensor  # [n, k, c, h, w]


def draw_changed(
    network: CapsNet, images: ImageSet, classes: tuple[str, ...], path: Path, *, count: int = 4, seed: int = 0
) -> Path:
    """Draw the first images of a set under affine changes over the network's drawings of them, and its answers.

    What is drawn is the capsule of the network's prediction; the label takes no part in it. The last column is
    rotated and shifted at random, by seed. The answers are kept beside the picture.
    Raises InputError for a network without decoder, a set without images, and a count below 1.
    """
    network.check_decoder()
    if not len(images) or count < 1:
        raise InputError(f"a picture has at least one image, not {min(count, len(images))}")
    shown = _answered(network, images.select(torch.arange(min(count, len(images)))), seed)
    _draw(shown, class_names(classes, LONGEST), path)
    told = {"predictions": shown.predictions.tolist(), "lengths": shown.lengths.tolist()}
    changes = [" ".join(name.split()) for name in shown.names]
    keep_numbers(path, {"n": len(shown.labels), "seed": seed, "changes": changes, "labels": shown.labels, **told})
    return path


def _answered(network: CapsNet, images: ImageSet, seed: int) -> Changed:
    sets, n = _changes(images, seed), len(images)
    together = ImageSet(torch.cat([each.images for each in sets.values()]), images.labels.repeat(len(sets)))
    [(pixels, _, given)] = predict_batches(network, together, batch_size=len(together))
    lengths, predictions = given.scores.float().max(dim=-1)  # over classes j
    parts = predictions, lengths, pixels, given.reconstructions.float()  # type: ignore[union-attr]
    return Changed(
        list(sets), images.labels.tolist(), *(rearrange(p.cpu(), "(k n) ... -> n k ...", n=n) for p in parts)
    )


def _changes(images: ImageSet, seed: int) -> dict[str, ImageSet]:
    """The set under each change, by the words above its column."""
    shift = amounts(images.images.shape[-1])["right"][-2]
    return {
        "unchanged": images,
        "turned 30°\nto the right": changed(images, rotation=-30),
        "turned 30°\nto the left": changed(images, rotation=30),
        f"shifted {shift} px\nto the right": changed(images, right=shift),
        "scaled\nby 0.7": changed(images, scale=0.7),
        "scaled\nby 1.3": changed(images, scale=1.3),
        "sheared 20°\nto the left": changed(images, shear=-20),
        "sheared 20°\nto the right": changed(images, shear=20),
        "turned, shifted\nat random": changed_at_random(images, seed),
    }


def _draw(shown: Changed, names: list[str], path: Path) -> None:
    n, columns, _, h, w = shown.images.shape
    lines = 1 if max(map(len, names)) <= 2 else 2
    tall, above = 2 * CELL * cell_height(h, w), (lines + 0.6) * LINE  # inches: a pair, and the room above it
    width, height = columns * CELL, n * (tall + above)
    with page(path, width, height) as figure:
        title = f"What the network makes of {n} image{'s' * (n > 1)} under affine changes"
        figure.text(0, 1 + 0.45 / height, title, fontsize=TITLE, weight="bold", va="bottom", color=BLACK)
        figure.text(0, -0.05 / height, wrapped(CAPTION, width, SMALL), fontsize=SMALL, va="top", color=GREY)
        for k, label in enumerate(shown.labels):
            tiles = torch.stack([shown.images[k], shown.drawings[k]])  # [2, k, c, h, w]
            corner = 0.0, height - (k + 1) * (tall + above)
            axes = draw_grid(figure, tiles, corner, CELL, [f"label {names[label]}", "drawing"])
            _write_answers(axes, shown.predictions[k].tolist(), shown.lengths[k].tolist(), label, names)
        for k, name in enumerate(shown.names):
            place = (k + 0.5) / columns, 1 + 0.05 / height
            figure.text(*place, name, fontsize=SMALL, color=GREY, ha="center", va="bottom")


def _write_answers(axes: Axes, predictions: list[int], lengths: list[float], label: int, names: list[str]) -> None:
    """Write each prediction and its length above the pair, and frame the images that were misclassified."""
    between = "  " if max(map(len, names)) <= 2 else "\n"
    for k, (prediction, length) in enumerate(zip(predictions, lengths, strict=True)):
        wrong = prediction != label
        words = f"{'✗ ' * wrong}{names[prediction]}{between}{length:.2f}"
        look = {"color": VERMILLION, "weight": "bold"} if wrong else {"color": BLACK}
        axes.text(k, -0.6, words, fontsize=SMALL - 1, ha="center", va="bottom", **look)  # type: ignore[arg-type]
        if wrong:
            frame(axes, 0, k, VERMILLION)
