"""What a detector of badly drawn images sees: its ROC curves, the errors of every kind of image, and examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from capsnet.analysis.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LABEL,
    PALE,
    SMALL,
    TITLE,
    VERMILLION,
    cell_height,
    class_names,
    fitting,
    frame,
    keep_numbers,
    page,
    plot_grid,
    round_numbers,
    wrapped,
)
from capsnet.robustness.detection import Detection, Kind, auc
from capsnet.robustness.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches
PANELS, ROW = 4.6, 0.36  # inches: the least height of the two panels, and what a kind takes of it
EXAMPLES, CELL, LINE = 4, 0.66, 0.14  # a kind's examples, an image's width, and a line above it, in inches
SHORT, LONGEST = 8, 20  # letters of a class's name: two fit on one line above an example, or one alone
COLOURS = {"FGSM": BLUE, "PGD": GREEN, "aware": VERMILLION, "noise": GREY}
DASHES = ("--", "-", ":", "-.")  # by epsilon
CAPTION = (
    "Flagged is an image whose error, that of the winning capsule's drawing, squared and summed over pixels, is above "
    "the threshold. Validation images alone have set it: {percentile:g} % of n = {n:,} are not above it. Attacks start "
    "from test images that are classified right and count where they fooled the network. PGD, on the cross-entropy, "
    "and the aware attack, which also seeks an error below the threshold, take {steps} steps from one random start. "
    "Intervals: 95 %, Wilson. Dots: the threshold. AUC: the area below a curve; the aware attack stops just below the "
    "one threshold that it knows, so that elsewhere on its curve nobody is aware."
)


def draw_detection(result: Detection, path: Path) -> Path:
    """Draw the ROC curves, the drawing errors of every kind of image with the threshold, and a few of each kind.

    The numbers, every error among them, are written beside it as JSON.
    """
    kinds = (result.clean, *result.suspects)
    shown = [kind for kind in kinds if len(kind.seen.errors)]
    names = class_names(result.classes, LONGEST)
    panels, rows = max(PANELS, ROW * len(kinds)), -(-len(shown) // 2)
    block = 0.5 + LINE * _lines(names) + CELL * cell_height(*result.clean.seen.images.shape[2:])
    height = panels + 0.7 + block * rows
    with page(path, WIDTH, height) as figure:
        caption = CAPTION.format(n=result.detector.n, percentile=result.detector.percentile, steps=result.steps)
        figure.text(0, 0, wrapped(caption, WIDTH, SMALL), fontsize=SMALL, va="top", color=GREY)
        figure.text(0, 1, "Telling attacks by their drawings", fontsize=TITLE, weight="bold", va="bottom", color=BLACK)
        bottom, tall = 1 - (panels - 0.1) / height, (panels - 0.5) / height
        _draw_curves(figure.add_axes((0.05, bottom, 0.36, tall)), result)
        _draw_errors(figure.add_axes((0.56, bottom, 0.3, tall)), result)
        for k, kind in enumerate(shown):
            column, row = divmod(k, rows)
            _draw_examples(figure, result, kind, names, (column * WIDTH / 2, (rows - 1 - row) * block + 0.2))
    keep_numbers(path, numbers(result))
    return path


def roc(clean: Tensor, suspects: Tensor) -> tuple[Tensor, Tensor]:
    """False alarms and hits at every threshold, the highest first: shares of errors [m] and [n] above it, [t] each."""
    thresholds = torch.cat([clean, suspects, torch.tensor([-torch.inf])]).unique().flip(0)
    shares = [
        1 - torch.searchsorted(errors.sort().values, thresholds, right=True) / len(errors)
        for errors in (clean, suspects)
    ]
    return shares[0], shares[1]


def numbers(result: Detection) -> dict[str, Any]:
    """What the picture shows, for JSON: the clean images' share that is flagged is that of false alarms."""
    detector = {"threshold": result.detector.threshold, "percentile": result.detector.percentile}
    about = {"steps": result.steps, "seed": result.seed, "validation_n": result.detector.n}
    kinds = [_numbers(result, kind) for kind in (result.clean, *result.suspects)]
    return detector | about | {"clean": kinds[0], "suspects": kinds[1:]}


def _numbers(result: Detection, kind: Kind) -> dict[str, Any]:
    n, flagged = len(kind.seen.errors), int(result.detector.flags(kind.seen.errors).sum())
    return {
        "name": kind.name,
        "epsilon": kind.epsilon,
        "tried": kind.tried,
        "n": n,
        "flagged": flagged,
        "flagged_interval": wilson(flagged, n) if n else None,
        "undetected": n - flagged,
        "undetected_of_tried_interval": wilson(n - flagged, kind.tried),
        "auc": auc(result.clean.seen.errors, kind.seen.errors),
        "errors": [round(error, 4) for error in kind.seen.errors.tolist()],
    }


def _name(kind: Kind) -> str:
    return fitting(Path(kind.name).name, 20, "other data") + ("" if kind.epsilon is None else f", ε = {kind.epsilon:g}")


