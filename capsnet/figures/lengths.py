"""What the lengths of the winning capsules are worth: accuracy by class, lengths right and wrong, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from capsnet.errors import InputError
from capsnet.figures.style import (
    BLACK,
    BLUE,
    GREY,
    LABEL,
    PALE,
    SMALL,
    TITLE,
    VERMILLION,
    class_names,
    keep_numbers,
    page,
    round_numbers,
)
from capsnet.robustness.intervals import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 24  # letters of a class's name that fit below its point
ROUNDING = 1e-5  # by which a probability of 1 may lie above it
POINTS, LETTER = 72, 0.66  # in an inch; width of a letter in its type size
NOTE = {
    "length": "The margin loss asks lengths for more than 0.9 or less than 0.1: it does not train them to be "
    "probabilities.",
    "probability": "The probabilities are the network's softmax.",
}


@dataclass(frozen=True)
class Bin:
    """The answers whose winning score is in [low, high), or in [low, 1] for the last bin."""

    low: float
    high: float
    n: int
    right: int
    mean: float | None
    """Mean winning score; None without answers."""


def calibration(winning: Tensor, right: Tensor, bins: int = 15) -> tuple[list[Bin], float]:
    """Sort answers into bins of equal width over [0, 1]; with them, the expected calibration error (ECE).

    It is the mean over bins, weighted by their answers, of |accuracy - mean winning score|, as in Guo, Pleiss, Sun
    and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017), whose 15 bins are the default.
    winning [n] in [0, 1], right bool [n] → bins, error
    """
    places = (winning.double() * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(places, minlength=bins).tolist()
    rights = torch.bincount(places, right.double(), minlength=bins).long().tolist()
    sums = torch.bincount(places, winning.double(), minlength=bins).tolist()
    sorted_in = [
        Bin(k / bins, (k + 1) / bins, n, good, total / n if n else None)
        for k, (n, good, total) in enumerate(zip(counts, rights, sums, strict=True))
    ]
    gaps = [abs(good - total) for good, total in zip(rights, sums, strict=True)]
    return sorted_in, sum(gaps) / len(winning)


def draw_lengths(
    scores: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    path: Path,
    *,
    kind: Literal["length", "probability"] = "length",
) -> Path:
    """Draw accuracy by class, the winning lengths of right and of wrong answers, and accuracy against winning length.

    `kind` says what the scores are: a CapsNet's lengths, or a baseline's probabilities. Accuracies have 95 % intervals
    by Wilson's score; the numbers are kept beside the picture.
    Raises InputError for no answers, scores outside [0, 1], and scores, labels and names that do not match.
    scores [n, j] in [0, 1], labels [n]
    """
    _check(scores, labels, classes)
    winning, predictions = scores.float().cpu().clamp(max=1).max(dim=-1)  # over classes j
    right = predictions == labels.cpu()
    of_class = [right[labels.cpu() == k] for k in range(len(classes))]
    by_class = [share(int(each.sum()), len(each)) for each in of_class]
    bins, error = calibration(winning, right)
    whole = share(int(right.sum()), len(right))
    width = min(20.0, max(9.0, 0.25 * len(classes)))
    with page(path, width, 7.5, layout="constrained") as figure:
        title = f"BatchPredictions for n = {len(right):,} images: {100 * whole['accuracy']:.2f} % right"
        figure.suptitle(title, fontsize=TITLE, weight="bold", color=BLACK)
        panels = figure.subplot_mosaic([["classes", "classes"], ["scores", "bins"]])
        _draw_classes(panels["classes"], by_class, class_names(classes, LONGEST), width)
        _draw_scores(panels["scores"], winning, right, kind)
        _draw_bins(panels["bins"], bins, error, kind)
        figure.supxlabel(NOTE[kind], fontsize=SMALL, color=GREY)
    binned = [asdict(each) | share(each.right, each.n) for each in bins]
    named = [{"name": name} | each for name, each in zip(classes, by_class, strict=True)]
    keep_numbers(path, {"scores": kind} | whole | {"calibration_error": error, "bins": binned, "classes": named})
    return path


def _check(scores: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    if not len(labels):
        raise InputError("there are no answers to draw: give at least one image's scores and label")
    if scores.shape != (len(labels), len(classes)):
        raise InputError(
            f"{len(labels)} labels and {len(classes)} class names need scores of {[len(labels), len(classes)]} "
            f"(images, classes), not {list(scores.shape)}"
        )
    low, high = (float(end) for end in scores.float().aminmax())
    if not (low >= 0 and high <= 1 + ROUNDING):  # NaN is neither
        raise InputError(f"scores are lengths or probabilities in [0, 1], not {low:g} to {high:g}: logits want softmax")


def _draw_classes(axes: Axes, shares: list[dict[str, Any]], names: list[str], width: float) -> None:
    """Draw the accuracy of each class that has images."""
    seen = [k for k, each in enumerate(shares) if each["n"]]
    _draw_shares(axes, seen, [shares[k] for k in seen], 100, color=BLUE, fmt="o")
    cell = (width - 1) / len(names) * POINTS
    size = min(SMALL, 0.75 * cell)
    upright = LETTER * size * max(map(len, names)) > cell
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if upright else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    sizes = sorted(shares[k]["n"] for k in seen)
    many = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    _label(axes, f"class ({many} images each)", "accuracy in %", "Accuracy by class, with 95 % intervals")


def _draw_scores(axes: Axes, winning: Tensor, right: Tensor, kind: str) -> None:
    """Draw how often right and wrong answers have a winning score, on a logarithmic scale."""
    edges = [k / 40 for k in range(41)]
    good, bad = (torch.histc(winning[which], 40, 0, 1).tolist() for which in (right, ~right))
    most = max(good + bad)
    axes.stairs(good, edges, fill=True, color=BLUE, alpha=0.45, label=f"right (n = {int(right.sum()):,})")
    axes.stairs(bad, edges, color=VERMILLION, linewidth=1.6, label=f"wrong (n = {int((~right).sum()):,})")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * (2 * most) ** 1.15)  # room for the legend
    axes.set_xlim(0, 1)
    axes.set_yticks(round_numbers(1, most)[:: 1 if most < 50 else 3])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", ncols=2)
    _label(axes, f"winning {kind}", "images", f"Winning {kind} of right and wrong answers")


def _draw_bins(axes: Axes, bins: list[Bin], error: float, kind: str) -> None:
    """Draw the accuracy in each bin that has answers at its mean winning score, with the bin's n below."""
    seen = [each for each in bins if each.mean is not None]
    axes.plot((0, 1), (0, 1), "--", color=GREY, linewidth=1, label=f"{kind} = accuracy")
    shares, look = [share(each.right, each.n) for each in seen], {"color": VERMILLION, "fmt": "s"}
    _draw_shares(axes, [each.mean or 0.0 for each in seen], shares, 1, label="measured, with 95 % intervals", **look)
    for each in seen:
        place = (each.low + each.high) / 2, -0.14
        words = {"ha": "center", "va": "center", "fontsize": SMALL - 2, "color": GREY, "rotation": 90}
        axes.text(*place, f"{each.n:,}", **words)  # type: ignore[arg-type]
    axes.text(-0.03, -0.14, "n", fontsize=SMALL, color=GREY, ha="right", va="center")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.27, 1.25)
    axes.set_yticks([k / 5 for k in range(6)])
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", ncols=2)
    title = f"Calibration error (ECE) {100 * error:.1f} %, {len(bins)} bins of equal width"
    _label(axes, f"mean winning {kind} in a bin", "accuracy", title)


def _draw_shares(axes: Axes, places: Sequence[float], shares: list[dict[str, Any]], unit: float, **look: str) -> None:
    """Draw accuracies and their intervals, in units of which so many are 1."""
    accuracy, low, high = ([unit * each[part] for each in shares] for part in ("accuracy", "low", "high"))
    reach = [[a - b for a, b in zip(accuracy, low, strict=True)], [b - a for a, b in zip(accuracy, high, strict=True)]]
    axes.errorbar(places, accuracy, reach, markersize=4, capsize=3, linewidth=1.2, **look)  # type: ignore[arg-type]


def _label(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set_xlabel(across, fontsize=LABEL)
    axes.set_ylabel(up, fontsize=LABEL)
    axes.set_title(title, fontsize=LABEL, color=BLACK, loc="left")
    axes.tick_params(axis="y", labelsize=SMALL)
    axes.grid(color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
