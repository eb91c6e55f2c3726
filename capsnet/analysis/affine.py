"""Accuracy on images that are rotated, shifted, scaled and sheared, and reconstructions of these images.

The paper claims that capsules are more robust to affine changes than a plain convolutional network (Section 5.1 of
Sabour, Frosst and Hinton, 2017, on affNIST). Here several networks classify the same images, changed by known amounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from capsnet.analysis import style
from capsnet.analysis.accuracy import network_styles, plot_accuracy, share
from capsnet.analysis.style import keep_numbers, page
from capsnet.analysis.subject import Context, Network, compare_option, subject
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluate, predict_batches
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Amount = float | Tensor
"""The same for every image, or each image's own [b]."""
LABELS = {
    "rotation": "rotation in degrees, anticlockwise",
    "shift_right": "shift in pixels, to the right",
    "scale": "scale, a factor",
    "shear": "shear in degrees, to the right",
}
MOST_ROTATION, MOST_SHIFT = 30.0, 2  # of random changes: degrees and whole pixels each way
CELL, LINE = 0.92, 0.15  # inches: an image's cell, and a line of the prediction above it
LONGEST = 12  # characters of a class's name that fit above an image
NOTE = (
    "Above each pair: prediction and the length of its capsule; errors have ✗ and a frame. Reconstructed from the "
    "capsule of the predicted class alone, without the label."
)


@subject(
    {
        "affine.png": "Accuracy on test images that are rotated, shifted, scaled and sheared, with 95 % intervals.",
        "affine-reconstructions.png": "The first test images under affine changes: predictions and, below each image, "
        "its reconstruction from the capsule of the predicted class, without the label.",
    },
)
@click.option("--images", default=250, show_default=True, help="Number of test images.")
@compare_option
def affine(context: Context, images: int = 250) -> Iterator[Path]:
    """Measure accuracy on test images that are rotated, shifted, scaled and sheared."""
    test, path = context.data.test, context.folder / "affine.png"
    yield plot_affine(measure_affine(context.networks, test, count=images), path)
    if isinstance(context.network, CapsNet) and context.network.decoder is not None:
        path = path.with_stem("affine-reconstructions")
        yield plot_reconstructions(context.network, test, context.data.classes, path)


def transformed(
    images: Tensor,
    *,
    rotation: Amount = 0,
    shift_down: Amount = 0,
    shift_right: Amount = 0,
    scale: Amount = 1,
    shear: Amount = 0,
) -> Tensor:
    """Scale, shear, rotate and then shift images about their centre: bilinear, filled with zeros.

    - rotation: degrees, anticlockwise: 90 is `torch.rot90(images, 1, (2, 3))`
    - shift_down, shift_right: pixels, or fractions of them
    - scale: a factor above 0; below 1 the image shrinks, without smoothing
    - shear: degrees by which vertical lines lean to the right, within ±90

    Identity, integer shifts and 90° rotations of a square are exact.
    Raises InputError for a scale or a shear outside these bounds.
    images [b, c, h, w] in [0, 1] → the same shape and dtype, in [0, 1]
    """
    b, c, h, w = images.shape
    matrix = _matrix(*(torch.as_tensor(a, dtype=torch.float64).cpu().expand(b) for a in (rotation, scale, shear)))
    shift = torch.stack(
        [torch.as_tensor(a, dtype=torch.float64).cpu().expand(b) for a in (shift_right, shift_down)], dim=-1
    )
    # On a canvas whose sides are powers of two, float32 holds the place of every pixel in [-1, 1] exactly, and rounds
    # float64's errors away.
    canvas_width, canvas_height = (1 << (size - 1).bit_length() for size in (w, h))
    # (x, y): pixels in one unit of the canvas
    half = torch.tensor([canvas_width, canvas_height], dtype=torch.float64) / 2
    centre = torch.tensor([w, h], dtype=torch.float64) / (2 * half) - 1
    inverse = torch.linalg.inv(matrix) * half / half[:, None]  # [b, 2, 2]: places in the result → in the image
    start = centre - (inverse @ (centre + shift / half).unsqueeze(-1)).squeeze(-1)  # [b, 2]
    theta = torch.cat([inverse, start.unsqueeze(-1)], dim=-1)
    places = F.affine_grid(theta, [b, c, canvas_height, canvas_width], align_corners=False)
    places = places.float()  # [b, canvas_height, canvas_width, 2]
    canvas = F.pad(images, (0, canvas_width - w, 0, canvas_height - h))
    return F.grid_sample(canvas, places.to(images), align_corners=False)[:, :, :h, :w].clamp(0, 1)


