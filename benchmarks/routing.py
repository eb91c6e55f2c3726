"""Times routing forward and backward by every backend and by naive PyTorch, its memory, and its growth with the sizes.

python benchmarks/routing.py            prints tables, writes results/routing/<kind of machine>.json and a plot
python benchmarks/routing.py --quick    small sizes, to see that it runs; writes to build/

Takes many minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from capsnet.analysis.style import BLUE, GREEN, LABEL, SMALL, VERMILLION, round_numbers
from capsnet.hardware import default_device, environment, fast_bf16, keep_freed_memory
from capsnet.ops.dispatch import choose_backend
from goals import NOT_RUN, Results
from implementations import BACKENDS, PAPER, Implementation, Shape, check, implementations, inputs, step
from measuring import (
    Limits,
    dtype_name,
    in_turns,
    machine_kind,
    measure_limits,
    median_ratio,
    memory_growth,
    peak_memory,
    wait,
)
from report import Benchmark, Table, mib_text, ms_text, parser, plain_axes, plot_title, run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ITERATIONS = 3
SHORTEST = 5e-3  # seconds of a timing: shorter calls are repeated
GROWN = 10.0  # milliseconds from which on the time of a call should be proportional to its work
LIST_ROUNDS = 5  # in which a shape of the list is timed
SLOWEST = 10  # shapes of the list that are timed a second time
MOST_VOTES = 1 << 28  # numbers that naive PyTorch is asked to keep
MOST_LISTED = 80_000_000  # votes or numbers of the weight of a shape of the list
COMPILED_SIZES = ((8, 16), (5, 33))  # d and e on the list for a GPU, where each pair takes a compiler seconds
LARGE = Shape(32, 20_000, 100)  # its votes alone are 4.1 GB


@dataclass(frozen=True)
class Plan:
    """Which shapes are measured, and in how many rounds."""

    shapes: tuple[Shape, ...]
    memory: dict[Shape, tuple[str, ...]]  # shape → implementations
    growth: dict[str, tuple[Shape, ...]]  # axis → shapes
    listed: tuple[Shape, ...]
    rounds: int
    side: int  # of the matrices whose product gives the GEMM peak


FULL = Plan(
    shapes=(
        *(PAPER, Shape(1, 1152, 10), Shape(1024, 1152, 10), Shape(32, 1152, 100), Shape(8, 1152, 1000)),
        *(Shape(8, 20_000, 10), Shape(128, 7, 3, 5, 8), Shape(2, 1153, 3, 33, 33), Shape(1, 1, 1, 1, 1)),
    ),
    memory={PAPER: ("naive", "auto", *BACKENDS), LARGE: ("auto", *BACKENDS)},
    growth={
        "i": tuple(Shape(8, i, 10) for i in (1152, 4608, 18_432, 50_000, 100_000)),
        "j": tuple(Shape(8, 1152, j) for j in (10, 32, 100, 320, 1000)),
        "b": tuple(Shape(b, 1152, 10) for b in (1, 4, 16, 64, 256, 1024)),
    },
    listed=tuple(Shape(*of) for of in product((3, 16), (1, 7, 1153), (1, 3, 1000), *2 * ((1, 5, 8, 16, 33),))),
    rounds=9,
    side=4096,
)
QUICK = Plan(
    shapes=(Shape(8, 1152, 10), Shape(2, 7, 3, 5, 8)),
    memory={Shape(8, 1152, 10): ("auto",)},
    growth={"i": tuple(Shape(1, i, 10) for i in (288, 1152))},
    listed=tuple(Shape(2, i, j) for i in (1, 7) for j in (1, 3)),
    rounds=3,
    side=512,
)


class Times(NamedTuple):
    """Seconds of a call: forward, and backward."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def measure(plan: Plan) -> Iterator[Results]:
    """Measure shapes, memory, growth and the list of small shapes, and yield all results so far after each.

    Raises WrongResult where a backend gives other parents or gradients than naive PyTorch.
    """
    device = default_device()
    if device.type == "cpu":
        keep_freed_memory()
    dtypes = [torch.float32, *([torch.bfloat16] if fast_bf16(device) else [])]
    limits = {dtype: measure_limits(device, dtype, plan.side) for dtype in dtypes}
    results: Results = {"environment": environment(device), "kind": machine_kind(device)}
    results |= {"rounds": plan.rounds, "iterations": ITERATIONS}
    results["limits"] = {dtype_name(dtype): limit._asdict() for dtype, limit in limits.items()}
    results["shapes"] = [
        compare(shape, dtype, limits[dtype], plan.rounds, device) for dtype in dtypes for shape in plan.shapes
    ]
    yield results
    results["memory"] = [peaks(shape, names, device) for shape, names in plan.memory.items()]
    yield results
    results["growth"] = {axis: growth(axis, shapes, plan.rounds, device) for axis, shapes in plan.growth.items()}
    yield results
    listed = [shape for shape in plan.listed if device.type == "cpu" or shape[3:] in COMPILED_SIZES]
    results["listed"] = relative_times(listed, LIST_ROUNDS, device)
    yield results