def _look(result: Detection, kind: Kind) -> dict[str, Any]:
    """Colour and dashes of a kind: another for every attack and every epsilon."""
    epsilons = sorted({other.epsilon for other in result.suspects if other.epsilon is not None})
    dashes = "-." if kind.epsilon is None else DASHES[epsilons.index(kind.epsilon) % len(DASHES)]
    return {"color": COLOURS.get(kind.name, BLACK), "linestyle": dashes}


def _draw_curves(axes: Axes, result: Detection) -> None:
    """Draw the share of each kind that is flagged against that of clean images, at every threshold."""
    clean = result.clean.seen.errors
    axes.plot((0, 1), (0, 1), color=PALE, linewidth=1)
    for kind in result.suspects:
        if not len(kind.seen.errors):
            continue
        area = auc(clean, kind.seen.errors)
        label = f"{_name(kind)}: AUC {area:.3f}, n = {len(kind.seen.errors):,}"
        axes.plot(*roc(clean, kind.seen.errors), **_look(result, kind), linewidth=1.6, label=label)
        at = [result.detector.flags(errors).float().mean() for errors in (clean, kind.seen.errors)]
        axes.plot(*at, "o", color=COLOURS.get(kind.name, BLACK), markersize=4)
    axes.set_xlabel(f"clean test images flagged (share of n = {len(clean):,})", fontsize=LABEL)
    axes.set_ylabel("suspects flagged (share)", fontsize=LABEL)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.tick_params(labelsize=SMALL)
    axes.legend(fontsize=SMALL - 1, loc="lower right", framealpha=0.9, handlelength=3.2)


def _draw_errors(axes: Axes, result: Detection) -> None:
    """Draw a dot an image, a row a kind, against its error; beside it the share that is flagged."""
    kinds = (result.clean, *result.suspects)
    for row, kind in enumerate(kinds):
        errors = kind.seen.errors.clamp(min=1e-3)  # the scale is logarithmic
        heights = row + 0.6 * ((torch.arange(len(errors)) * 0.618034) % 1 - 0.5)  # spread, but not at random
        axes.plot(errors, heights, ".", color=COLOURS.get(kind.name, BLACK), markersize=2, alpha=0.6)
        told = _numbers(result, kind)
        words = "fooled none"
        if told["n"]:
            low, high = told["flagged_interval"]
            words = f"{100 * told['flagged'] / told['n']:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
            words += "" if kind.epsilon is None else f"\n{told['undetected']} of {kind.tried:,} undetected"
        axes.text(1.02, row, words, transform=axes.get_yaxis_transform(), va="center", fontsize=SMALL, color=BLACK)
    axes.axvline(result.detector.threshold, color=BLACK, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(kinds)), [f"{_name(kind)}\n{_counted(kind)}" for kind in kinds], fontsize=SMALL)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_xticks(ticks := round_numbers(*axes.get_xlim()), [f"{tick:g}" for tick in ticks], fontsize=SMALL)
    axes.minorticks_off()
    axes.set_xlabel("error of the drawing", fontsize=LABEL)
    axes.set_title(f"threshold {result.detector.threshold:.1f}", fontsize=SMALL, color=GREY)
    axes.text(1.02, -0.6, "flagged", transform=axes.get_yaxis_transform(), va="bottom", fontsize=SMALL, color=GREY)


def _counted(kind: Kind) -> str:
    n = len(kind.seen.errors)
    return f"n = {n:,}" if kind.epsilon is None else f"fooled {n:,} of {kind.tried:,}"


def _lines(names: list[str]) -> int:
    """Lines above an example: label and answer share one where their names are short."""
    return 2 if max(map(len, names)) <= SHORT else 3


def _draw_examples(
    figure: Figure, result: Detection, kind: Kind, names: list[str], corner: tuple[float, float]
) -> None:
    """Draw a kind's first images, each beside its drawing, with answer and error; the flagged ones are framed."""
    seen = kind.seen
    pairs = torch.stack([seen.images[:EXAMPLES], seen.drawings[:EXAMPLES]])  # [2, n, c, h, w]
    axes = plot_grid(figure, rearrange(pairs, "two n c h w -> 1 (n two) c h w"), corner, CELL, [""])
    title = {"fontsize": SMALL, "weight": "bold", "color": BLACK, "loc": "left"}
    axes.set_title(_name(kind), pad=72 * LINE * _lines(names) + 4, **title)  # type: ignore[arg-type]
    between = " → " if _lines(names) == 2 else "\n→ "
    for k, flagged in enumerate(result.detector.flags(seen.errors[:EXAMPLES]).tolist()):
        answer, colour = names[int(seen.answers[k])], VERMILLION if flagged else BLACK
        answer = answer if kind.labels is None else f"{names[int(kind.labels[k])]}{between}{answer}"
        words = f"{answer}\n{seen.errors[k]:.1f}{', flagged' * flagged}"
        axes.text(2 * k + 0.5, -0.56, words, ha="center", va="bottom", fontsize=SMALL - 1, color=colour)
        if flagged:
            frame(axes, 0, 2 * k, VERMILLION)
            frame(axes, 0, 2 * k + 1, VERMILLION)
