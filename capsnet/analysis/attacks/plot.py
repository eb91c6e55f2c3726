"""Plots of accuracy under attack: the worst case by epsilon, and the accuracy as attacks are added."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsnet.analysis import style
from capsnet.analysis.accuracy import network_styles, plot_accuracy
from capsnet.analysis.attacks.masking import RULES, check_curve, convergence, step_names, verdict
from capsnet.analysis.attacks.worst_case import Attacks, WorstCase
from capsnet.analysis.style import keep_numbers, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 9.0  # inches
UNITS = {
    "Linf": "largest change of a pixel (Linf), pixels in [0, 1]",
    "L2": "change of the image (L2), pixels in [0, 1]",
}
CAPTION = (
    "An image counts as right only if every attack on it has failed: PGD on two losses (margin, cross-entropy) with "
    "{steps} steps; {starts} random starts; {transfer}for Linf the Square attack ({queries:,} queries, no gradient), "
    "for L2 DeepFool. Bands: 95 % intervals by Wilson's score. Checks of the attacks:"
)


def plot_attacks(attacks: Attacks, path: Path) -> tuple[Path, Path]:
    """Plot the worst case by epsilon, a panel for each norm and a line for each network, with the checks' verdicts.

    A second figure, whose name ends in -masking, has the accuracy as attacks are added. The numbers of both are written
    as JSON beside the first.
    """
    norms = list(dict.fromkeys(curve.norm for curve in attacks.curves))
    lines = network_styles(curve.network for curve in attacks.curves)
    with page(path, WIDTH, 4.6, layout="constrained") as figure:
        figure.suptitle("Accuracy under the worst of all attacks, image by image", **style.HEADING)
        for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False, sharey=True).flat, norms, strict=True):
            curves = [curve for curve in attacks.curves if curve.norm == norm]
            for curve in curves:
                plot_accuracy(axes, curve.epsilons, curve.right, curve.n, lines[curve.network])
            axes.set_xlim(left=0)
            _label(axes, f"worst case, {norm}, n = {curves[0].n:,}", UNITS[norm])
        steps = ", ".join(f"{steps:g}" for steps in attacks.settings["steps"])
        transfer = "transfer attacks from the other networks; " if len(lines) > 1 else ""
        caption = CAPTION.format(**attacks.settings | {"steps": steps, "transfer": transfer})
        verdicts = [f"{curve.network}, {curve.norm}: {verdict(curve)}" for curve in attacks.curves]
        figure.supxlabel(_lines([caption, *verdicts]), **style.NOTE, x=0.01, ha="left")
    numbers = [_numbers(curve) for curve in attacks.curves]
    keep_numbers(path, {"settings": attacks.settings, "rules": RULES, "curves": numbers})
    return path, _plot_masking(attacks, path.with_stem(f"{path.stem}-masking"), lines)


def _plot_masking(attacks: Attacks, path: Path, lines: dict[str, dict[str, Any]]) -> Path:
    """Plot the accuracy (Linf) as steps, then starts and other attacks are added, and write down every check."""
    curves = [curve for curve in attacks.curves if curve.norm == "Linf"]
    checks = [check for curve in attacks.curves for check in check_curve(curve)]
    rules = "; ".join(f"{name}: {rule}" for name, rule in RULES.items())
    sentences = [*(check.sentence for check in checks), f"A check passes if, at every ε, {rules}."]
    with page(path, WIDTH, 4.2) as figure:
        passed = sum(check.passed for check in checks)
        title = f"Checks for masked gradients: {passed} of {len(checks)} passed"
        figure.text(0.08, 1, title, **style.HEADING)
        for k, words in enumerate(("steps of PGD (Linf)", "then more random starts and other attacks (Linf)")):
            axes = figure.add_axes((0.08 + 0.5 * k, 0.16, 0.4, 0.72))
            for curve in curves:
                _plot_added(axes, curve, lines[curve.network], later=bool(k))
            _label(axes, f"n = {curves[0].n:,}", words)
        figure.text(0, 0.02, _lines(sentences), va="top", linespacing=1.4, **style.NOTE)
    return path


def _plot_added(axes: Axes, curve: WorstCase, line: dict[str, Any], *, later: bool) -> None:
    """Plot accuracy as attacks are added, evenly spaced, at the epsilon where they make the largest difference."""
    steps = step_names(curve.balls[0])
    ball = max(curve.balls, key=lambda ball: ball.after[steps[0]] - ball.right)
    names = {name: name.removeprefix("PGD-") for name in steps}
    if later:
        others = [name for name in ball.after if name not in steps]
        names = {steps[-1]: f"1 ({steps[-1]})"} | {name: name.removesuffix(" starts") for name in others}
    line = line | {"label": f"{line['label']}, ε = {ball.epsilon:g}"}
    axes.plot(list(names.values()), [100 * ball.after[name] / curve.n for name in names], **line)


def _label(axes: Axes, title: str, xlabel: str) -> None:
    """Label a panel of accuracies."""
    axes.set_title(title, fontsize=style.LABEL, loc="left")
    axes.set_xlabel(xlabel, fontsize=style.SMALL)
    axes.set_ylabel("accuracy in %", fontsize=style.LABEL)
    axes.set_ylim(-2, 102)
    style.tidy(axes)
    axes.tick_params(labelleft=True)
    axes.legend(fontsize=style.SMALL, frameon=False)


def _lines(sentences: list[str]) -> str:
    """The sentences, each on lines of its own, with $ as itself."""
    return "\n".join(style.wrapped(sentence.replace("$", r"\$"), WIDTH, style.SMALL) for sentence in sentences)


def _numbers(curve: WorstCase) -> dict[str, Any]:
    """A curve for JSON: the worst case, what was right as attacks were added, and the checks."""
    balls = [asdict(ball) | {"right": ball.right} | convergence(curve, ball) for ball in curve.balls]
    about = {"network": curve.network, "norm": curve.norm, "n": curve.n, "attacks": "worst case, image by image"}
    worst = {"epsilons": curve.epsilons, "right": curve.right, "intervals": curve.intervals}
    checks = [asdict(check) | {"sentence": check.sentence} for check in check_curve(curve)]
    return about | worst | {"verdict": verdict(curve), "balls": balls, "checks": checks}
