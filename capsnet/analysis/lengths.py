"""Accuracy by class, the winning lengths of right and of wrong predictions, and the calibration of the lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from capsnet.analysis import style
from capsnet.analysis.accuracy import share
from capsnet.analysis.style import BLUE, GREY, LABEL, SMALL, VERMILLION, keep_numbers, page
from capsnet.analysis.subject import Context, subject
from capsnet.errors import InputError
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUNDING = 1e-5  # by which rounding may raise a probability above 1
Score = Literal["length", "probability"]
NOTES: dict[Score, str] = {
    "length": "The margin loss asks for lengths above 0.9 or below 0.1: it does not train them to be probabilities.",
    "probability": "The probabilities are the network's softmax.",
}


@dataclass(frozen=True)
class Bin:
    """The predictions whose winning score is in [low, high), or in [low, 1] for the last bin."""

    low: float
    high: float
    n: int
    right: int
    mean: float | None
    """Mean winning score; None without predictions."""


def calibration(winning: Tensor, right: Tensor, bins: int = 15) -> tuple[list[Bin], float]:
    """Sort predictions into bins of equal width over [0, 1], and compute the expected calibration error (ECE).

    It is the mean over bins, weighted by their predictions, of |accuracy - mean winning score|, as in Guo, Pleiss, Sun
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


def plot_lengths(
    scores: Tensor, labels: Tensor, classes: tuple[str, ...], path: Path, *, kind: Score = "length"
) -> Path:
    """Plot accuracy by class, the winning lengths of right and wrong predictions, and accuracy against winning length.

    `kind` says what the scores are: a CapsNet's lengths, or a baseline's probabilities. Accuracies have 95 % intervals
    by Wilson's score. The numbers are written next to the figure, as JSON.
    Raises InputError for no predictions, scores outside [0, 1], and scores, labels and names that do not match.
    scores [n, j] in [0, 1], labels [n]
    """
    _check(scores, labels, classes)
    winning, predictions = scores.float().cpu().clamp(max=1).max(dim=-1)  # over classes j
    right = predictions == labels.cpu()
    of_class = [right[labels.cpu() == k] for k in range(len(classes))]
    by_class = [share(int(each.sum()), len(each)) for each in of_class]
    bins, error = calibration(winning, right)
    overall = share(int(right.sum()), len(right))
    width = min(20.0, max(9.0, 0.25 * len(classes)))
    with page(path, width, 7.5, layout="constrained") as figure:
        title = f"Predictions for n = {len(right):,} images: {100 * overall['accuracy']:.2f} % right"
        figure.suptitle(title, **style.HEADING)
        panels = figure.subplot_mosaic([["classes", "classes"], ["scores", "bins"]])
        _plot_classes(panels["classes"], by_class, style.class_names(classes), width)
        _plot_scores(panels["scores"], winning, right, kind)
        _plot_bins(panels["bins"], bins, error, kind)
        figure.supxlabel(NOTES[kind], **style.NOTE)
    binned = [asdict(each) | share(each.right, each.n) for each in bins]
    named = [{"name": name} | each for name, each in zip(classes, by_class, strict=True)]
    keep_numbers(path, {"scores": kind} | overall | {"calibration_error": error, "bins": binned, "classes": named})
    return path


def _check(scores: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    if not len(labels):
        raise InputError("there are no predictions to plot: give at least one image's scores and label")
    if scores.shape != (len(labels), len(classes)):
        raise InputError(
            f"{len(labels)} labels and {len(classes)} class names need scores of {[len(labels), len(classes)]} "
            f"(images, classes), not {list(scores.shape)}"
        )
    low, high = (float(end) for end in scores.float().aminmax())
    if not (low >= 0 and high <= 1 + ROUNDING):  # NaN is neither
        raise InputError(
            f"scores are lengths or probabilities in [0, 1], not {low:g} to {high:g}: apply softmax to logits"
        )


def _plot_classes(axes: Axes, shares: list[dict[str, Any]], names: list[str], width: float) -> None:
    """Plot the accuracy of each class that has images."""
    seen = [k for k, each in enumerate(shares) if each["n"]]
    cell = (width - 1) / len(names)  # inches
    size = min(SMALL, 0.75 * cell * style.POINTS)
    sizes = sorted(shares[k]["n"] for k in seen)
    many = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    _label(axes, f"class ({many} images each)", "accuracy in %", "Accuracy by class, with 95 % intervals")
    _plot_shares(axes, seen, [shares[k] for k in seen], 100, color=BLUE, fmt="o")
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=style.rotation(names, cell, size))
    axes.set_xlim(-0.6, len(names) - 0.4)