def compare(shape: Shape, dtype: torch.dtype, limits: Limits, rounds: int, device: torch.device) -> Results:
    """Return each implementation's milliseconds, timed in the same rounds, and its speed-up over naive PyTorch."""
    timed = implementations(shape, device)
    if shape.votes > MOST_VOTES:
        del timed["naive"]
    for name, implementation in timed.items():
        if name != "naive":
            check(name, implementation, shape, dtype, device)
    if device.type == "cuda" and shape == PAPER:
        timed["naive, compiled"] = Implementation(torch.compile(timed["naive"].call, dynamic=False))
    arguments = inputs(shape, dtype, device)
    times = in_turns({name: partial(time_route, one, arguments) for name, one in timed.items()}, rounds)
    both = {name: [one.both for one in of] for name, of in times.items()}
    rows = {
        name: {
            "forward_ms": 1e3 * median(one.forward for one in of),
            "backward_ms": 1e3 * median(one.backward for one in of),
            "speedup": median_ratio(both["naive"], both[name]) if "naive" in both else None,
        }
        for name, of in times.items()
    }
    about = {"shape": shape._asdict(), "dtype": dtype_name(dtype), "chosen": choose_backend(*arguments[:2])}
    return about | {"implementations": rows, "roofline_ms": 1e3 * roofline(shape, dtype, limits)}


def time_route(implementation: Implementation, arguments: tuple[Tensor, Tensor, Tensor]) -> Times:
    """Return the seconds of one call, the mean over as many calls as a clock can resolve."""
    forward = backward = 0.0
    calls = 0
    device = arguments[0].device
    children, weight, grad = arguments
    with implementation.context():
        while forward + backward < SHORTEST:
            wait(device)
            start = perf_counter()
            parents = implementation.call(children, weight)
            wait(device)
            middle = perf_counter()
            torch.autograd.grad(parents, (children, weight), grad)
            wait(device)
            forward, backward, calls = forward + middle - start, backward + perf_counter() - middle, calls + 1
    return Times(forward / calls, backward / calls)


def roofline(shape: Shape, dtype: torch.dtype, limits: Limits) -> float:
    """Return the shortest possible seconds of routing forward and backward: those of its FLOP or of its bytes.

    FLOP are those of the votes, made once, their two gradients, and the weighted sums and agreements, with twice as
    many backward. Bytes are those of children and weight, read twice, their gradients, and parents.
    """
    b, i, j, d, e = shape
    flop = 6 * shape.votes * d + 6 * (2 * ITERATIONS - 1) * shape.votes
    moved = dtype.itemsize * (3 * (b * i * d + shape.weights) + 2 * b * j * e)
    return max(flop / limits.flops, moved / limits.bandwidth)


def peaks(shape: Shape, names: tuple[str, ...], device: torch.device) -> Results:
    """Return the peak bytes of those of the named implementations that can run here."""
    measured = {name: route_peak(name, shape) for name in names if name in implementations(shape, device)}
    return {"shape": shape._asdict(), "votes_bytes": 4 * shape.votes, "bytes": measured}


def route_peak(name: str, shape: Shape) -> int | None:
    """Return the peak bytes, forward and backward in float32, besides inputs, output and their gradients."""
    return peak_memory(_route_peak, name, shape)


