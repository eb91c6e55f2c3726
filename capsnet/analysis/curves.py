"""The curves of a training run: its losses, error rates and learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from capsnet.analysis import style
from capsnet.analysis.style import BLACK, BLUE, GREEN, LABEL, VERMILLION, keep_numbers, page
from capsnet.analysis.subject import Context, subject
from capsnet.errors import InputError
from capsnet.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = list[dict[str, Any]]
LONGEST = 150  # points of a curve: more are averaged, because noise would hide the trend
SOLID, DASHED, DOTTED, MARKED = "-", "--", ":", "o-"


class Series(NamedTuple):
    """One measurement over the steps of the training."""

    name: str
    steps: list[float]
    values: list[float]
    colour: str
    dash: str


def plot_curves(run: Run, path: Path) -> Path:
    """Plot the parts of the loss, the error rates and the learning rate of a run against its epochs.

    In the first epoch, whose length the log does not say, they are plotted against the steps.
    Raises InputError if nothing has been measured yet.
    """
    training, validation = run.records("train"), run.records("validation")
    records = training + validation
    if not records:
        raise InputError(f"{run.folder} has no measurements to plot: its log.jsonl is empty or missing; train it first")
    panels = [
        ("loss", "log", _losses(training, validation, run.recipe.reconstruction_weight)),
        ("errors in %", "errors", _error_rates(training, validation)),
        (
            "learning rate",
            "log" if run.recipe.schedule == "exponential" else "linear",
            [_series("Adam's learning rate", training, "lr", BLACK, SOLID)],
        ),
    ]
    panels = [(label, scale, [each for each in series if each.values]) for label, scale, series in panels]
    panels = [panel for panel in panels if panel[2]]
    first_epoch = max(record["epoch"] for record in records) == 1
    epoch = 1 if first_epoch else max(record["step"] / record["epoch"] for record in records)  # its length in steps
    with page(path, 7.5, 0.9 + 2.5 * len(panels), layout="constrained") as figure:
        name, data = (style.fitting(words, 30, "…") for words in (run.recipe_name, run.data))
        figure.suptitle(f"Training with the recipe {name} on {data}", **style.HEADING)
        every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            _plot_panel(axes, *panel, epoch, best_validation(run))
        every[-1].set_xlabel("training steps" if first_epoch else "epochs", fontsize=LABEL)
        every[-1].set_xlim(left=0)
        figure.align_ylabels(every)
    shown = [{"panel": label} | each._asdict() for label, _, series in panels for each in series]
    keep_numbers(path, {"kept": best_validation(run), "curves": shown})
    return path


def best_validation(run: Run) -> dict[str, Any] | None:
    """The validation that chose the network kept: of those with the fewest errors the last; None without any."""
    return min(reversed(run.records("validation")), key=lambda record: record["errors"], default=None)


def _losses(training: Records, validation: Records, weight: float) -> list[Series]:
    series = [_series("loss", training, "loss", BLACK, SOLID)]
    if any("reconstruction" in record for record in training):
        series.append(_series("margin loss", training, "margin", BLUE, DASHED))
    if weight:
        name = f"{weight:g} · reconstruction"
        series.append(_series(name, training, "reconstruction", VERMILLION, DOTTED, weight))
        series.append(_series(f"{name},\nvalidation", validation, "reconstruction", GREEN, MARKED, weight))
    return series


def _error_rates(training: Records, validation: Records) -> list[Series]:
    accuracies = [
        _series("training batches,\nas it learns", training, "accuracy", BLACK, SOLID),
        _series("validation", validation, "accuracy", GREEN, MARKED),
    ]
    return [each._replace(values=list(map(_percent_wrong, each.values))) for each in accuracies]


def _percent_wrong(accuracy: float) -> float:
    """Error rate in %; rounded, because an accuracy of 1 can be slightly less in float32."""
    return round(100 * (1 - accuracy), 4)


def _series(name: str, records: Records, measure: str, colour: str, dash: str, factor: float = 1.0) -> Series:
    """A measurement, as means of neighbouring records where they are many."""
    measured = [(record["step"], factor * record[measure]) for record in records if record.get(measure) is not None]
    size = 1 if dash == MARKED else -(-len(measured) // LONGEST) or 1
    groups = [measured[start : start + size] for start in range(0, len(measured), size)]
    steps, values = ([fmean(pair[part] for pair in group) for group in groups] for part in (0, 1))
    return Series(name, steps, values, colour, dash)


def _plot_panel(
    axes: Axes, label: str, scale: str, series: list[Series], epoch: float, best: dict[str, Any] | None
) -> None:
    """Plot series against epochs of `epoch` steps each."""
    for each in series:
        places = [step / epoch for step in each.steps]
        axes.plot(places, each.values, each.dash, color=each.colour, label=each.name, linewidth=1.4, markersize=3)
    positive = [value for each in series for value in each.values if value > 0]
    if positive and scale == "log":
        axes.set_yscale("log")
    if positive and scale == "errors":
        _scale_errors(axes, min(positive), max(positive))
    if best and scale == "errors":
        _mark_best(axes, best, epoch)
    axes.set_ylabel(label, fontsize=LABEL)
    style.tidy(axes)
    axes.legend(fontsize=style.SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _scale_errors(axes: Axes, least: float, most: float) -> None:
    """A logarithmic scale down to the least error rate above zero, with room for zero below it."""
    axes.set_yscale("symlog", linthresh=least, linscale=0.4)
    ticks = style.round_numbers(least, most * 1.3)
    axes.set_yticks([0.0, *ticks[:: 1 + len(ticks) // 8]], minor=False)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, most * 1.3)


def _mark_best(axes: Axes, best: dict[str, Any], epoch: float) -> None:
    label = f"kept: epoch {best['epoch']},\n{best['errors']:,} errors of n = {best['n']:,}"
    place = best["step"] / epoch, 100 * (1 - best["accuracy"])
    axes.plot(*place, "*", color=VERMILLION, markersize=11, label=label, clip_on=False, zorder=3)


@subject(
    {
        "curves.png": "Losses, error rates and learning rate over the training. The training errors are those of "
        "batches at their step, with the recipe's random shifts: they do not measure the finished network.",
    },
)
def curves(context: Context) -> Iterator[Path]:
    """Plot losses, error rates and learning rate over the training."""
    yield plot_curves(context.run, context.folder / "curves.png")
