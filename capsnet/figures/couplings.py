"""What was routed where: the couplings of every iteration of Procedure 1 of Sabour, Frosst and Hinton (2017)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.figures.grid import cell_height, draw_grid, frame, in_colour
from capsnet.figures.shares import Routing, maps, routed, routing_numbers
from capsnet.figures.style import BLACK, BLUE, GREY, SMALL, TITLE, VERMILLION, class_names, keep_numbers, page, wrapped
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

LONGEST = 18  # letters of a class's name
MOST = 20  # columns
WIDE, LEAST, LARGEST = 9.0, 0.7, 1.5  # inches: the maps together, and a map's sides
PANEL, BETWEEN = 1.7, 0.75  # inches: the height of the panels below the maps, and the space above them
POINTS = 72  # an inch
LETTER = 0.7  # width of a letter in its type size; bold is wider
FADED, OPAQUE = 0.35, 0.8  # how much is left of the image, and how much of it a map hides


def draw_couplings(network: CapsNet, images: ImageSet, classes: tuple[str, ...], path: Path, *, image: int = 0) -> Path:
    """Draw how the image at a place of the set was routed, by iteration; the numbers are beside the picture, as JSON.

    Above are maps of the couplings' means over the capsule types, for each class and iteration; below, what the types
    give to the predicted class at last, each child counting by its length, and the couplings' mean entropy in bits.
    With more than 20 classes the maps are those of the longest capsules.
    Raises InputError for a place that is not in the set.
    """
    if not 0 <= image < len(images):
        raise InputError(f"there is no image {image} in a set of {len(images):,}: places count from 0")
    one = images.select(torch.tensor([image])).to(next(network.parameters()).device)
    pixels, labels = next(batches(one, 1))
    routing = routed(network, pixels)
    numbers = {"n": len(images), "image": image, "label": int(labels), "prediction": int(routing.lengths.argmax())}
    numbers |= {"classes": list(classes)} | routing_numbers(network, routing)
    _draw(network, pixels[0].cpu(), routing, numbers, class_names(classes, LONGEST), path)
    keep_numbers(path, numbers)
    return path


def _draw(
    network: CapsNet, image: Tensor, routing: Routing, numbers: dict[str, Any], names: list[str], path: Path
) -> None:
    shown = routing.lengths.topk(min(MOST, len(names))).indices.sort().values  # classes
    of_classes = maps(routing.couplings, network.grid)[:, shown]
    colours = _colours(of_classes, numbers["even_share"])
    tiles = _overlaid(network, image, torch.from_numpy(colours.to_rgba(of_classes.numpy())).float())
    cell = min(LARGEST, max(LEAST, WIDE / len(shown)))
    tall = cell * cell_height(*tiles.shape[-2:]) * len(tiles)
    width, height = max(WIDE, cell * len(shown)), tall + BETWEEN + PANEL
    with page(path, width, height) as figure:
        rows = [f"iteration {k}" for k in range(1, len(tiles) + 1)]
        axes = draw_grid(figure, tiles, (0, PANEL + BETWEEN), cell, rows)
        _name_classes(axes, shown.tolist(), numbers, names, cell * POINTS)
        _draw_scale(axes, colours, numbers["even_share"])
        half = (width - 1) / 2 / width
        _draw_types(figure.add_axes((0, 0, half, PANEL / height)), numbers)
        _draw_entropy(figure.add_axes((1 - half, 0, half, PANEL / height)), numbers)
        told = f"{names[numbers['label']]}, taken for {names[numbers['prediction']]}"
        title = f"Routing of image {numbers['image']} of n = {numbers['n']:,} by iteration: {told}"
        title = wrapped(title, width, 1.15 * TITLE)  # bold is wider
        axes.set_title(title, loc="left", fontsize=TITLE, weight="bold", color=BLACK)
        caption = wrapped(_caption(network), width, SMALL)
        figure.text(0, -0.5 / height, caption, fontsize=SMALL, va="top", color=GREY)


def _colours(of_classes: Tensor, even: float) -> ScalarMappable:
    """Colours whose neutral white is an even share, and which are as strong so much above it as below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import CenteredNorm

    most = float((of_classes - even).abs().max())
    return ScalarMappable(CenteredNorm(even, most if most > even / 100 else even), "PuOr_r")


