"""The couplings of one image in every iteration of Procedure 1 of Sabour, Frosst and Hinton (2017)."""

from __future__ import annotations

from collections.abc import Iterator
from math import log, log2
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from capsnet.analysis import style
from capsnet.analysis.style import BLACK, BLUE, SMALL, VERMILLION, keep_numbers, page
from capsnet.analysis.subject import Context, subject
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

MOST = 20  # columns
WIDE, LEAST, LARGEST = 9.0, 0.7, 1.5  # inches: the maps together, and a map's sides
PANEL, BETWEEN = 1.7, 0.75  # inches: the height of the panels below the maps, and the space above them
FADED, OPAQUE = 0.35, 0.8  # contrast that is left of the image, and opacity of a map over it


class Routing(NamedTuple):
    """The routing of one image; its children are listed by type, then row, then column."""

    couplings: Tensor  # [r, i, j], of every iteration
    parents: Tensor  # [r, j, e], of every iteration
    children: Tensor  # [i]: their lengths

    @property
    def lengths(self) -> Tensor:
        """The lengths [j] of the network's capsules: the parents of the last iteration."""
        return torch.linalg.vector_norm(self.parents[-1], dim=-1)  # over the capsule's own axis e


def plot_couplings(network: CapsNet, images: ImageSet, classes: tuple[str, ...], path: Path, *, image: int = 0) -> Path:
    """Plot the routing of the image at a place of the set; write the numbers next to the figure, as JSON.

    Above are maps of the couplings' means over the capsule types, for each class and iteration. Below are the shares
    of the types that go to the predicted class in the last iteration, each child weighted by its length, and the
    couplings' mean entropy in bits. With more than 20 classes the maps are those of the longest capsules.
    Raises InputError for a place that is not in the set.
    """
    if not 0 <= image < len(images):
        raise InputError(f"there is no image {image} in a set of {len(images):,}: indices start at 0")
    one = images.select(torch.tensor([image])).to(next(network.parameters()).device)
    pixels, labels = next(batches(one, 1))
    routing = trace_routing(network, pixels)
    numbers = {"n": len(images), "image": image, "label": int(labels), "prediction": int(routing.lengths.argmax())}
    numbers |= {"classes": list(classes)} | routing_numbers(network, routing)
    _plot(network, pixels[0].cpu(), routing, numbers, style.class_names(classes), path)
    keep_numbers(path, numbers)
    return path


def trace_routing(network: CapsNet, pixels: Tensor) -> Routing:
    """Route one image [1, c, h, w] in [0, 1], and return every iteration."""
    with torch.inference_mode():
        children = network.primary_capsules(pixels)  # [1, i, d]
        couplings, parents = zip(*network.digit_caps.trace(children), strict=True)
        lengths = torch.linalg.vector_norm(children[0], dim=-1)  # over the capsule's own axis d
    return Routing(torch.cat(couplings).cpu(), torch.cat(parents).cpu(), lengths.cpu())


