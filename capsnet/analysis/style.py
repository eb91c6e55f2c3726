"""What all figures share: type, colours, names that fit, grids of images, and how a figure and its numbers are written.

Matplotlib is used through its objects, never through pyplot, so that plotting needs no screen and leaves a notebook's
own plots alone. It is imported when the first figure is made.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor
from torch.nn.functional import pad

from capsnet.files import atomic_write, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

DPI = 200
POINTS = 72  # per inch
MARGIN = 0.15  # inches around a figure
FONT = "DejaVu Sans"  # comes with matplotlib
TITLE, LABEL, SMALL, TINY = 12, 10, 8, 5  # points
LETTER = 0.7  # width of a bold letter over its type size
SHORT, LONGEST = 13, 24  # characters of a class's name that fit above an image, and next to a plot
BLACK, GREY, PALE = "#1a1a1a", "#595959", "#d9d9d9"
BLUE, GREEN, VERMILLION = "#0072b2", "#009e73", "#d55e00"  # by Okabe and Ito, for any colour vision
HEADING: dict[str, Any] = {"fontsize": TITLE, "weight": "bold", "color": BLACK}
NOTE: dict[str, Any] = {"fontsize": SMALL, "color": GREY}

GUTTERS = 10  # a gutter between two images is a tenth of an image
GUTTER = 0.93  # from black, 0, to white, 1
STRETCH = 3.0  # how much taller than wide, or wider than tall, an image is shown at most
FRAME = 0.92  # of a cell's width, so that neighbours' frames do not touch


@contextmanager
def page(path: Path, width: float, height: float, *, layout: str | None = None) -> Iterator[Figure]:
    """A white figure of width x height inches to plot on; at the end it is written as a PNG, atomically.

    What reaches beyond the figure is not cut: the PNG is as large as what is on it. It holds no date and no version:
    the same figure has the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=DPI, facecolor="white", layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    yield figure
    with atomic_write(path) as part:
        figure.savefig(part, format="png", bbox_inches="tight", pad_inches=MARGIN, metadata={"Software": None})


def keep_numbers(path: Path, numbers: dict[str, Any]) -> None:
    """Write the numbers of a figure next to it, as JSON under the same name, atomically."""
    write_json(path.with_suffix(".json"), numbers)


def records(columns: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The rows of a table, for JSON: columns [n, ...] → n dicts with the columns' names."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def write_title(figure: Figure, text: str, y: float, x: float = 0.0, width: float | None = None) -> None:
    """Write a title above y inches and from x inches on, in lines of `width` inches, or as wide as the figure."""
    w, h = figure.get_size_inches()
    figure.text(x / w, y / h, wrapped(text, width or w, 1.15 * TITLE), va="bottom", **HEADING)  # bold is wider


def write_note(figure: Figure, text: str, y: float, x: float = 0.0, width: float | None = None) -> None:
    """Write small print below y inches; x and width as in `write_title`."""
    w, h = figure.get_size_inches()
    figure.text(x / w, y / h, wrapped(text, width or w, SMALL), va="top", **NOTE)


def wrapped(text: str, width: float, size: float) -> str:
    """Break a text of a type size in points into lines of at most width inches."""
    return textwrap.fill(text, max(20, int(width * POINTS / (0.56 * size))))


def class_names(classes: tuple[str, ...], longest: int = LONGEST) -> list[str]:
    """The names as a figure shows them: cut to `longest` characters, and a number where the font lacks the letters."""
    return [fitting(name, longest, f"class {k}") for k, name in enumerate(classes)]


def fitting(name: str, longest: int, otherwise: str) -> str:
    """A name on one line, cut to `longest` characters, with $ as itself; `otherwise` if the font lacks its letters."""
    name = " ".join(name.split())
    if not all(_font().get_char_index(ord(letter)) for letter in name):
        name = otherwise
    if len(name) > longest:
        name = name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def rotation(names: list[str], cell: float, size: float = SMALL) -> int:
    """The angle of names of columns that are `cell` inches wide: 90 degrees where one is wider than that, else 0."""
    return 90 if LETTER * size * max(map(len, names)) > cell * POINTS else 0


def round_numbers(low: float, high: float) -> list[float]:
    """The numbers 1, 2, 5, 10, 20, 50, … and 0.5, 0.2, 0.1, … from low to high, for a logarithmic scale."""
    numbers = [float(f"{digit}e{power}") for power in range(-9, 10) for digit in (1, 2, 5)]
    return [number for number in numbers if low <= number <= high]


def tidy(axes: Axes, *, grid: bool = True) -> None:
    """Give axes small tick labels, a pale grid behind the data, and no frame at the top and on the right."""
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color=PALE, linewidth=0.5)
        axes.set_axisbelow(True)


def in_colour(pixels: Tensor) -> Tensor:
    """Pixels in red, green and blue: three channels as they are, any other number as their mean, in grey.

    pixels [..., c, h, w] → [..., 3, h, w]
    """
    if pixels.shape[-3] == 3:
        return pixels
    return repeat(reduce(pixels, "... c h w -> ... h w", "mean"), "... h w -> ... rgb h w", rgb=3)


def composed(tiles: Tensor) -> Tensor:
    """Images side by side, with gutters between and around them: the cell of an image is it and one gutter.

    tiles [rows, columns, c, h, w] in [0, 1] → one image [rows · (h + gutter) + gutter, …, 3], of uint8 levels
    """
    rows, columns, _, h, w = tiles.shape
    down, across = _gutter(h), _gutter(w)
    cells = torch.full((rows, columns, 3, h + down, w + across), GUTTER)
    cells[..., down:, across:] = in_colour(tiles.float().cpu())
    image = rearrange(cells, "rows columns rgb h w -> (rows h) (columns w) rgb")
    edged = pad(image, (0, 0, 0, across, 0, down), value=GUTTER)  # at the right and the bottom
    return (255 * edged.clamp(0, 1)).round().to(torch.uint8)


def cell_height(h: int, w: int) -> float:
    """The height of a cell over its width; a very narrow or very flat image is stretched."""
    return min(STRETCH, max(1 / STRETCH, (h + _gutter(h)) / (w + _gutter(w))))


def plot_grid(figure: Figure, tiles: Tensor, corner: tuple[float, float], cell: float, rows: list[str]) -> Axes:
    """Plot images [rows, columns, c, h, w] in [0, 1] in cells that are `cell` inches wide, and name the rows.

    The images are a single array, because thousands of axes are slow. `corner` is the lower left one, in inches. In
    the coordinates of the axes that are returned the middle of the image in row r and column k is at (k, r): texts,
    frames and the columns' ticks, which are at the top, are placed by that.
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
    axes.xaxis.tick_top()
    axes.set_yticks(range(n), rows, **NOTE)
    axes.tick_params(length=0)
    axes.tick_params("x", pad=2)
    return axes


def frame(axes: Axes, row: int, column: int, colour: str, dashes: str = "-") -> None:
    """Frame the image in a row and a column of a grid."""
    from matplotlib.patches import Rectangle

    corner = column - FRAME / 2, row - FRAME / 2
    axes.add_patch(Rectangle(corner, FRAME, FRAME, fill=False, edgecolor=colour, linewidth=2, linestyle=dashes))


def _gutter(size: int) -> int:
    """Pixels between images of a size in pixels."""
    return -(-size // GUTTERS)


@cache
def _font() -> FT2Font:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont(FONT))
