"""What was measured, as tables: the same on the terminal, in RESULTS.md and in the README."""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from capsnet.benchmarks.goals import NOT_RUN, Results, goals


class Table(NamedTuple):
    """A table of words, with what it shows above it."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def machine(results: Results) -> str:
    """The line that stands above all figures: hardware, versions, commit and command."""
    where = results["environment"]
    commit = (where["commit"] or NOT_RUN)[:7]
    line = f"{where['device']}, {where['cores']} cores, torch {where['torch']}, commit {commit}; `{where['command']}`"
    return f"{line}; quick: the sizes are too small for figures to go by" if results["quick"] else line


def tables(name: str, results: Results) -> list[Table]:
    """The tables of "routing", "training" or "epoch_to_accuracy"; of what was not measured there is none."""
    if name == "epoch_to_accuracy":
        return [_marks(results), _epochs(results)]
    if name == "routing":
        made = [_shapes(results), _memory(results), _growth(results), _listed(results)]
    else:
        made = [_steps(results), _use(results)]
    if not results["quick"]:
        made.append(goal_table(name, results))
    return [table for table in made if table.rows]


def markdown(table: Table) -> str:
    """A table as Markdown has it."""
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    return f"{table.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_tables(name: str, results: Results) -> None:
    """Print the machine line and the tables on the terminal."""
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    console.print(f"\n{machine(results)}", markup=False, highlight=False)
    for table in tables(name, results):
        console.print(f"\n{table.title}", markup=False, highlight=False)
        grid = Grid(*table.head)
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)


def goal_table(name: str, results: Results) -> Table:
    """The goals, and what came out."""
    words = {None: "not run", True: "held", False: "missed"}
    rows = [(goal.what, goal.asked, goal.measured, words[goal.held]) for goal in goals(name, results)]
    return Table("Goals for two processor cores", ("what", "goal", "measured", "verdict"), rows)


def kernel_table(results: Results) -> Table:
    """What the kernels take of a multiprocessor at the first shape, without a prior."""
    first = results["rows"][0]["shape"]
    rows, dtype = [], ""
    for row in results["rows"]:
        if row["shape"] == first and not row["prior"]:
            name = row["kernel"] + (f" ({', '.join(row['given'])})" if row["given"] else "")
            counts = (row[name] for name in ("registers", "spills", "instructions"))
            shared = f"{row['shared'] / 1024:.0f}"
            slots = f"{row['programs']:,} : {row['slots']:,}"
            rows.append((row["dtype"] * (row["dtype"] != dtype), name, *map(str, counts), shared, slots))
            dtype = row["dtype"]
    title = (
        f"Kernels compiled by Triton {results['triton']} for sm_90, {' · '.join(map(str, first))}: what a thread has, "
        "and how many programs there are to those that an H100 runs at once; in brackets the tensors that a kernel got"
    )
    head = ("dtype", "kernel", "registers", "spilled bytes", "instructions", "shared KiB", "programs : slots")
    return Table(title, head, rows)


def goals_by_device(measured: dict[str, dict[str, Results]]) -> Table:
    """The goals of routing and training beside what each device reached: measured[name][device]."""
    rows = []
    for name in ("routing", "training"):
        columns = [goals(name, measured.get(name, {}).get(device, {})) for device in ("cpu", "cuda")]
        for cpu, cuda in zip(*columns, strict=True):
            rows.append((cpu.what, cpu.asked, cpu.mark, cuda.mark))
    title = f"Goals for two processor cores, and what was measured; {NOT_RUN}: not run"
    return Table(title, ("what", "goal", "processor", "GPU"), rows)


def _shapes(results: Results) -> Table:
    rows: list[tuple[str, ...]] = []
    for one in results["shapes"]:
        shape, dtype = _shape(one["shape"]), one["dtype"]
        for name, way in one["ways"].items():
            takes = NOT_RUN if way["textbook_takes"] is None else f"{way['textbook_takes']:.2f} x"
            called = f"door: {one['door']}" if name == "door" else name
            rows.append((shape, dtype, called, _ms(way["forward_ms"]), _ms(way["backward_ms"]), takes))
            shape = dtype = ""
        rows.append(("", "", "floor, both ways", _ms(one["floor_ms"]), "", ""))
    title = (
        "Routing in ms, and how many times as fast as the textbook; "
        "the floor is what the machine's FLOP/s and bytes/s allow, with the votes made once"
    )
    return Table(title, ("b · i · j · d · e", "dtype", "way", "forward", "backward", "speed"), rows)


def _memory(results: Results) -> Table:
    measured = results.get("memory", [])
    names = list(dict.fromkeys(name for one in measured for name in one["bytes"]))
    rows = []
    for one in measured:
        sizes = [_mib(one["bytes"].get(name)) for name in names]
        rows.append((_shape(one["shape"]), _mib(one["votes_bytes"]), *sizes))
    title = "Memory in MiB that routing takes at most, over inputs, output and their gradients, float32"
    return Table(title, ("b · i · j · d · e", "the votes alone", *names), rows)


def _growth(results: Results) -> Table:
    rows = []
    for axis, grown in results.get("growth", {}).items():
        for size, ms, of in zip(grown["sizes"], grown["ms"], grown["of_proportional"], strict=True):
            shape = _shape(grown["shape"] | {axis: size})
            rows.append((axis, shape, f"{ms:.1f}", NOT_RUN if of is None else f"{of:.2f}"))
    title = "Routing as the work grows, in ms, and beside proportional growth from the first call over 10 ms on"
    return Table(title, ("grows", "b · i · j · d · e", "ms", "of proportional"), rows)


def _listed(results: Results) -> Table:
    listed = results.get("listed")
    if listed is None:
        return Table("", (), [])
    takes = [one["door_takes"] for one in listed["each"]]
    at = " · ".join(f"{size:,}" for size in listed["worst"]["shape"])
    cells = (f"{listed['n']:,}", f"{min(takes):.2f}", f"{median(takes):.2f}", f"{max(takes):.2f}", at)
    title = "The door's time over the textbook's at small and odd shapes, float32; above 1.10 it was measured again"
    if listed["left_out"]:
        title += f"; {listed['left_out']} with more than 80 million votes or weights left out"
    return Table(title, ("shapes", "least", "median", "most", "which"), [cells])


def _steps(results: Results) -> Table:
    rows = [
        (
            *(row["name"], row["dtype"], f"{row['images_per_second']:,.0f}"),
            *(f"{row['times_textbook']:.2f} x", f"{100 * row['share']:.0f} %"),
        )
        for row in results["rows"]
    ]
    gigaflop = results["flop"]["step"] / 1e9
    title = f"Training at batch {results['batch']}, {gigaflop:.2f} GFLOP an image; each row adds to the one before"
    return Table(title, ("what", "dtype", "images/s", "against the textbook", "of the matrix rate"), rows)


def _use(results: Results) -> Table:
    rates = ", ".join(f"{rate / 1e9:,.0f} in {dtype}" for dtype, rate in results["matrix_flops"].items())
    routing = results["routing"]
    rows = [
        ("matrix product, GFLOP/s", rates),
        ("routing in a training step", f"{routing['ms']:.1f} ms, {100 * routing['share']:.1f} % of it"),
    ]
    if (many := results.get("prediction")) is not None:
        rate = f"{many['images_per_second']:,.0f} images/s, {100 * many['share']:.0f} % of the matrix rate"
        rows += [(f"prediction of {many['n']:,} images, {many['dtype']}", rate)]
        rows += [("one image, once the network is loaded", f"{results['one_image_ms']:.1f} ms")]
    if results.get("help_seconds") is not None:
        rows += [("`capsnet --help`", f"{results['help_seconds']:.2f} s")]
    return Table("Beside it", ("what", "measured"), rows)


def _marks(results: Results) -> Table:
    rows = [
        (f"{100 * mark['accuracy']:.2f} %", *((NOT_RUN,) * 2 if mark["seconds"] is None else _when(mark)))
        for mark in results["marks"]
    ]
    test = results["test"]
    title = (
        f"From a cold start to an accuracy on {results['validation_n']:,} validation images of {results['data']} "
        f"(recipe {results['recipe']}, n = 1 run); on the test images {100 * test['accuracy']:.2f} %, "
        f"{test['errors']} errors of n = {test['n']:,}, read once, at the end"
    )
    return Table(title, ("validation accuracy", "seconds", "epoch"), rows)


def _epochs(results: Results) -> Table:
    rows = [
        (str(one["epoch"]), f"{one['took']:.1f}", f"{one['seconds']:.1f}", f"{100 * one['accuracy']:.2f} %")
        for one in results["epochs"]
    ]
    title = "Seconds of each epoch with its validation, of the first with the process's start and what is compiled"
    return Table(title, ("epoch", "seconds", "since the start", "validation accuracy"), rows)


def _when(mark: dict[str, Any]) -> tuple[str, str]:
    return f"{mark['seconds']:.1f}", str(mark["epoch"])


def _ms(ms: float) -> str:
    return f"{ms:,.1f}" if ms >= 10 else f"{ms:.2f}"


def _shape(shape: dict[str, int]) -> str:
    return " · ".join(f"{size:,}" for size in shape.values())


def _mib(size: int | None) -> str:
    return NOT_RUN if size is None else f"{size / 2**20:,.0f}"
