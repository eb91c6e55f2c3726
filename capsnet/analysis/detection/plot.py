"""Plot of a detector: ROC curves, the reconstruction errors of every group of images, and examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from capsnet.analysis import style
from capsnet.analysis.accuracy import wilson
from capsnet.analysis.detection.measure import Detection, ImageGroup, auc
from capsnet.analysis.style import BLACK, BLUE, GREEN, GREY, LABEL, SMALL, VERMILLION, keep_numbers, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches
PANELS, ROW = 4.6, 0.36  # inches: the least height of the two panels, and a group's part of it
EXAMPLES, CELL, LINE = 4, 0.66, 0.14  # a group's examples, an image's width, and a line above it, in inches
SHORT, LONGEST = 8, 20  # characters of a class's name: two names fit on one line above an example, or one alone
COLOURS = {"FGSM": BLUE, "PGD": GREEN, "adaptive": VERMILLION, "noise": GREY}
DASHES = ("--", "-", ":", "-.")  # by epsilon
CAPTION = (
    "An image is flagged if the squared error of the reconstruction from its longest capsule, summed over pixels, is "
    "above the threshold, which was set on validation images alone: {percentile:g} % of n = {n:,} are not above it. "
    "Test images that are classified right are attacked; only those that then fool the network count. PGD, on the "
    "cross-entropy, and the adaptive attack, which also seeks an error below the threshold, take {steps} steps from "
    "one random start. Intervals: 95 %, Wilson. Dots: the threshold. AUC: the area under a curve; for the adaptive "
    "attack only its dot counts, because it stops just below that one threshold."
)


def plot_detection(result: Detection, path: Path) -> Path:
    """Plot the ROC curves, the errors of every group of images with the threshold, and a few images of each group.

    The numbers, with every error, are written next to it as JSON.
    """
    groups = (result.clean, *result.suspects)
    shown = [group for group in groups if len(group.errors)]
    names = style.class_names(result.classes, LONGEST)
    panels, rows = max(PANELS, ROW * len(groups)), -(-len(shown) // 2)
    block = 0.5 + LINE * _lines(names) + CELL * style.cell_height(*result.clean.images.shape[2:])
    height = panels + 0.7 + block * rows
    with page(path, WIDTH, height) as figure:
        caption = CAPTION.format(n=result.detector.n, percentile=result.detector.percentile, steps=result.steps)
        style.write_note(figure, caption, 0)
        style.write_title(figure, "Detection of attacks by the reconstruction error", height)
        bottom, tall = 1 - (panels - 0.1) / height, (panels - 0.5) / height
        _plot_roc(figure.add_axes((0.05, bottom, 0.36, tall)), result)
        _plot_errors(figure.add_axes((0.56, bottom, 0.3, tall)), result)
        for k, group in enumerate(shown):
            column, row = divmod(k, rows)
            _plot_examples(figure, result, group, names, (column * WIDTH / 2, (rows - 1 - row) * block + 0.2))
    keep_numbers(path, numbers(result))
    return path


def roc(clean: Tensor, suspects: Tensor) -> tuple[Tensor, Tensor]:
    """False and true positive rates [t] at every threshold, the highest first: shares of errors [m], [n] above it."""
    thresholds = torch.cat([clean, suspects, torch.tensor([-torch.inf])]).unique().flip(0)
    false, true = (
        1 - torch.searchsorted(errors.sort().values, thresholds, right=True) / len(errors)
        for errors in (clean, suspects)
    )
    return false, true


def numbers(result: Detection) -> dict[str, Any]:
    """The numbers of the plot, for JSON: the share of the clean images that is flagged is that of false alarms."""
    detector = {"threshold": result.detector.threshold, "percentile": result.detector.percentile}
    about = {"steps": result.steps, "seed": result.seed, "validation_n": result.detector.n}
    groups = [_numbers(result, group) for group in (result.clean, *result.suspects)]
    return detector | about | {"clean": groups[0], "suspects": groups[1:]}


def _numbers(result: Detection, group: ImageGroup) -> dict[str, Any]:
    n, flagged = len(group.errors), int(result.detector.flags(group.errors).sum())
    return {
        "name": group.name,
        "epsilon": group.epsilon,
        "tried": group.tried,
        "n": n,
        "flagged": flagged,
        "flagged_interval": wilson(flagged, n) if n else None,
        "undetected": n - flagged,
        "undetected_of_tried_interval": wilson(n - flagged, group.tried),
        "auc": auc(result.clean.errors, group.errors),
        "errors": [round(error, 4) for error in group.errors.tolist()],
    }


def _name(group: ImageGroup) -> str:
    name = style.fitting(Path(group.name).name, 20, "out-of-distribution")
    return name if group.epsilon is None else f"{name}, ε = {group.epsilon:g}"


def _plot_roc(axes: Axes, result: Detection) -> None:
    """Plot the share of each group that is flagged against that of clean images, at every threshold."""
    clean = result.clean.errors
    epsilons = sorted({group.epsilon for group in result.suspects if group.epsilon is not None})
    axes.plot((0, 1), (0, 1), color=style.PALE, linewidth=1)
    for group in result.suspects:
        if not len(group.errors):
            continue
        dashes = "-." if group.epsilon is None else DASHES[epsilons.index(group.epsilon) % len(DASHES)]
        colour = COLOURS.get(group.name, BLACK)
        label = f"{_name(group)}: AUC {auc(clean, group.errors):.3f}, n = {len(group.errors):,}"
        axes.plot(*roc(clean, group.errors), color=colour, linestyle=dashes, linewidth=1.6, label=label)
        at_threshold = [result.detector.flags(errors).float().mean() for errors in (clean, group.errors)]
        axes.plot(*at_threshold, "o", color=colour, markersize=4)
    axes.set_xlabel(f"clean test images flagged (share of n = {len(clean):,})", fontsize=LABEL)
    axes.set_ylabel("suspects flagged (share)", fontsize=LABEL)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.tick_params(labelsize=SMALL)
    axes.legend(fontsize=SMALL - 1, loc="lower right", framealpha=0.9, handlelength=3.2)


def _plot_errors(axes: Axes, result: Detection) -> None:
    """Plot a dot for each image at its error, a row for each group; next to it the share that is flagged."""
    groups, labels = (result.clean, *result.suspects), []
    for row, group in enumerate(groups):
        errors = group.errors.clamp(min=1e-3)  # the scale is logarithmic
        heights = row + 0.6 * ((torch.arange(len(errors)) * 0.618034) % 1 - 0.5)  # spread, but not at random
        axes.plot(errors, heights, ".", color=COLOURS.get(group.name, BLACK), markersize=2, alpha=0.6)
        measured, words = _numbers(result, group), "fooled none"
        n = measured["n"]
        if n:
            low, high = measured["flagged_interval"]
            words = f"{100 * measured['flagged'] / n:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
            words += "" if group.epsilon is None else f"\n{measured['undetected']} of {group.tried:,} undetected"
        axes.text(1.02, row, words, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL, color=BLACK)
        counted = f"n = {n:,}" if group.epsilon is None else f"fooled {n:,} of {group.tried:,}"
        labels.append(f"{_name(group)}\n{counted}")
    axes.axvline(result.detector.threshold, color=BLACK, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(groups)), labels, fontsize=SMALL)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xticks(ticks := style.round_numbers(*axes.get_xlim()), [f"{tick:g}" for tick in ticks], fontsize=SMALL)
    axes.minorticks_off()
    axes.set_xlabel("reconstruction error", fontsize=LABEL)
    axes.set_title(f"threshold {result.detector.threshold:.1f}", fontsize=SMALL, color=GREY)
    axes.text(1.02, -0.6, "flagged", transform=axes.get_yaxis_transform(), va="bottom", fontsize=SMALL, color=GREY)


def _lines(names: list[str]) -> int:
    """Lines above an example: label and prediction share one where their names are short."""
    return 2 if max(map(len, names)) <= SHORT else 3


def _plot_examples(
    figure: Figure, result: Detection, group: ImageGroup, names: list[str], corner: tuple[float, float]
) -> None:
    """Plot a group's first images next to their reconstructions, with prediction and error; flagged ones are framed."""
    pairs = torch.stack([group.images[:EXAMPLES], group.reconstructions[:EXAMPLES]])  # [2, n, c, h, w]
    axes = style.plot_grid(figure, rearrange(pairs, "two n c h w -> 1 (n two) c h w"), corner, CELL, [""])
    pad = 72 * LINE * _lines(names) + 4
    axes.set_title(_name(group), fontsize=SMALL, weight="bold", color=BLACK, loc="left", pad=pad)
    between = " → " if _lines(names) == 2 else "\n→ "
    for k, flagged in enumerate(result.detector.flags(group.errors[:EXAMPLES]).tolist()):
        prediction, colour = names[int(group.predictions[k])], VERMILLION if flagged else BLACK
        words = prediction if group.labels is None else f"{names[int(group.labels[k])]}{between}{prediction}"
        words += f"\n{group.errors[k]:.1f}{', flagged' * flagged}"
        axes.text(2 * k + 0.5, -0.56, words, ha="center", va="bottom", fontsize=SMALL - 1, color=colour)
        if flagged:
            style.frame(axes, 0, 2 * k, VERMILLION)
            style.frame(axes, 0, 2 * k + 1, VERMILLION)
