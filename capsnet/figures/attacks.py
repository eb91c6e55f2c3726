"""Accuracy under the worst of all attacks, for networks side by side, and whether the attacks can be trusted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    fitting,
    keep_numbers,
    page,
    wrapped,
)
from capsnet.robustness.attacks import Attacks, WorstCase
from capsnet.robustness.descent import Norm
from capsnet.robustness.masking import RULES, Check, check_curve, levels, step_names, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 24  # letters of a network's name
LINES = ((BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, ":", "^"), (BLACK, "-.", "D"))  # by network
WIDTH = 9.0  # inches
UNITS = {
    "Linf": "largest change of a pixel (Linf), pixels in [0, 1]",
    "L2": "change of the image (L2), pixels in [0, 1]",
}


def draw_attacks(attacks: Attacks, path: Path) -> Path:
    """Draw the worst case against how far attacks may go, a panel a norm and a line a network, with what checks say.

    What each added attack left is a second picture, whose name ends in -masking; the numbers are JSON next to both.
    """
    checks = {(curve.network, curve.norm): check_curve(curve) for curve in attacks.curves}
    norms = list(dict.fromkeys(curve.norm for curve in attacks.curves))
    styles = _styles([curve.network for curve in attacks.curves])
    verdicts = [_plain(f"{curve.network}, {curve.norm}: {verdict(curve)}") for curve in attacks.curves]
    with page(path, WIDTH, 4.6, layout="constrained") as figure:
        title = "Accuracy under the worst of all attacks, image by image"
        figure.suptitle(title, fontsize=TITLE, weight="bold", color=BLACK)
        for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False, sharey=True).flat, norms, strict=True):
            _draw_norm(axes, [curve for curve in attacks.curves if curve.norm == norm], styles)
        caption = [
            wrapped(part, WIDTH, SMALL) for part in (_about(attacks.settings, several=len(styles) > 1), *verdicts)
        ]
        figure.supxlabel("\n".join(caption), fontsize=SMALL, color=GREY, x=0.01, ha="left")
    _draw_masking(attacks, checks, path.with_stem(f"{path.stem}-masking"), styles)
    curves = [_numbers(curve, checks[curve.network, curve.norm]) for curve in attacks.curves]
    keep_numbers(path, {"settings": attacks.settings, "rules": RULES, "curves": curves})
    return path


def _about(settings: dict[str, Any], *, several: bool) -> str:
    """What an image was attacked with."""
    steps = ", ".join(f"{steps:g}" for steps in settings["steps"])
    others = "images made for the other networks; " if several else ""
    return (
        "An image counts as right only if every attack on it has failed: PGD on two losses (margin, cross-entropy) "
        f"with {steps} steps; {settings['starts']} random starts; {others}for Linf the Square attack "
        f"({settings['queries']:,} queries, no gradient), for L2 DeepFool. "
        "Bands: 95 % intervals by Wilson's score. What the checks of the attacks say:"
    )


def _styles(networks: list[str]) -> dict[str, dict[str, Any]]:
    """How each network's lines look: no two alike in colour, dashes and markers."""
    styles = {}
    for k, name in enumerate(dict.fromkeys(networks)):
        colour, dashes, marker = LINES[k % len(LINES)]
        label = fitting(name, LONGEST, f"network {k}")
        styles[name] = {"color": colour, "linestyle": dashes, "marker": marker, "label": label}
    return styles


def _draw_norm(axes: Axes, curves: list[WorstCase], styles: dict[str, dict[str, Any]]) -> None:
    """Draw every network's worst case in one norm, with the intervals as bands."""
    for curve in curves:
        style = styles[curve.network]
        low, high = ([100 * end for end in ends] for ends in zip(*curve.intervals, strict=True))
        axes.fill_between(curve.epsilons, low, high, alpha=0.2, color=style["color"], linewidth=0)
        shares = [100 * right / curve.n for right in curve.right]
        axes.plot(curve.epsilons, shares, markersize=4, linewidth=1.4, **style)
    axes.set_title(f"worst case, {curves[0].norm}, n = {curves[0].n:,}", fontsize=LABEL, color=BLACK, loc="left")
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


def _numbers(curve: WorstCase, checks: list[Check]) -> dict[str, Any]:
    """A curve for JSON: the worst case, what was left as attacks were added, and what the checks say."""
    balls = [asdict(ball) | {"right": ball.right} | levels(curve, ball) for ball in curve.balls]
    about = {"network": curve.network, "norm": curve.norm, "n": curve.n, "attacks": "worst case, image by image"}
    worst = {"epsilons": curve.epsilons, "right": curve.right, "intervals": curve.intervals}
    answers = [asdict(check) | {"sentence": check.sentence} for check in checks]
    return about | worst | {"verdict": verdict(curve), "balls": balls, "checks": answers}


def _draw_masking(
    attacks: Attacks, checks: dict[tuple[str, Norm], list[Check]], path: Path, styles: dict[str, dict[str, Any]]
) -> None:
    """Draw what more steps, then more starts and other attacks leave (Linf), and write down every check."""
    curves = [curve for curve in attacks.curves if curve.norm == "Linf"]
    everything = [check for found in checks.values() for check in found]
    rules = "; ".join(f"{name}: {rule}" for name, rule in RULES.items())
    lines = [*(_plain(check.sentence) for check in everything), f"A check passes if, at every ε, {rules}."]
    with page(path, WIDTH, 4.2) as figure:
        passed = sum(check.passed for check in everything)
        title = f"Would more attacks do better? {passed} of {len(everything)} checks show no sign"
        figure.text(0.08, 1, title, fontsize=TITLE, weight="bold", color=BLACK)
        for k, words in enumerate(
            ("PGD of up to so many steps (Linf)", "then more random starts and other attacks (Linf)")
        ):
            axes = figure.add_axes((0.08 + 0.5 * k, 0.16, 0.4, 0.72))
            for curve in curves:
                _draw_added(axes, curve, styles[curve.network], later=bool(k))
            axes.set_title(f"n = {curves[0].n:,}", fontsize=LABEL, color=BLACK, loc="left")
            axes.set_xlabel(words, fontsize=SMALL)
            _finish(axes)
        sentences = "\n".join(wrapped(sentence, WIDTH, SMALL) for sentence in lines)
        figure.text(0.0, 0.02, sentences, fontsize=SMALL, va="top", color=GREY, linespacing=1.4)


def _draw_added(axes: Axes, curve: WorstCase, style: dict[str, Any], *, later: bool) -> None:
    """Draw what was left as attacks were added, evenly spaced, at the epsilon where that made the most difference."""
    steps = step_names(curve.balls[0])
    names = [name for name in curve.balls[0].after if name not in steps[:-1]] if later else steps
    ball = max(curve.balls, key=lambda ball: ball.after[steps[0]] - ball.right)
    shown = [name.removesuffix(" starts").replace("PGD-", "" if not later else "1 (PGD-") for name in names]
    shown = [name + ")" if "(" in name else name for name in shown]
    label = style | {"label": f"{style['label']}, ε = {ball.epsilon:g}"}
    axes.plot(shown, [100 * ball.after[name] / curve.n for name in names], markersize=4, linewidth=1.4, **label)


def _plain(words: str) -> str:
    """The words with $ as itself."""
    return words.replace("$", r"\$")
