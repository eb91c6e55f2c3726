"""What was measured, as pictures: steps of training, routing by path and as it grows, accuracy against seconds."""

from __future__ import annotations

from collections.abc import Callable
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
    page,
    round_numbers,
    wrapped,
)
from capsnet.benchmarks.goals import Results
from capsnet.benchmarks.report import machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROWS = {"i": ("children", BLUE, "o"), "j": ("parents", VERMILLION, "s"), "b": ("images", GREEN, "^")}


def draw(name: str, results: Results, path: Path) -> Path:
    """Draw what one of DRAWN measured, with the machine below it, as a PNG."""
    with page(path, 9, 4.2, layout="constrained") as figure:
        DRAWN[name](figure, results)
        figure.supxlabel(wrapped(machine(results).replace("`", ""), 8.5, SMALL), fontsize=SMALL, color=GREY)
    return path


def _draw_training(figure: Figure, results: Results) -> None:
    axes, rows = figure.subplots(), results["rows"]
    figure.suptitle(
        f"Training at batch {results['batch']}: each bar adds to the one above",
        fontsize=TITLE,
        weight="bold",
        color=BLACK,
    )
    names = [row["name"] for row in rows]
    rates = [row["images_per_second"] for row in rows]
    bars = axes.barh(names, rates, color=[_colour(row) for row in rows], height=0.7)
    told = [f"{row['times_textbook']:.2f} x, {100 * row['share']:.0f} % of the matrix rate" for row in rows]
    axes.bar_label(bars, told, padding=4, fontsize=SMALL, color=BLACK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(rates))
    axes.set_xlabel("images/s", fontsize=LABEL)
    _quiet(axes, "x")


def _colour(row: Results) -> str:
    if row["name"] == "textbook":
        return GREY
    return BLUE if row.get("default", True) else PALE


def _draw_routing(figure: Figure, results: Results) -> None:
    figure.suptitle("Routing, forward and backward, float32", fontsize=TITLE, weight="bold", color=BLACK)
    grows = results.get("growth")
    panels = figure.subplots(1, 2 if grows else 1, squeeze=False)[0]
    _draw_ways(panels[0], results["shapes"][0])
    if grows:
        _draw_growth(panels[1], grows)


def _draw_ways(axes: Axes, measured: Results) -> None:
    names, ways, shape = list(measured["ways"]), measured["ways"].values(), measured["shape"]
    forward, backward = ([way[part] for way in ways] for part in ("forward_ms", "backward_ms"))
    axes.barh(names, forward, color=BLUE, height=0.7, label="forward")
    axes.barh(names, backward, left=forward, color=VERMILLION, height=0.7, label="backward")
    axes.invert_yaxis()
    axes.set_xlabel(f"{shape['b']:,} images, {shape['i']:,} children, {shape['j']:,} parents: ms", fontsize=LABEL)
    axes.legend(fontsize=SMALL, frameon=False, loc="lower right")
    _quiet(axes, "x")


def _draw_growth(axes: Axes, grows: Results) -> None:
    for axis, grown in grows.items():
        name, colour, marker = GROWS[axis]
        sizes, times = grown["sizes"], grown["ms"]
        axes.loglog(sizes, times, "-", color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
        axes.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], ":", color=colour, linewidth=1)
    for scale, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = round_numbers(*ends)
        scale.set_ticks(ticks[:: 1 + len(ticks) // 8])
        scale.set_ticks([], minor=True)
        scale.set_major_formatter("{x:,g}")
    axes.set_xlabel("how many; dotted: in proportion to the last", fontsize=LABEL)
    axes.set_ylabel("ms", fontsize=LABEL)
    axes.legend(fontsize=SMALL, frameon=False)
    _quiet(axes, "both")


def _draw_accuracy(figure: Figure, results: Results) -> None:
    figure.suptitle(f"From a cold start on {results['data']}, n = 1 run", fontsize=TITLE, weight="bold", color=BLACK)
    axes, epochs = figure.subplots(), results["epochs"]
    errors = [100 * (1 - epoch["accuracy"]) for epoch in epochs]
    axes.plot([epoch["seconds"] for epoch in epochs], errors, "-", color=BLUE, marker="o", markersize=4, linewidth=1.4)
    axes.set_yscale("log")
    words: dict[str, Any] = {"va": "center", "fontsize": SMALL, "color": GREY}
    for mark in results["marks"]:
        height = 100 * (1 - mark["accuracy"])
        axes.axhline(height, color=GREY, linestyle=":", linewidth=1)
        axes.text(1.01, height, f"{100 * mark['accuracy']:g} %", transform=axes.get_yaxis_transform(), **words)
    axes.set_xlim(left=0)
    ticks = round_numbers(min(0.3, *errors), max(1, *errors))
    axes.set_yticks(ticks)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds since the process began", fontsize=LABEL)
    axes.set_ylabel("validation errors in %", fontsize=LABEL)
    _quiet(axes, "y")


def _quiet(axes: Axes, grid: str) -> None:
    axes.tick_params(labelsize=SMALL)
    axes.grid(color=PALE, linewidth=0.5, axis=grid)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


DRAWN: dict[str, Callable[[Figure, Results], None]] = {
    "routing": _draw_routing,
    "training": _draw_training,
    "epoch_to_accuracy": _draw_accuracy,
}