def _matrix(rotation: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Matrices [b, 2, 2] that map (x, y), right and down of the centre, from degrees, factors and degrees [b]."""
    if not (scale > 0).all() or not (shear.abs() < 90).all():
        raise InputError(
            f"a scale is above 0 and a shear within 90 degrees, not {scale.min():g} and {shear.abs().max():g}"
        )
    turn, lean = rotation.deg2rad(), shear.deg2rad().tan()
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rotate, slant = [[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]], [[one, -lean], [zero, one]]
    rotations, slants = (torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2) for rows in (rotate, slant))
    return rotations @ slants * scale[:, None, None]


def changed(images: ImageSet, **change: Amount) -> ImageSet:
    """Return the set with every image `transformed` and rounded to bytes, as a file would hold it."""
    pixels = transformed(images.images.float() / 255, **change)
    return ImageSet((255 * pixels).round().to(torch.uint8), images.labels)


def changed_at_random(
    images: ImageSet, seed: int, *, rotation: float = MOST_ROTATION, shift: int = MOST_SHIFT
) -> ImageSet:
    """Return the set with each image rotated by up to ±rotation degrees and shifted by up to ±shift pixels each way."""
    generator, n = torch.Generator().manual_seed(seed), len(images)
    turns = rotation * (2 * torch.rand(n, generator=generator) - 1)
    down, right = torch.randint(-shift, shift + 1, (2, n), generator=generator)
    return changed(images, rotation=turns, shift_down=down, shift_right=right)


def amounts(width: int) -> dict[str, tuple[float, ...]]:
    """The amounts of each change that are measured; shifts are fourteenths of the width: 2, 4 and 6 pixels of 28."""
    step = max(1, round(width / 14))
    return {
        "rotation": (-45, -30, -15, 0, 15, 30, 45),
        "shift_right": tuple(k * step for k in range(-3, 4)),
        "scale": (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3),
        "shear": (-30, -20, -10, 0, 10, 20, 30),
    }


def measure_affine(
    networks: dict[str, Network], images: ImageSet, *, count: int = 250, seed: int = 0
) -> dict[str, Any]:
    """Return the accuracy of networks under changes, on `count` images of a set, drawn by seed, or all.

    Each of four changes is made alone, by the `amounts` for images of this size; then each image is
    `changed_at_random`. The numbers are for JSON: by change and network a list of amounts with the accuracy and its
    interval, and under "random" the accuracy of each network.
    Raises InputError for no networks, an empty set, a count below 1, and images of another shape than a network's.
    """
    if not networks:
        raise InputError("there is no network to measure: give at least one, by name")
    if not len(images) or count < 1:
        raise InputError(f"affine changes are measured on at least one image, not {min(count, len(images))}")
    shape = tuple(images.images.shape[1:])
    for name, network in networks.items():
        if network.image_shape != shape:
            raise InputError(
                f"{name} takes images (c, h, w) of {network.image_shape}, not {shape}: give it images of its own shape"
            )

    def shares(images: ImageSet) -> dict[str, Any]:
        n = len(images)
        return {name: _accuracy(n - evaluate(network, images).errors, n) for name, network in networks.items()}

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = images.select(order[:count].sort().values)
    numbers: dict[str, Any] = {"n": len(chosen), "seed": seed}
    unchanged = shares(chosen)
    for change, tried in amounts(shape[-1]).items():
        neutral = 1 if change == "scale" else 0
        found = [unchanged if k == neutral else shares(changed(chosen, **{change: k})) for k in tried]
        numbers[change] = {
            name: [{"amount": k, **each[name]} for k, each in zip(tried, found, strict=True)] for name in networks
        }
    moved = changed_at_random(chosen, seed)
    random = {"rotation": MOST_ROTATION, "shift": MOST_SHIFT, "networks": shares(moved)}
    return numbers | {"random": random}


def _accuracy(correct: int, n: int) -> dict[str, Any]:
    """Return the numbers of `share`, with the count as `correct`: here, right is a direction."""
    numbers = share(correct, n)
    return {"n": n, "correct": numbers.pop("right"), **numbers}


def plot_affine(numbers: dict[str, Any], path: Path) -> Path:
    """Plot each network's accuracy under rotation, shift, scale and shear; write the numbers next to it as JSON.

    The legend has the accuracy on images that are rotated and shifted at random.
    """
    n, random = numbers["n"], numbers["random"]
    lines = network_styles(random["networks"])
    with page(path, 9, 7.2, layout="constrained") as figure:
        figure.suptitle(f"Accuracy on n = {n:,} images under affine changes", **style.HEADING)
        panels = figure.subplots(2, 2, sharey="row")
        for axes, (change, label) in zip(panels.flat, LABELS.items(), strict=True):
            for name, points in numbers[change].items():
                tried = [point["amount"] for point in points]
                plot_accuracy(axes, tried, [point["correct"] for point in points], n, lines[name])
            axes.set_xlabel(label, fontsize=style.LABEL)
            axes.set_xticks(tried)
            axes.set_ylim(top=100)
            style.tidy(axes)
        for axes in panels[:, 0]:
            axes.set_ylabel("accuracy in %", fontsize=style.LABEL)
        handles, names = panels[0, 0].get_legend_handles_labels()
        labels = [f"{name}: {_percent(each)}" for name, each in zip(names, random["networks"].values(), strict=True)]
        legend = figure.legend(handles, labels, loc="outside lower center", fontsize=style.SMALL, frameon=False)
        legend.set_title(
            "Each change is made alone, about the image's centre. Bands: 95 % intervals by Wilson's score. "
            "The rows' scales differ.\n"
            f"Below: all images rotated by up to ±{random['rotation']:g}° "
            f"and shifted by up to ±{random['shift']} pixels each way, at random."
        )
        legend.get_title().set(multialignment="center", **style.NOTE)
    keep_numbers(path, numbers)
    return path


def _percent(measured: dict[str, Any]) -> str:
    accuracy, low, high = (f"{100 * measured[part]:.1f}" for part in ("accuracy", "low", "high"))
    return f"{accuracy} % ({low} to {high})"


def plot_reconstructions(
    network: CapsNet, images: ImageSet, classes: tuple[str, ...], path: Path, *, count: int = 4
) -> Path:
    """Plot the first images of a set under affine changes, with the network's predictions and reconstructions.

    The reconstruction is from the capsule of the predicted class, without the label. The last column is rotated and
    shifted at random. The predictions are written next to the figure as JSON.
    Raises InputError for a network without decoder, a set without images, and a count below 1.
    """
    network.check_decoder()
    if not len(images) or count < 1:
        raise InputError(f"a figure has at least one image, not {min(count, len(images))}")
    images = images.select(torch.arange(min(count, len(images))))
    seed, n = 0, len(images)
    sets = _examples(images, seed)
    together = ImageSet(torch.cat([each.images for each in sets.values()]), images.labels.repeat(len(sets)))
    [(pixels, _, given)] = predict_batches(network, together, batch_size=len(together))
    longest = given.scores.float().max(dim=-1)  # over classes j
    tiles = torch.stack([pixels, given.reconstructions.float()])  # type: ignore[union-attr]  # a decoder is there
    tiles = rearrange(tiles.cpu(), "two (k n) c h w -> n two k c h w", n=n)  # k changes
    lengths, predictions = (rearrange(part.cpu(), "(k n) -> n k", n=n) for part in longest)
    labels, names = images.labels.tolist(), style.class_names(classes, LONGEST)
    lines = 1 if max(map(len, names)) <= 2 else 2
    tall, above = 2 * CELL * style.cell_height(*tiles.shape[-2:]), (lines + 0.6) * LINE  # inches: a pair, and above it
    width, height = len(sets) * CELL, n * (tall + above)
    with page(path, width, height) as figure:
        title = f"Predictions and reconstructions of {n} image{'s' * (n > 1)} under affine changes"
        style.write_title(figure, title, height + 0.45)
        style.write_note(figure, NOTE, -0.05)
        for k, label in enumerate(labels):
            corner = 0.0, height - (k + 1) * (tall + above)
            axes = style.plot_grid(figure, tiles[k], corner, CELL, [f"label {names[label]}", "reconstruction"])
            _write_predictions(axes, predictions[k].tolist(), lengths[k].tolist(), label, names)
        for k, name in enumerate(sets):
            place = (k + 0.5) / len(sets), 1 + 0.05 / height
            figure.text(*place, name, **style.NOTE, ha="center", va="bottom")
    numbers = {"predictions": predictions.tolist(), "lengths": lengths.tolist()}
    changes = [" ".join(name.split()) for name in sets]
    keep_numbers(path, {"n": n, "seed": seed, "changes": changes, "labels": labels, **numbers})
    return path


def _examples(images: ImageSet, seed: int) -> dict[str, ImageSet]:
    """Return the set under each change, by the words above its column."""
    shift = amounts(images.images.shape[-1])["shift_right"][-2]
    return {
        "unchanged": images,
        "rotated 30°\nto the right": changed(images, rotation=-30),
        "rotated 30°\nto the left": changed(images, rotation=30),
        f"shifted {shift} px\nto the right": changed(images, shift_right=shift),
        "scaled\nby 0.7": changed(images, scale=0.7),
        "scaled\nby 1.3": changed(images, scale=1.3),
        "sheared 20°\nto the left": changed(images, shear=-20),
        "sheared 20°\nto the right": changed(images, shear=20),
        "rotated, shifted\nat random": changed_at_random(images, seed),
    }


def _write_predictions(axes: Axes, predictions: list[int], lengths: list[float], label: int, names: list[str]) -> None:
    """Write each prediction and its length above the pair, and frame the images that are misclassified."""
    between = "  " if max(map(len, names)) <= 2 else "\n"
    for k, (prediction, length) in enumerate(zip(predictions, lengths, strict=True)):
        wrong = prediction != label
        words = f"{'✗ ' * wrong}{names[prediction]}{between}{length:.2f}"
        marks: dict[str, Any] = {"color": style.VERMILLION, "weight": "bold"} if wrong else {}
        axes.text(k, -0.6, words, fontsize=style.SMALL - 1, ha="center", va="bottom", **marks)
        if wrong:
            style.frame(axes, 0, k, style.VERMILLION)
