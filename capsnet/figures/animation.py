"""Drawings that move: tiles side by side in a GIF that goes on for ever."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import repeat
from torch import Tensor

from capsnet.figures.grid import in_colour
from capsnet.figures.style import BLACK, FONT, GREY
from capsnet.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

SIDE, NAME, SPACE = 84, 116, 12  # pixels: about a tile's longer side, the widest name below it, what is around both
TITLE, LETTERS, LINE = 17, 13, 16  # pixels: two sizes of type, and from one line of a name to the next
MARK = 7  # pixels: half the side of what shows where between first and last a frame is
PAUSE = 120  # milliseconds a frame
LEVELS = 32  # of brightness: with more, noise that nobody sees makes the file large


def write_animation(tiles: Tensor, names: Sequence[str], title: str, offsets: Sequence[float], path: Path) -> Path:
    """Write a GIF of tiles that change together, from the first of t offsets to the last and back, for ever.

    Under each tile is its name, of one line or two; above all are the title and the offset. The same tiles make the
    same bytes.
    tiles [n, t, c, h, w] in [0, 1]
    """
    shown = _enlarged(tiles)  # [n, t, h, w, rgb]
    n, t, h, w, _ = shown.shape
    columns = ceil(sqrt(n))
    cell = max(w, NAME) + SPACE, h + 2 * LINE + SPACE
    corners = [(SPACE + k % columns * cell[0], 3 * SPACE + 2 * LINE + k // columns * cell[1]) for k in range(n)]
    wide = max(SPACE + columns * cell[0], 2 * SPACE + int(_font(TITLE).getlength(title)))
    size = wide, 3 * SPACE + 2 * LINE + ceil(n / columns) * cell[1]
    blank = _blank(size, title, names, [(left, upper + h) for left, upper in corners])
    frames = [_frame(blank, shown[:, k], corners, offsets, k) for k in (*range(t), *range(t - 2, 0, -1))]
    if tiles.shape[2] != 3:
        frames = [frame.convert("L") for frame in frames]
    with atomic_write(path) as part:
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=PAUSE, loop=0)
    return path


def signed(offset: float) -> str:
    """A number with its sign; zero has none."""
    return f"{offset:+.3g}" if offset else "0"


def _enlarged(tiles: Tensor) -> Tensor:
    """Tiles [n, t, c, h, w] in [0, 1] → bytes [n, t, h, w, 3], each pixel made a square of whole pixels."""
    times = max(1, round(SIDE / max(tiles.shape[-2:])))
    levels = (in_colour(tiles).clamp(0, 1) * (LEVELS - 1)).round() * (255 / (LEVELS - 1))
    return repeat(levels.to(torch.uint8), "n t rgb h w -> n t (h down) (w across) rgb", down=times, across=times)


def _blank(size: tuple[int, int], title: str, names: Sequence[str], corners: Sequence[tuple[int, int]]) -> Image:
    """What all frames share: a title, and names whose upper left corners are given."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    pen.text((SPACE, SPACE // 2), title, BLACK, _font(TITLE))
    for name, corner in zip(names, corners, strict=True):
        pen.text(corner, name, GREY, _font(LETTERS))
    return page


def _frame(blank: Image, tiles: Tensor, corners: Sequence[tuple[int, int]], offsets: Sequence[float], at: int) -> Image:
    """One frame: its offset in figures and as a mark on a line, and tiles [n, h, w, rgb] at their corners."""
    from PIL import Image, ImageDraw

    page = blank.copy()
    pen, y = ImageDraw.Draw(page), SPACE + 2 * LINE
    pen.text((SPACE, y), signed(offsets[at]), BLACK, _font(TITLE), anchor="lm")
    left, right = SPACE + 80, page.width - 2 * SPACE
    pen.line((left, y, right, y), GREY)
    x = left + (right - left) * at / (len(offsets) - 1)
    pen.rectangle((x - MARK, y - MARK, x + MARK, y + MARK), BLACK)
    for tile, corner in zip(tiles, corners, strict=True):
        page.paste(Image.fromarray(tile.numpy()), corner)
    return page


def _font(size: int) -> FreeTypeFont:
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont(FONT), size)
