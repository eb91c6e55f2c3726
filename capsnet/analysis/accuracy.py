"""Accuracies of networks: their 95 % intervals, and how plots show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from capsnet.analysis import style
from capsnet.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Z = 1.959963984540054  # standard deviations of a normal distribution that hold 95 % of it
COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.BLACK)  # by network
DASHES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score ("Probable Inference", J. Am. Stat. Assoc. 22, 1927).

    right of n → its lower and upper end, shares in [0, 1]; unlike right/n ± 1.96 standard errors, it is not empty
    where all or none are right.
    Raises InputError for no images, and for more right images than n.
    """
    if not 0 <= right <= n or n < 1:
        raise InputError(f"a share is of at least one image, with 0 to n of n right: not {right} of {n}")
    share, doubt = right / n, Z**2 / n
    centre = share + doubt / 2
    reach = Z * (share * (1 - share) / n + doubt / (4 * n)) ** 0.5
    low, high = ((centre + side * reach) / (1 + doubt) for side in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def share(right: int, n: int) -> dict[str, Any]:
    """Return n, right, accuracy and its 95 % interval as numbers to publish; without images the last three are None."""
    low, high = wilson(right, n) if n else (None, None)
    return {"n": n, "right": right, "accuracy": right / n if n else None, "low": low, "high": high}


def network_styles(networks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the line style and the label of each network: neighbours differ in colour, dashes and marker."""
    styles = {}
    for k, name in enumerate(dict.fromkeys(networks)):
        label = style.fitting(name, style.LONGEST, f"network {k}")
        lines = {"color": COLOURS[k % 4], "linestyle": DASHES[k % 4], "marker": MARKERS[k % 4]}
        styles[name] = lines | {"label": label, "markersize": 4, "linewidth": 1.4}
    return styles


def plot_accuracy(axes: Axes, x: Sequence[float], right: Sequence[int], n: int, line: dict[str, Any]) -> None:
    """Plot the accuracies, in %, of `right` images of n at each x, with their 95 % intervals as a band."""
    low, high = ([100 * end for end in ends] for ends in zip(*(wilson(count, n) for count in right), strict=True))
    axes.fill_between(x, low, high, alpha=0.2, color=line["color"], linewidth=0)
    axes.plot(x, [100 * count / n for count in right], clip_on=False, **line)
