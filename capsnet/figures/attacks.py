"""Accuracy under attack, network beside network, and whether the attacks can be trusted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsnet.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LABEL,
    PALE,
    SMALL,
    TITLE,
    VERMILLION,
    fitting,
    keep_numbers,
    page,
    wrapped,
)
from capsnet.robustness.attacks import Attacks, Curve
from capsnet.robustness.masking import Check, Masking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 24  # letters of a network's name
LINES = ((BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, ":", "^"), (BLACK, "-.", "D"))  # by network
WIDTH = 9.0  # inches
UNITS = {
    "Linf": "largest change of a pixel (Linf), pixels in [0, 1]",
    "L2": "change of the image (L2), pixels in [0, 1]",
}


def draw_attacks(attacks: Attacks, path: Path, *, masking: Masking | None = None) -> Path:
    """Draw the accuracy against the strength of each attack, a panel an attack and a line a network.

    Checks for masked gradients are a second picture, whose name ends in -masking.
    """
    kinds = list(dict.fromkeys((curve.attack, curve.norm) for curve in attacks.curves))
    styles = _styles([curve.network for curve in attacks.curves])
    with page(path, WIDTH, 3.3 * -(-len(kinds) // 2) + 0.8, layout="constrained") as figure:
        figure.suptitle("Accuracy under attack", fontsize=TITLE, weight="bold", color=BLACK)
        panels = figure.subplots(-(-len(kinds) // 2), 2, squeeze=False, sharey=True).flat
        for axes, kind in zip(panels, kinds, strict=False):
            curves = [curve for curve in attacks.curves if (curve.attack, curve.norm) == kind]
            _draw_attack(axes, curves, styles)
        for axes in list(figure.axes)[len(kinds) :]:
            axes.remove()
        bim, pgd = attacks.settings["bim_steps"], attacks.settings["pgd_steps"]
        caption = (
            "Bands: 95 % intervals by Wilson's score. What is fooled by a smaller change counts as fooled by a larger "
            "one. Where DeepFool finds nothing it counts as right, so that its curve is an upper bound. "
            f"BIM: {bim} steps, PGD: {pgd} steps from a random start, each until it has fooled."
        )
        figure.supxlabel(wrapped(caption, WIDTH, SMALL), fontsize=SMALL, color=GREY, x=0.01, ha="left")
    numbers: dict[str, Any] = {"settings": attacks.settings, "curves": [_numbers(curve) for curve in attacks.curves]}
    if masking:
        _draw_masking(masking, path.with_stem(f"{path.stem}-masking"), styles)
        told = [asdict(check) | {"sentence": check.sentence} for check in masking.checks]
        numbers["masking"] = {"probe": asdict(masking.probe), "checks": told}
    keep_numbers(path, numbers)
    return path


def _styles(networks: list[str]) -> dict[str, dict[str, Any]]:
    """How each network's lines look: no two alike in colour, dashes and markers."""
    styles = {}
    for k, name in enumerate(dict.fromkeys(networks)):
        colour, dashes, marker = LINES[k % len(LINES)]
        label = fitting(name, LONGEST, f"network {k}")
        styles[name] = {"color": colour, "linestyle": dashes, "marker": marker, "label": label}
    return styles


def _draw_attack(axes: Axes, curves: list[Curve], styles: dict[str, dict[str, Any]]) -> None:
    """Draw one attack on every network, with the intervals as bands."""
    for curve in curves:
        style = styles[curve.network]
        low, high = ([100 * end for end in ends] for ends in zip(*curve.intervals, strict=True))
        axes.fill_between(curve.epsilons, low, high, alpha=0.2, color=style["color"], linewidth=0)
        axes.plot(curve.epsilons, [100 * share for share in curve.accuracies], markersize=4, linewidth=1.4, **style)
    axes.set_title(f"{curves[0].attack}, n = {curves[0].n:,}", fontsize=LABEL, color=BLACK, loc="left")
    axes.set_xlabel(UNITS[curves[0].norm], fontsize=SMALL)
    axes.set_xlim(left=0)
    _finish(axes)


def _finish(axes: Axes) -> None:
    """What all panels of accuracies share."""
    axes.set_ylabel("accuracy, %", fontsize=LABEL)
    axes.set_ylim(-2, 102)
    axes.tick_params(labelsize=SMALL, labelleft=True)
    axes.grid(color=PALE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=SMALL, frameon=False)


def _numbers(curve: Curve) -> dict[str, Any]:
    return asdict(curve) | {"accuracies": curve.accuracies, "intervals": curve.intervals}


def _draw_masking(masking: Masking, path: Path, styles: dict[str, dict[str, Any]]) -> None:
    """Draw what more iterations and more random starts do, and write down the verdict of each check."""
    verdicts = "\n".join(wrapped(_verdict(check), WIDTH, SMALL) for check in masking.checks)
    with page(path, WIDTH, 4.2) as figure:
        passed = sum(check.passed for check in masking.checks)
        title = f"Masked gradients? {passed} of {len(masking.checks)} checks show no sign"
        figure.text(0.08, 1, title, fontsize=TITLE, weight="bold", color=BLACK)
        for k, (name, words) in enumerate(
            (("PGD iterations", "iterations"), ("random starts of PGD", "random starts"))
        ):
            axes = figure.add_axes((0.08 + 0.5 * k, 0.16, 0.4, 0.72))
            checks = [check for check in masking.checks if check.name == name]
            _draw_check(axes, checks, f"{words} of PGD within {masking.probe.epsilon:g} (Linf)", styles)
        figure.text(0.0, 0.0, verdicts, fontsize=SMALL, va="top", color=GREY, linespacing=1.4)


def _draw_check(axes: Axes, checks: list[Check], words: str, styles: dict[str, dict[str, Any]]) -> None:
    """Draw the accuracies of a check, evenly spaced."""
    for check in checks:
        axes.plot(list(check.accuracies), [100 * share for share in check.accuracies.values()], **styles[check.network])
    axes.set_title(f"n = {checks[0].n:,}", fontsize=LABEL, color=BLACK, loc="left")
    axes.set_xlabel(words, fontsize=SMALL)
    _finish(axes)


def _verdict(check: Check) -> str:
    words = f"{'✓' if check.passed else '✗'} {check.sentence}; rule: {check.rule}"
    return words.replace("$", r"\$")
