"""Many small images in one picture: a single array, drawn at once, because thousands of axes are slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor
from torch.nn.functional import pad

from capsnet.figures.style import GREY, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GUTTERS = 10  # a gutter between two images is a tenth of an image
GUTTER = 0.93  # from black, 0, to white, 1
STRETCH = 3.0  # how much taller than wide, or wider than tall, an image is shown at most
FRAME = 0.92  # of a cell's width, so that neighbours' frames do not touch


def in_colour(pixels: Tensor) -> Tensor:
    """Pixels as a picture: three channels in colour, any other number as their mean, in grey.

    pixels [..., c, h, w] → [..., 3, h, w]
    """
    if pixels.shape[-3] == 3:
        return pixels
    return repeat(reduce(pixels, "... c h w -> ... h w", "mean"), "... h w -> ... rgb h w", rgb=3)


def composed(tiles: Tensor) -> Tensor:
    """Images side by side, with gutters between and around them: the cell of an image is it and one gutter.

    tiles [rows, columns, c, h, w] in [0, 1] → one picture [rows · (h + gutter) + gutter, …, 3], of uint8 levels
    """
    rows, columns, _, h, w = tiles.shape
    down, across = _gutter(h), _gutter(w)
    page = torch.full((rows, columns, 3, h + down, w + across), GUTTER)
    page[..., down:, across:] = in_colour(tiles.float().cpu())
    page = rearrange(page, "rows columns rgb h w -> (rows h) (columns w) rgb")
    edged = pad(page, (0, 0, 0, across, 0, down), value=GUTTER)  # at the right and the bottom
    return (255 * edged.clamp(0, 1)).round().to(torch.uint8)


def cell_height(h: int, w: int) -> float:
    """The height of a cell over its width; an image that is a mere stripe is stretched."""
    return min(STRETCH, max(1 / STRETCH, (h + _gutter(h)) / (w + _gutter(w))))


def draw_grid(figure: Figure, tiles: Tensor, corner: tuple[float, float], cell: float, rows: list[str]) -> Axes:
    """Draw images [rows, columns, c, h, w] in [0, 1] in cells of so many inches across, and name the rows.

    `corner` is the lower left one, in inches. In the coordinates of the axes that are returned the middle of the image
    in row r and column k is at (k, r): texts, frames and the columns' ticks are placed by that.
    """
    (width, height), (left, lower) = figure.get_size_inches(), corner
    n, m, _, h, w = tiles.shape
    down, across = (_gutter(size) / (size + _gutter(size)) for size in (h, w))  # cells
    size = cell * (m + across) / width, cell * cell_height(h, w) * (n + down) / height
    axes = figure.add_axes((left / width, lower / height, *size))
    x, y = (1 + across) / 2, (1 + down) / 2  # from the middle of an image to the far side of its gutter
    axes.imshow(composed(tiles).numpy(), aspect="auto", extent=(-x, m - 1 + x, n - 1 + y, -y))
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks(range(n), rows, fontsize=SMALL, color=GREY)
    axes.tick_params(length=0)
    return axes


def frame(axes: Axes, row: int, column: int, colour: str, dashes: str = "-") -> None:
    """Frame the image in a row and a column of a grid."""
    from matplotlib.patches import Rectangle

    corner = column - FRAME / 2, row - FRAME / 2
    axes.add_patch(Rectangle(corner, FRAME, FRAME, fill=False, edgecolor=colour, linewidth=2, linestyle=dashes))


def _gutter(size: int) -> int:
    """Pixels between images of a size in pixels."""
    return -(-size // GUTTERS)