def _overlaid(network: CapsNet, image: Tensor, colours: Tensor) -> Tensor:
    """Lay maps over an image, each cell as large as the stride, in the middle of the pixels that its capsules see.

    The pixels are halved, so that the middle of an even number of them is a place too.
    image [c, h, w], colours [r, j, h, w, 4] → tiles [r, j, 3, 2 h, 2 w]
    """
    stride = network.primary_caps.conv.stride[0]
    field = network.conv1.kernel_size[0] + network.primary_caps.conv.kernel_size[0] - 1
    cells = []
    for pixels, places in zip(image.shape[1:], network.grid, strict=True):
        cell = (torch.arange(2 * pixels) - (field - stride)).div(2 * stride, rounding_mode="floor")
        cells.append((cell.clamp(0, places - 1), (cell >= 0) & (cell < places)))
    (rows, within_rows), (columns, within_columns) = cells
    spread = rearrange(colours[..., :3], "r j h w rgb -> r j rgb h w")[..., rows, :][..., columns]
    faded = repeat(1 - FADED * (1 - in_colour(image)), "rgb h w -> rgb (h 2) (w 2)")
    within = within_rows.unsqueeze(-1) & within_columns
    return torch.where(within, OPAQUE * spread + (1 - OPAQUE) * faded, faded)


def _name_classes(axes: Axes, shown: list[int], numbers: dict[str, Any], names: list[str], cell: float) -> None:
    """Write above each column of so many points its class and its capsule's length, and frame the predicted class."""
    upright = LETTER * SMALL * max(len(names[k]) for k in shown) > cell
    between = "  " if upright else "\n"
    titles = [f"{names[k]}{between}{numbers['lengths'][k]:.2f}" for k in shown]
    axes.set_xticks(range(len(shown)), titles, fontsize=SMALL, rotation=90 if upright else 0)
    axes.xaxis.tick_top()
    axes.tick_params("x", pad=1)
    column = shown.index(numbers["prediction"])
    axes.get_xticklabels()[column].set(weight="bold", color=VERMILLION)
    for row in range(numbers["iterations"]):
        frame(axes, row, column, VERMILLION)


def _draw_scale(axes: Axes, colours: ScalarMappable, even: float) -> None:
    beside = axes.inset_axes((1.02, 0.05, 0.02, 0.9))
    bar = axes.figure.colorbar(colours, cax=beside)
    low, high = beside.get_ylim()
    beside.set_ylim(max(0, low), min(1, high))
    beside.axhline(even, color=BLACK, linewidth=0.8)
    beside.tick_params(labelsize=SMALL)
    bar.set_label(f"mean coupling\n(white: even, {even:.3f})", fontsize=SMALL, color=GREY)


def _draw_types(axes: Axes, numbers: dict[str, Any]) -> None:
    """Draw what each capsule type gives to the predicted class in the last iteration."""
    given = [of[numbers["prediction"]] for of in numbers["last_shares_by_type"]]
    axes.bar(range(len(given)), given, color=BLUE, label="a type's share, by its children's lengths")
    axes.axhline(numbers["even_share"], color=BLACK, linestyle="--", linewidth=1, label="even share")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("capsule type", fontsize=SMALL)
    axes.set_ylabel("share to the prediction", fontsize=SMALL)
    _finish(axes)


def _draw_entropy(axes: Axes, numbers: dict[str, Any]) -> None:
    """Draw the couplings' mean entropy by iteration."""
    iterations = range(1, numbers["iterations"] + 1)
    axes.plot(iterations, numbers["entropy"], "o-", color=BLUE, label="mean over primary capsules")
    for iteration, bits in zip(iterations, numbers["entropy"], strict=True):
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(f"{bits:.4f}", (iteration, bits), (0, -6), fontsize=SMALL, color=BLUE, **place)
    most = numbers["greatest_entropy"]
    axes.axhline(most, color=BLACK, linestyle="--", linewidth=1, label=f"even shares: {most:.4f}")
    axes.set_xticks(iterations)
    axes.set_xlim(0.5, len(iterations) + 0.5)
    axes.set_xlabel("iteration", fontsize=SMALL)
    axes.set_ylabel("entropy of couplings, bits", fontsize=SMALL)
    axes.set_ylim(0, 1.08 * most)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _caption(network: CapsNet) -> str:
    caps, field = network.digit_caps, network.conv1.kernel_size[0] + network.primary_caps.conv.kernel_size[0] - 1
    words = (
        f"A cell of a map lies in the middle of the {field}x{field} pixels that the capsules at its place see; it "
        "shows the mean over their types of the coupling with the class. Framed is the predicted class. "
    )
    shares = "even" if caps.prior is None else "those of the learned prior"
    if caps.iterations == 1:
        words += f"With one iteration nothing is routed: the shares are {shares}."
    else:
        words += f"In the first iteration the shares are {shares}."
    if caps.none_of_the_above:
        words += f" A share may go to no class: an even one is 1 of {network.classes + 1}."
    if network.classes > MOST:
        words += f" Shown are the {MOST} classes of {network.classes} with the longest capsules."
    return words