def maps(couplings: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean over the capsule types of the couplings at each place of the grid: [r, i, j] → [r, j, h, w]."""
    h, w = grid
    return reduce(couplings, "r (types h w) j -> r j h w", "mean", h=h, w=w)


def shares(couplings: Tensor, lengths: Tensor, types: int) -> Tensor:
    """Mean coupling of each type's children, weighted by their lengths, with each class: [i, j], [i] → [types, j]."""
    weights = rearrange(lengths, "(types places) -> types places 1", types=types)
    given = weights * rearrange(couplings, "(types places) j -> types places j", types=types)
    smallest = torch.finfo(weights.dtype).tiny  # for a type whose children are all zero
    return given.sum(dim=1) / weights.sum(dim=1).clamp_min(smallest)  # over places


def entropy(couplings: Tensor, none_of_the_above: bool) -> Tensor:
    """Entropy of each child's couplings in bits, at most log2 of the number of parents j: [..., j] → [...].

    With a none-of-the-above logit, 1 minus the sum of the couplings counts as the coupling with one more parent.
    """
    if none_of_the_above:
        rest = 1 - couplings.sum(dim=-1, keepdim=True)  # over parents j
        couplings = torch.cat([couplings, rest.clamp_min(0)], dim=-1)  # rounding can make the rest negative
    return torch.special.entr(couplings).sum(dim=-1) / log(2)  # over parents j


def routing_numbers(network: CapsNet, routing: Routing) -> dict[str, Any]:
    """Numbers of a routing; lists by iteration, capsule type, class, row and column have their axes in this order."""
    caps, count = network.digit_caps, len(routing.lengths)
    types = len(routing.children) // (network.grid[0] * network.grid[1])
    parents = count + caps.none_of_the_above
    return {
        "iterations": len(routing.couplings),
        "lengths": routing.lengths.tolist(),
        "uniform_share": 1 / parents,
        "couplings_by_place": maps(routing.couplings, network.grid).tolist(),
        "shares": [shares(of, routing.children, 1)[0].tolist() for of in routing.couplings],
        "last_shares_by_type": shares(routing.couplings[-1], routing.children, types).tolist(),
        "entropy": entropy(routing.couplings, caps.none_of_the_above).mean(dim=-1).tolist(),  # over children i
        "greatest_entropy": log2(parents),
    }


def _plot(
    network: CapsNet, image: Tensor, routing: Routing, numbers: dict[str, Any], names: list[str], path: Path
) -> None:
    shown = routing.lengths.topk(min(MOST, len(names))).indices.sort().values  # classes
    of_classes = maps(routing.couplings, network.grid)[:, shown]
    colours = _colours(of_classes, numbers["uniform_share"])
    tiles = _overlaid(network, image, torch.from_numpy(colours.to_rgba(of_classes.numpy())).float())
    cell = min(LARGEST, max(LEAST, WIDE / len(shown)))
    tall = cell * style.cell_height(*tiles.shape[-2:]) * len(tiles)
    width, height = max(WIDE, cell * len(shown)), tall + BETWEEN + PANEL
    with page(path, width, height) as figure:
        rows = [f"iteration {k}" for k in range(1, len(tiles) + 1)]
        axes = style.plot_grid(figure, tiles, (0, PANEL + BETWEEN), cell, rows)
        _name_classes(axes, shown.tolist(), numbers, names, cell)
        _plot_scale(axes, colours, numbers["uniform_share"])
        half = (width - 1) / 2 / width
        _plot_types(figure.add_axes((0, 0, half, PANEL / height)), numbers)
        _plot_entropy(figure.add_axes((1 - half, 0, half, PANEL / height)), numbers)
        classes = f"label {names[numbers['label']]}, predicted {names[numbers['prediction']]}"
        title = f"Routing of image {numbers['image']} of n = {numbers['n']:,} by iteration: {classes}"
        axes.set_title(style.wrapped(title, width, 1.15 * style.TITLE), loc="left", **style.HEADING)
        style.write_note(figure, _caption(network), -0.5)


def _colours(of_classes: Tensor, uniform: float) -> ScalarMappable:
    """Colours that are white at a uniform share, and equally strong at equal distances above and below it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import CenteredNorm

    most = float((of_classes - uniform).abs().max())
    return ScalarMappable(CenteredNorm(uniform, most if most > uniform / 100 else uniform), "PuOr_r")


def _overlaid(network: CapsNet, image: Tensor, colours: Tensor) -> Tensor:
    """Overlay maps on an image, each cell as large as the stride, in the middle of its capsules' receptive field.

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
    placed = rearrange(colours[..., :3], "r j h w rgb -> r j rgb h w")[..., rows, :][..., columns]
    faded = repeat(1 - FADED * (1 - style.in_colour(image)), "rgb h w -> rgb (h 2) (w 2)")
    within = within_rows.unsqueeze(-1) & within_columns
    return torch.where(within, OPAQUE * placed + (1 - OPAQUE) * faded, faded)


def _name_classes(axes: Axes, shown: list[int], numbers: dict[str, Any], names: list[str], cell: float) -> None:
    """Write above each column, `cell` inches wide, its class and capsule's length, and frame the predicted class."""
    rotation = style.rotation([names[k] for k in shown], cell)
    between = "  " if rotation else "\n"
    titles = [f"{names[k]}{between}{numbers['lengths'][k]:.2f}" for k in shown]
    axes.set_xticks(range(len(shown)), titles, fontsize=SMALL, rotation=rotation)
    column = shown.index(numbers["prediction"])
    axes.get_xticklabels()[column].set(weight="bold", color=VERMILLION)
    for row in range(numbers["iterations"]):
        style.frame(axes, row, column, VERMILLION)


def _plot_scale(axes: Axes, colours: ScalarMappable, uniform: float) -> None:
    scale = axes.inset_axes((1.02, 0.05, 0.02, 0.9))
    bar = axes.figure.colorbar(colours, cax=scale)
    low, high = scale.get_ylim()
    scale.set_ylim(max(0, low), min(1, high))
    scale.axhline(uniform, color=BLACK, linewidth=0.8)
    scale.tick_params(labelsize=SMALL)
    bar.set_label(f"mean coupling\n(white: uniform, {uniform:.3f})", **style.NOTE)


def _plot_types(axes: Axes, numbers: dict[str, Any]) -> None:
    """Plot the share of each capsule type that goes to the predicted class in the last iteration."""
    given = [of[numbers["prediction"]] for of in numbers["last_shares_by_type"]]
    axes.bar(range(len(given)), given, color=BLUE, label="a type's share, weighted by lengths")
    axes.axhline(numbers["uniform_share"], color=BLACK, linestyle="--", linewidth=1, label="uniform share")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("capsule type", fontsize=SMALL)
    axes.set_ylabel("share to the prediction", fontsize=SMALL)
    _finish(axes)


def _plot_entropy(axes: Axes, numbers: dict[str, Any]) -> None:
    """Plot the couplings' mean entropy by iteration."""
    iterations = range(1, numbers["iterations"] + 1)
    axes.plot(iterations, numbers["entropy"], "o-", color=BLUE, label="mean over primary capsules")
    for iteration, bits in zip(iterations, numbers["entropy"], strict=True):
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(f"{bits:.4f}", (iteration, bits), (0, -6), fontsize=SMALL, color=BLUE, **place)
    most = numbers["greatest_entropy"]
    axes.axhline(most, color=BLACK, linestyle="--", linewidth=1, label=f"uniform: {most:.4f}")
    axes.set_xticks(iterations)
    axes.set_xlim(0.5, len(iterations) + 0.5)
    axes.set_xlabel("iteration", fontsize=SMALL)
    axes.set_ylabel("entropy of couplings, bits", fontsize=SMALL)
    axes.set_ylim(0, 1.08 * most)
    _finish(axes)


def _finish(axes: Axes) -> None:
    style.tidy(axes, grid=False)
    axes.legend(fontsize=SMALL, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _caption(network: CapsNet) -> str:
    caps, field = network.digit_caps, network.conv1.kernel_size[0] + network.primary_caps.conv.kernel_size[0] - 1
    words = (
        f"A cell of a map shows the coupling with the class, averaged over the capsule types at that place; it is in "
        f"the middle of their receptive field of {field}x{field} pixels. The predicted class is framed. "
    )
    first = "With one iteration nothing is routed:" if caps.iterations == 1 else "In the first iteration"
    words += f"{first} the couplings are {'uniform' if caps.prior is None else 'those of the learned prior'}."
    if caps.none_of_the_above:
        words += f" With the none-of-the-above logit, a uniform share is 1 of {network.classes + 1}."
    if network.classes > MOST:
        words += f" Shown are the {MOST} classes of {network.classes} with the longest capsules."
    return words


@subject(
    {
        "couplings.png": "The routing of one test image: the mean coupling of the primary capsules at each place with "
        "each class, by iteration.",
    },
    needs="capsules",
)
@click.option("--image", default=0, show_default=True, help="Index of the test image, from 0.")
def couplings(context: Context, image: int = 0) -> Iterator[Path]:
    """Plot the couplings of a test image in every routing iteration."""
    yield plot_couplings(*context.on_test, context.folder / "couplings.png", image=image)