def _route_peak(name: str, shape: Shape) -> int:
    device = default_device()
    keep_freed_memory()
    implementation = implementations(shape, device)[name]
    step(implementation, inputs(Shape(2, 4, 2, shape.d, shape.e), torch.float32, device))  # what libraries allocate
    arguments = inputs(shape, torch.float32, device)
    with memory_growth(device) as grown:
        step(implementation, arguments)
    return grown[0] - sum(t.nbytes for t in arguments)  # as large as what is returned: two gradients and the output


def growth(axis: str, shapes: tuple[Shape, ...], rounds: int, device: torch.device) -> Results:
    """Return `route`'s milliseconds as one size grows, and their ratio to growth in proportion to that size.

    The ratio is 1 at the first call of more than 10 ms; for those before and for shorter ones there is none.
    """
    auto = Implementation(implementations(shapes[0], device)["auto"].call)
    given = {getattr(shape, axis): inputs(shape, torch.float32, device) for shape in shapes}
    times = in_turns({str(size): partial(time_route, auto, arguments) for size, arguments in given.items()}, rounds)
    ms_of = {size: 1e3 * median(one.both for one in times[str(size)]) for size in given}
    first = next((size for size, ms in ms_of.items() if ms > GROWN), None)
    ratios = [
        None if first is None or ms <= GROWN or size < first else ms / size / (ms_of[first] / first)
        for size, ms in ms_of.items()
    ]
    return {"shape": shapes[0]._asdict(), "sizes": list(ms_of), "ms": list(ms_of.values()), "ratio": ratios}


def relative_times(shapes: Sequence[Shape], rounds: int, device: torch.device) -> Results:
    """Return `route`'s time divided by naive PyTorch's at many small shapes, float32: the median over the rounds.

    The slowest of many shapes are partly those with the most noise. So the slowest are timed a second time, and only
    the second times count for them.
    """
    small = [shape for shape in shapes if max(shape.votes, shape.weights) <= MOST_LISTED]
    each = [{"shape": list(shape), "relative_time": _relative_time(shape, rounds, device)} for shape in small]
    slowest = sorted(zip((one["relative_time"] for one in each), small, strict=True), reverse=True)[:SLOWEST]
    again = [{"shape": list(shape), "relative_time": _relative_time(shape, rounds, device)} for _, shape in slowest]
    return {"n": len(small), "left_out": len(shapes) - len(small), "rounds": rounds, "again": again, "each": each}


def _relative_time(shape: Shape, rounds: int, device: torch.device) -> float:
    found = implementations(shape, device)
    check("auto", found["auto"], shape, torch.float32, device)
    arguments = inputs(shape, torch.float32, device)
    calls = {name: partial(time_route, found[name], arguments) for name in ("naive", "auto")}
    times = {name: [one.both for one in of] for name, of in in_turns(calls, rounds).items()}
    return median_ratio(times["auto"], times["naive"])


def tables(results: Results) -> list[Table]:
    """Return the tables of shapes, memory, growth and the list."""
    return [_shape_table(results), _memory_table(results), _growth_table(results), _list_table(results)]


def _shape_table(results: Results) -> Table:
    rows: list[tuple[str, ...]] = []
    for one in results["shapes"]:
        shape, dtype = _sizes(one["shape"]), one["dtype"]
        for name, row in one["implementations"].items():
            speedup = NOT_RUN if row["speedup"] is None else f"{row['speedup']:.2f} x"
            label = _label(name, one["chosen"])
            rows.append((shape, dtype, label, ms_text(row["forward_ms"]), ms_text(row["backward_ms"]), speedup))
            shape = dtype = ""
        rows.append(("", "", "roofline, forward and backward", ms_text(one["roofline_ms"]), "", ""))
    title = (
        "Time of routing in ms, and speed-up over naive PyTorch; the roofline is the time that the machine's FLOP/s "
        "and bytes/s allow if the votes are made once"
    )
    return Table(title, ("b · i · j · d · e", "dtype", "backend", "forward", "backward", "speed-up"), rows)


