"""How networks hold out against affine changes: the numbers of `capsnet.robustness.affine` as curves."""

from __future__ import annotations

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
)
from capsnet.robustness.affine import AffineResult, Curve
from capsnet.robustness.intervals import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS, DASHES, MARKERS = (BLUE, VERMILLION, GREEN, BLACK), ("-", "--", ":", "-."), ("o", "s", "^", "D", "v")
AXES = {
    "rotation": "rotation in degrees, anticlockwise",
    "right": "shift in pixels, to the right",
    "scale": "scale, a factor",
    "shear": "shear in degrees, to the right",
}


def draw_affine(result: AffineResult, path: Path) -> Path:
    """Draw each network's accuracy under rotation, shift, scale and shear, with 95 % intervals; the numbers beside it.

    The legend tells the accuracy on images that are rotated and shifted at random.
    """
    with page(path, 9, 7.2, layout="constrained") as figure:
        title = f"Accuracy on n = {result.n:,} images under affine changes"
        figure.suptitle(title, fontsize=TITLE, weight="bold", color=BLACK)
        panels = figure.subplots(2, 2, sharey="row")
        for axes, curve in zip(panels.flat, result.curves, strict=True):
            _draw_curve(axes, curve, result.n)
        for axes in panels[:, 0]:
            axes.set_ylabel("accuracy in %", fontsize=LABEL)
        lines, names = panels[0, 0].get_legend_handles_labels()
        told = [f"{fitting(name, 30, '…')}: {_at_random(result, name)}" for name in names]
        legend = figure.legend(lines, told, loc="outside lower center", fontsize=SMALL, frameon=False)
        caption = (
            "Each change is made alone, about the image's centre. Shaded: 95 % intervals, by Wilson's score. "
            "The rows' scales differ.\n"
            f"Below: all images rotated by up to ±{result.random_rotation:g}° "
            f"and shifted by up to ±{result.random_shift} pixels each way, at random."
        )
        legend.set_title(caption)
        legend.get_title().set(color=GREY, fontsize=SMALL, multialignment="center")
    keep_numbers(path, _numbers(result))
    return path


def _draw_curve(axes: Axes, curve: Curve, n: int) -> None:
    for k, (name, right) in enumerate(curve.right.items()):
        colour, dash, marker = COLOURS[k % 4], DASHES[k % 4], MARKERS[k % 5]
        shares = [share(count, n) for count in right]
        accuracy, low, high = ([100 * each[part] for each in shares] for part in ("accuracy", "low", "high"))
        axes.plot(curve.amounts, accuracy, dash, color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
        axes.lines[-1].set_clip_on(False)
        axes.fill_between(curve.amounts, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(AXES[curve.change], fontsize=LABEL)
    axes.set_xticks(curve.amounts)
    axes.set_ylim(top=100)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color=PALE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _at_random(result: AffineResult, name: str) -> str:
    random = share(result.random_right[name], result.n)
    accuracy, low, high = (f"{100 * random[part]:.1f}" for part in ("accuracy", "low", "high"))
    return f"{accuracy} % ({low} to {high})"


def _numbers(result: AffineResult) -> dict[str, Any]:
    n = result.n
    curves = {
        curve.change: {
            name: [{"amount": k, **share(count, n)} for k, count in zip(curve.amounts, right, strict=True)]
            for name, right in curve.right.items()
        }
        for curve in result.curves
    }
    random = {"rotation": result.random_rotation, "shift": result.random_shift}
    by_network = {name: share(right, n) for name, right in result.random_right.items()}
    return {"n": n, "seed": result.seed, **curves, "random": random | {"networks": by_network}}