def _plot_scores(axes: Axes, winning: Tensor, right: Tensor, kind: str) -> None:
    """Plot histograms of the winning scores of right and of wrong predictions, on a logarithmic scale."""
    edges = [k / 40 for k in range(41)]
    good, bad = (torch.histc(winning[which], 40, 0, 1).tolist() for which in (right, ~right))
    most = max(good + bad)
    axes.stairs(good, edges, fill=True, color=BLUE, alpha=0.45, label=f"right (n = {int(right.sum()):,})")
    axes.stairs(bad, edges, color=VERMILLION, linewidth=1.6, label=f"wrong (n = {int((~right).sum()):,})")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2 * (2 * most) ** 1.15)  # room for the legend
    axes.set_xlim(0, 1)
    axes.set_yticks(style.round_numbers(1, most)[:: 1 if most < 50 else 3])
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", ncols=2)
    _label(axes, f"winning {kind}", "images", f"Winning {kind} of right and wrong predictions")


def _plot_bins(axes: Axes, bins: list[Bin], error: float, kind: str) -> None:
    """Plot the accuracy in each bin that has predictions at its mean winning score, with the bin's n below."""
    seen = [each for each in bins if each.mean is not None]
    axes.plot((0, 1), (0, 1), "--", color=GREY, linewidth=1, label=f"{kind} = accuracy")
    shares, marks = [share(each.right, each.n) for each in seen], {"color": VERMILLION, "fmt": "s"}
    _plot_shares(axes, [each.mean or 0.0 for each in seen], shares, 1, label="measured, with 95 % intervals", **marks)
    small: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL - 2, "color": GREY, "rotation": 90}
    for each in seen:
        axes.text((each.low + each.high) / 2, -0.14, f"{each.n:,}", **small)
    axes.text(-0.03, -0.14, "n", ha="right", va="center", **style.NOTE)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.27, 1.25)
    axes.set_yticks([k / 5 for k in range(6)])
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", ncols=2)
    title = f"Calibration error (ECE) {100 * error:.1f} %, {len(bins)} bins of equal width"
    _label(axes, f"mean winning {kind} in a bin", "accuracy", title)


def _plot_shares(axes: Axes, places: Sequence[float], shares: list[dict[str, Any]], unit: float, **marks: Any) -> None:
    """Plot accuracies and their intervals, times a unit."""
    accuracy, low, high = ([unit * each[part] for each in shares] for part in ("accuracy", "low", "high"))
    reach = [[a - b for a, b in zip(accuracy, low, strict=True)], [b - a for a, b in zip(accuracy, high, strict=True)]]
    axes.errorbar(places, accuracy, reach, markersize=4, capsize=3, linewidth=1.2, **marks)


def _label(axes: Axes, across: str, up: str, title: str) -> None:
    axes.set_xlabel(across, fontsize=LABEL)
    axes.set_ylabel(up, fontsize=LABEL)
    axes.set_title(title, fontsize=LABEL, color=style.BLACK, loc="left")
    style.tidy(axes)


@subject(
    {
        "lengths.png": "Accuracy by class, the winning lengths of right and of wrong predictions, and accuracy "
        "against length.",
    },
)
def lengths(context: Context) -> Iterator[Path]:
    """Plot accuracy by class, the lengths of right and wrong predictions, and their calibration."""
    kind: Score = "length" if isinstance(context.network, CapsNet) else "probability"
    given, path = context.predictions, context.folder / "lengths.png"
    yield plot_lengths(given.scores, given.labels, context.data.classes, path, kind=kind)