def _memory_table(results: Results) -> Table:
    measured = results.get("memory", [])
    names = list(dict.fromkeys(name for one in measured for name in one["bytes"]))
    rows = []
    for one in measured:
        sizes = [mib_text(one["bytes"].get(name)) for name in names]
        rows.append((_sizes(one["shape"]), mib_text(one["votes_bytes"]), *sizes))
    title = "Peak memory of routing in MiB, besides inputs, output and their gradients, float32"
    return Table(title, ("b · i · j · d · e", "the votes alone", *map(_label, names)), rows)


def _growth_table(results: Results) -> Table:
    rows = []
    for axis, grown in results.get("growth", {}).items():
        for size, ms, ratio in zip(grown["sizes"], grown["ms"], grown["ratio"], strict=True):
            shape = _sizes(grown["shape"] | {axis: size})
            rows.append((axis, shape, f"{ms:.1f}", NOT_RUN if ratio is None else f"{ratio:.2f}"))
    title = "Time of routing as one size grows, and its ratio to proportional growth, from the first call over 10 ms"
    return Table(title, ("size that grows", "b · i · j · d · e", "ms", "ratio"), rows)


def _list_table(results: Results) -> Table:
    listed = results.get("listed", {})
    if "again" not in listed:
        return Table("", (), [])
    ratios = [one["relative_time"] for one in listed["each"]]
    again = [one["relative_time"] for one in listed["again"]]
    cells = (f"{listed['n']:,}", *(f"{of:.2f}" for of in (min(ratios), median(ratios), median(again), max(again))))
    slowest = " · ".join(f"{size:,}" for size in max(listed["again"], key=lambda one: one["relative_time"])["shape"])
    title = (
        "Time of `route` divided by naive PyTorch's at small and odd shapes, float32, each the median of "
        f"{listed['rounds']} rounds; the {len(again)} slowest shapes were timed a second time, and only the second "
        "times count for them"
    )
    if listed["left_out"]:
        title += f"; {listed['left_out']} shapes with more than 80 million votes or weights are left out"
    head = ("shapes", "smallest", "median", f"median of the {len(again)} slowest", "largest", "at")
    return Table(title, head, [(*cells, slowest)])


def _label(name: str, chosen: str | None = None) -> str:
    return f"auto ({chosen})" if name == "auto" and chosen else name.replace("naive", "naive PyTorch")


def _sizes(shape: dict[str, int]) -> str:
    return " · ".join(f"{size:,}" for size in shape.values())


GROWS = {"i": ("children", BLUE, "o"), "j": ("parents", VERMILLION, "s"), "b": ("images", GREEN, "^")}


def plot(figure: Figure, results: Results) -> None:
    """Plot the first shape by backend, and growth with the sizes."""
    plot_title(figure, "Routing, forward and backward, float32")
    grows = results.get("growth")
    panels = figure.subplots(1, 2 if grows else 1, squeeze=False)[0]
    _plot_backends(panels[0], results["shapes"][0])
    if grows:
        _plot_growth(panels[1], grows)


def _plot_backends(axes: Axes, measured: Results) -> None:
    names, shape = [_label(name, measured["chosen"]) for name in measured["implementations"]], measured["shape"]
    rows = measured["implementations"].values()
    forward, backward = ([row[part] for row in rows] for part in ("forward_ms", "backward_ms"))
    axes.barh(names, forward, color=BLUE, height=0.7, label="forward")
    axes.barh(names, backward, left=forward, color=VERMILLION, height=0.7, label="backward")
    axes.invert_yaxis()
    axes.set_xlabel(f"{shape['b']:,} images, {shape['i']:,} children, {shape['j']:,} parents: ms", fontsize=LABEL)
    axes.legend(fontsize=SMALL, frameon=False, loc="lower right")
    plain_axes(axes, "x")


def _plot_growth(axes: Axes, grows: dict[str, Any]) -> None:
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
    axes.set_xlabel("number; dotted: proportional to the number, through the last point", fontsize=LABEL)
    axes.set_ylabel("ms", fontsize=LABEL)
    axes.legend(fontsize=SMALL, frameon=False)
    plain_axes(axes, "both")


BENCHMARK = Benchmark("routing", "Routing", tables, plot)


def main() -> None:
    """Measure and show what the command line asks for."""
    asked = parser(__doc__).parse_args()
    run(BENCHMARK, measure(QUICK if asked.quick else FULL), asked)


if __name__ == "__main__":
    main()
