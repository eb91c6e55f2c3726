"""How a training run went: its losses, errors and learning rate."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from capsnet.errors import InputError
from capsnet.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    LABEL,
    PALE,
    SMALL,
    TITLE,
    VERMILLION,
    fitting,
    keep_numbers,
    page,
    round_numbers,
)
from capsnet.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = list[dict[str, Any]]
POINTS = 150  # of a training curve: more are averaged, or noise would hide the course
SOLID, DASHED, DOTTED, MARKED = "-", "--", ":", "o-"


class Curve(NamedTuple):
    """One measurement over the course of the training."""

    name: str
    steps: list[float]
    values: list[float]
    colour: str
    dash: str


def draw_curves(run: Run, path: Path) -> Path:
    """Draw the parts of the loss, the error rates and the learning rate of a run against its epochs.

    A run that is still in its first epoch, whose length its log does not tell, is drawn against its steps.
    Raises InputError where nothing has been measured yet.
    """
    training, validation = run.records("train"), run.records("validation")
    records = training + validation
    if not records:
        raise InputError(f"{run.folder} has no measurements to draw: its log.jsonl is empty or missing; train it first")
    panels = [
        ("loss", "log", _losses(training, validation, run.recipe.reconstruction_weight)),
        ("errors in %", "errors", _errors(training, validation)),
        ("learning rate", "log" if run.recipe.schedule == "exponential" else "linear", _rates(training)),
    ]
    panels = [panel for panel in panels if panel[2]]
    first_epoch = max(record["epoch"] for record in records) == 1
    epoch = 1 if first_epoch else max(record["step"] / record["epoch"] for record in records)  # its length in steps
    with page(path, 7.5, 0.9 + 2.5 * len(panels), layout="constrained") as figure:
        name, data = (fitting(words, 30, "…") for words in (run.recipe_name, run.data))
        figure.suptitle(f"Training by the recipe {name} on {data}", fontsize=TITLE, weight="bold", color=BLACK)
        every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            _draw_panel(axes, *panel, epoch, best_validation(run))
        every[-1].set_xlabel("training steps" if first_epoch else "epochs", fontsize=LABEL)
        every[-1].set_xlim(left=0)
        figure.align_ylabels(every)
    shown = [{"panel": label} | curve._asdict() for label, _, curves in panels for curve in curves]
    keep_numbers(path, {"kept": best_validation(run), "curves": shown})
    return path


def best_validation(run: Run) -> dict[str, Any] | None:
    """The validation that chose the network kept: of those with the fewest errors the last; None without any."""
    return min(reversed(run.records("validation")), key=lambda record: record["errors"], default=None)


def _losses(training: Records, validation: Records, weight: float) -> list[Curve]:
    curves = [_course("loss", training, "loss", BLACK, SOLID)]
    drawn = any("reconstruction" in record for record in training)
    if drawn:
        curves.append(_course("margin loss", training, "margin", BLUE, DASHED))
    if weight:
        name = f"{weight:g} · reconstruction"
        curves.append(_course(name, training, "reconstruction", VERMILLION, DOTTED, weight))
        curves.append(_course(f"{name},\nvalidation", validation, "reconstruction", GREEN, MARKED, weight))
    return [curve for curve in curves if curve.values]


def _errors(training: Records, validation: Records) -> list[Curve]:
    curves = [
        _course("training batches,\nas it learns", training, "accuracy", BLACK, SOLID),
        _course("validation", validation, "accuracy", GREEN, MARKED),
    ]
    return [curve._replace(values=list(map(_percent_wrong, curve.values))) for curve in curves if curve.values]


def _percent_wrong(accuracy: float) -> float:
    """Errors in %, where the rounding of an accuracy of 1 in float32 is none."""
    return round(100 * (1 - accuracy), 4)


def _rates(training: Records) -> list[Curve]:
    curves = [_course("Adam's rate", training, "lr", BLACK, SOLID)]
    return [curve for curve in curves if curve.values]


def _course(name: str, records: Records, measure: str, colour: str, dash: str, factor: float = 1.0) -> Curve:
    """A measurement, as means of neighbouring records where they are many."""
    measured = [(record["step"], factor * record[measure]) for record in records if record.get(measure) is not None]
    size = 1 if dash == MARKED else -(-len(measured) // POINTS) or 1
    groups = [measured[start : start + size] for start in range(0, len(measured), size)]
    steps, values = ([fmean(pair[part] for pair in group) for group in groups] for part in (0, 1))
    return Curve(name, steps, values, colour, dash)


def _draw_panel(
    axes: Axes, label: str, scale: str, curves: list[Curve], epoch: float, best: dict[str, Any] | None
) -> None:
    """Draw curves against epochs of so many steps each."""
    for curve in curves:
        places = [step / epoch for step in curve.steps]
        axes.plot(places, curve.values, curve.dash, color=curve.colour, label=curve.name, linewidth=1.4, markersize=3)
    positive = [value for curve in curves for value in curve.values if value > 0]
    if positive and scale == "log":
        axes.set_yscale("log")
    if positive and scale == "errors":
        _scale_errors(axes, min(positive), max(positive))
    if best and scale == "errors":
        _mark_best(axes, best, epoch)
    axes.set_ylabel(label, fontsize=LABEL)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color=PALE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _scale_errors(axes: Axes, least: float, most: float) -> None:
    """A logarithmic scale down to the least error rate above zero, with room for zero below it."""
    axes.set_yscale("symlog", linthresh=least, linscale=0.4)
    ticks = round_numbers(least, most * 1.3)
    axes.set_yticks([0.0, *ticks[:: 1 + len(ticks) // 8]], minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, most * 1.3)


def _mark_best(axes: Axes, best: dict[str, Any], epoch: float) -> None:
    label = f"kept: epoch {best['epoch']},\n{best['errors']:,} errors of n = {best['n']:,}"
    place = best["step"] / epoch, 100 * (1 - best["accuracy"])
    axes.plot(*place, "*", color=VERMILLION, markersize=11, label=label, clip_on=False, zorder=3)
