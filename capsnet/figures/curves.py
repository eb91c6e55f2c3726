"""How a training run went: its losses, errors and learning rate."""

from __future__ import annotations

from itertools import batched
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from capsnet.errors import InputError
from capsnet.figures.style import BLACK, BLUE, GREEN, GREY, LABEL, ORANGE, PALE, SMALL, TITLE, VERMILLION
from capsnet.figures.style import fitting, page, round_numbers
from capsnet.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = list[dict[str, Any]]
