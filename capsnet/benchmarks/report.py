"""What was measured, as tables: the same on the terminal, in RESULTS.md and in the README."""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from capsnet.benchmarks.goals import AIMS, KINDS, NOT_RUN, Results, goals

CONVOLVED = (16, 128)  # images: the batches of a convolution that tables show


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
    """The tables of "routing", "training", "convolution" or "epoch_to_accuracy"; of what was not measured: none."""
    if name == "routing":
        made = [_shapes(results), _memory(results), _growth(results), _listed(results)]
    elif name == "training":
        made = [_steps(results), _parts(results), _use(results)]
    elif name == "convolution":
        made = [_convolutions(results), _convolution_errors(results)]
    else:
        made = [_marks(results), _epochs(results)]
    if name in AIMS and not results["quick"]:
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
    return Table("Goals for two CPU cores, and for a GPU", ("what", "goal", "measured", "verdict"), rows)


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
    """All goals beside what each kind of machine reached, as far as it was measured: measured[name][kind]."""
    kinds = [kind for kind in KINDS if kind == "cuda" or any(kind in measured.get(name, {}) for name in AIMS)]
    rows = []
    for name in AIMS:
        columns = [goals(name, measured.get(name, {}).get(kind, {})) for kind in kinds]
        rows += [(of[0].what, of[0].asked, *(goal.mark for goal in of)) for of in zip(*columns, strict=True)]
    title = f"Goals for two CPU cores, and for a GPU, and what was measured; {NOT_RUN}: not run"
    return Table(title, ("what", "goal", *(_column(kind, measured) for kind in kinds)), rows)


def _column(kind: str, measured: dict[str, dict[str, Results]]) -> str:
    """A kind of machine, and which machines those are."""
    found = (measured[name][kind]["environment"]["device"] for name in AIMS if kind in measured.get(name, {}))
    return ": ".join((KINDS[kind], *([", ".join(devices)] if (devices := dict.fromkeys(found)) else [])))


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
    listed = results.get("listed", {})
    if "again" not in listed:
        return Table("", (), [])
    takes = [one["door_takes"] for one in listed["each"]]
    again = [one["door_takes"] for one in listed["again"]]
    cells = (f"{listed['n']:,}", *(f"{of:.2f}" for of in (min(takes), median(takes), median(again), max(again))))
    worst = " · ".join(f"{size:,}" for size in max(listed["again"], key=lambda one: one["door_takes"])["shape"])
    title = (
        f"The door's time over the textbook's at small and odd shapes, float32, each the median of {listed['rounds']} "
        f"pairs; the {len(again)} worst were then timed once more, and only these second figures count for them"
    )
    if listed["left_out"]:
        title += f"; {listed['left_out']} with more than 80 million votes or weights left out"
    head = ("shapes", "least", "median", f"median of the {len(again)} worst", "most of them", "which")
    return Table(title, head, [(*cells, worst)])


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


def _parts(results: Results) -> Table:
    rows = []
    for one in results["routing"]:
        times = (_ms(one[name]) if name in one else NOT_RUN for name in ("ms", "step_ms"))
        rows.append((one["dtype"], one["gradient"], *times, f"{100 * one['share']:.1f} %"))
    title = "Routing in a training step, one operation after the other, by the iterations that gradients pass through"
    return Table(title, ("dtype", "iterations", "routing, ms", "step, ms", "routing's part"), rows)


def _use(results: Results) -> Table:
    rates = ", ".join(f"{rate / 1e9:,.0f} in {dtype}" for dtype, rate in results["matrix_flops"].items())
    rows = [("matrix product, GFLOP/s", rates)]
    if (many := results.get("prediction")) is not None:
        rate = f"{many['images_per_second']:,.0f} images/s, {100 * many['share']:.0f} % of the matrix rate"
        rows += [(f"prediction of {many['n']:,} images, {many['dtype']}", rate)]
        rows += [("one image, once the network is loaded", f"{results['one_image_ms']:.1f} ms")]
    if (memory := results.get("memory")) is not None:
        held = f"of training at batch {results['batch']}, with the network, gradients and Adam's state"
        rows += [(f"memory {held}, textbook", f"{_mib(memory['textbook'])} MiB")]
        rows += [(f"memory {held}, ours", f"{_mib(memory['ours'])} MiB")]
        attack = f"memory of an attack's gradient for {memory['attacked']} images, with the frozen network"
        rows += [(attack, f"{_mib(memory['attack'])} MiB")]
    if results.get("help_seconds") is not None:
        rows += [("`capsnet --help`", f"{results['help_seconds']:.2f} s")]
    for caches, seconds in (results.get("first_step") or {}).items():
        rows += [(f"`capsnet train mnist` to the end of its first step, {caches} caches", f"{seconds:.2f} s")]
    return Table("Beside it", ("what", "measured"), rows)


def _convolutions(results: Results) -> Table:
    cells: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in results["rows"]:
        if row["images"] in CONVOLVED and row["training"]:
            key, ms = (_convolution(row), row["dtype"]), row["ms"]
            cells[key] = (*cells.get(key, ()), _ms(ms["direct"]), _ms(ms["fourier"]), row["chosen"])
    sizes = [size for size in CONVOLVED if any(row["images"] == size for row in results["rows"])]
    head = ("shape", "dtype", *(f"{name}, {size}" for size in sizes for name in ("direct", "Fourier", "chosen")))
    title = (
        "Forward and backward of the direct convolution and of that by Fourier transform in ms, and which is chosen, "
        "by the number of images; shapes are channels → kernels, image / kernel / stride"
    )
    return Table(title, head, [(*key, *of) for key, of in cells.items()])


def _convolution_errors(results: Results) -> Table:
    rows = []
    for one in results["errors"]:
        direct, fourier = one["direct"], one["fourier"]
        ratios = [f"{fourier[name] / direct[name]:.2f} x ({direct[name]:.1e})" for name in direct]
        rows.append((f"{one['images']} x {_convolution(one)}", one["dtype"], *ratios))
    title = (
        "The Fourier convolution's error over the direct one's (the latter relative in brackets), against float64; "
        "errors are roots of mean squares"
    )
    return Table(title, ("shape", "dtype", "values", "gradient for images", "gradient for the weight"), rows)


def _convolution(row: dict[str, Any]) -> str:
    sizes = ("size", "kernel_size")
    image, kernel = ("x".join(map(str, of)) if isinstance(of := row[name], list) else str(of) for name in sizes)
    return f"{row['channels']} → {row['kernels']}, {image} / {kernel} / {row['stride']}"


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
