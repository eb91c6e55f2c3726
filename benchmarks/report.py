"""What the benchmarks share in showing results: flags, JSON, tables on the terminal and in Markdown, and plots."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from capsnet.analysis.style import BLACK, GREY, PALE, SMALL, TITLE, page, wrapped
from capsnet.files import atomic_write
from capsnet.hardware import default_device
from goals import GOALS, KINDS, NOT_RUN, Results, verdicts
from measuring import machine_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent


class Table(NamedTuple):
    """A table of text, with the title above it."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's name, the title of its section in RESULTS.md, its tables and, if it has one, its plot."""

    name: str
    title: str
    measured_tables: Callable[[Results], list[Table]]
    plot: Callable[[Figure, Results], None] | None = None

    def tables(self, results: Results) -> list[Table]:
        """Return the tables of what was measured, and of the goals unless the sizes are small."""
        made = self.measured_tables(results)
        if self.name in GOALS and not results["quick"]:
            made.append(goal_table(self.name, results))
        return [table for table in made if table.rows]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the flags that all benchmarks take."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs, not how fast")
    made.add_argument("--folder", type=_folder, help="where JSON and plot go: results/ and docs/, or build/ if quick")
    return made


def _folder(text: str) -> Path:
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be made: {error}") from error
    return Path(text)


def output_paths(name: str, kind: str, quick: bool, folder: Path | None) -> tuple[Path, Path]:
    """Return where the JSON and the plot go: full results without a folder of their own are published."""
    if folder is None and not quick:
        return ROOT / "results" / name / f"{kind}.json", ROOT / "docs" / f"{name}-{kind}.png"
    path = (folder or ROOT / "build") / name / f"{kind}.json"
    return path, path.with_suffix(".png")


def run(
    benchmark: Benchmark, measurements: Iterable[Results], asked: argparse.Namespace, kind: str | None = None
) -> None:
    """Write each of the measurements, which has all of the one before; print the last one's tables and plot it.

    `kind` names the file: the kind of machine by default.
    """
    path, picture = output_paths(benchmark.name, kind or machine_kind(default_device()), asked.quick, asked.folder)
    for measured in measurements:
        results = measured | {"quick": asked.quick}
        write_results(path, results)
    print_tables(benchmark, results)
    print(path)
    if benchmark.plot is not None:
        print(plot(benchmark, results, picture))


def write_results(path: Path, results: Results) -> None:
    """Write results as JSON, atomically."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def machine(results: Results) -> str:
    """Return the line above all results: hardware, versions, commit and command."""
    where = results["environment"]
    commit = (where["commit"] or NOT_RUN)[:7]
    line = f"{where['device']}, {where['cores']} cores, torch {where['torch']}, commit {commit}; `{where['command']}`"
    return f"{line}; quick: the sizes are too small to conclude anything" if results["quick"] else line


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    return f"{table.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_tables(benchmark: Benchmark, results: Results) -> None:
    """Print the machine line and the tables on the terminal."""
    from rich.console import Console
    from rich.table import Column
    from rich.table import Table as Grid

    console = Console()
    console.print(f"\n{machine(results)}", markup=False, highlight=False)
    for table in benchmark.tables(results):
        console.print(f"\n{table.title}", markup=False, highlight=False)
        grid = Grid(*(Column(name, overflow="fold") for name in table.head))
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)


def goal_table(name: str, results: Results) -> Table:
    """Return the goals of one benchmark and what was measured."""
    words = {None: "not run", True: "met", False: "missed"}
    rows = [(one.what, one.target, one.measured, words[one.met]) for one in verdicts(name, results)]
    return Table("Goals for two CPU cores, and for a GPU", ("what", "goal", "measured", "verdict"), rows)


def goals_by_device(measured: dict[str, dict[str, Results]]) -> Table:
    """Return all goals and what each kind of machine reached, from results by benchmark and kind of machine."""
    kinds = [kind for kind in KINDS if kind == "cuda" or any(kind in measured.get(name, {}) for name in GOALS)]
    rows = []
    for name in GOALS:
        columns = [verdicts(name, measured.get(name, {}).get(kind, {})) for kind in kinds]
        rows += [(row[0].what, row[0].target, *(one.mark for one in row)) for row in zip(*columns, strict=True)]
    title = f"Goals for two CPU cores, and for a GPU, and what was measured; {NOT_RUN}: not run"
    return Table(title, ("what", "goal", *(_column(kind, measured) for kind in kinds)), rows)


def _column(kind: str, measured: dict[str, dict[str, Results]]) -> str:
    """Return a kind of machine and the names of those machines."""
    found = (measured[name][kind]["environment"]["device"] for name in GOALS if kind in measured.get(name, {}))
    return ": ".join((KINDS[kind], *([", ".join(devices)] if (devices := dict.fromkeys(found)) else [])))


def plot(benchmark: Benchmark, results: Results, path: Path) -> Path:
    """Plot results as a PNG with the machine line at the bottom."""
    assert benchmark.plot is not None
    with page(path, 9, 4.2, layout="constrained") as figure:
        benchmark.plot(figure, results)
        figure.supxlabel(wrapped(machine(results).replace("`", ""), 8.5, SMALL), fontsize=SMALL, color=GREY)
    return path


def plot_title(figure: Figure, text: str) -> None:
    """Put a title above all axes."""
    figure.suptitle(text, fontsize=TITLE, weight="bold", color=BLACK)


def plain_axes(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Give axes small labels, a pale grid and no frame at the top and the right."""
    axes.tick_params(labelsize=SMALL)
    axes.grid(color=PALE, linewidth=0.5, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def ms_text(ms: float) -> str:
    """Return milliseconds with three digits or more."""
    return f"{ms:,.1f}" if ms >= 10 else f"{ms:.2f}"


def mib_text(size: int | None) -> str:
    """Return bytes in MiB."""
    return NOT_RUN if size is None else f"{size / 2**20:,.0f}"
