"""Times routing forward and backward by every path beside the textbook, measures its memory, and lets the work grow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsnet.benchmarks.measuring import Limits, in_turns, machine_kind, measure_limits, ratio, wait
from capsnet.benchmarks.memory import peak
from capsnet.benchmarks.ways import PATHS, Shape, Way, check, inputs, ways
from capsnet.hardware import default_device, environment, fast_bf16, keep_freed_memory
from capsnet.ops.dispatch import choose_backend

ITERATIONS = 3
LEAST_SECONDS = 5e-3  # of a timing: shorter calls are repeated
GROWN = 10.0  # milliseconds from which on a call's cost should be proportional to its work
LIST_ROUNDS = 5  # in which a shape of the list is timed
WORST = 10  # shapes of the list that are timed once more
MOST_VOTES = 1 << 28  # numbers of them that the textbook is asked to keep
MOST_LISTED = 80_000_000  # votes or numbers of the weight of a shape of the list
COMPILED_SIZES = ((8, 16), (5, 33))  # d and e on the list for a GPU, where each pair takes a compiler seconds
PAPER = Shape(128, 1152, 10)
LARGE = Shape(32, 20_000, 100)  # its votes alone are 4.1 GB


@dataclass(frozen=True)
class Plan:
    """Which shapes are measured, and in how many rounds."""

    shapes: tuple[Shape, ...]
    memory: dict[Shape, tuple[str, ...]]  # and the ways that take it
    growth: dict[str, tuple[Shape, ...]]
    listed: tuple[Shape, ...]
    rounds: int
    side: int  # of the matrices that set the rate


WHOLE = Plan(
    shapes=(
        *(PAPER, Shape(1, 1152, 10), Shape(1024, 1152, 10), Shape(32, 1152, 100), Shape(8, 1152, 1000)),
        *(Shape(8, 20_000, 10), Shape(128, 7, 3, 5, 8), Shape(2, 1153, 3, 33, 33), Shape(1, 1, 1, 1, 1)),
    ),
    memory={PAPER: ("textbook", "door", *PATHS), LARGE: ("door", *PATHS)},
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
    memory={Shape(8, 1152, 10): ("door",)},
    growth={"i": tuple(Shape(1, i, 10) for i in (288, 1152))},
    listed=tuple(Shape(2, i, j) for i in (1, 7) for j in (1, 3)),
    rounds=3,
    side=512,
)


class Split(NamedTuple):
    """Seconds of a call: forward, and backward."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """Measure shapes, memory, growth and the list of small shapes: what is known so far, after each of them.

    Raises WrongResult where a path gives other parents or gradients than the textbook.
    """
    device = default_device()
    if device.type == "cpu":
        keep_freed_memory()
    dtypes = [torch.float32, *([torch.bfloat16] if fast_bf16(device) else [])]
    limits = {dtype: measure_limits(device, dtype, plan.side) for dtype in dtypes}
    results: dict[str, Any] = {"environment": environment(device), "rounds": plan.rounds, "iterations": ITERATIONS}
    results["kind"] = machine_kind(device)
    results["limits"] = {_name(dtype): limit._asdict() for dtype, limit in limits.items()}
    results["shapes"] = [
        compare(shape, dtype, limits[dtype], plan.rounds, device) for dtype in dtypes for shape in plan.shapes
    ]
    yield results
    results["memory"] = [peaks(shape, names, device) for shape, names in plan.memory.items()]
    yield results
    results["growth"] = {axis: growth(axis, shapes, plan.rounds, device) for axis, shapes in plan.growth.items()}
    yield results
    listed = [shape for shape in plan.listed if device.type == "cpu" or shape[3:] in COMPILED_SIZES]
    results["listed"] = times_on_the_list(listed, LIST_ROUNDS, device)
    yield results


def compare(shape: Shape, dtype: torch.dtype, limits: Limits, rounds: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of every way, and how many times as long the textbook takes; all in the same rounds."""
    timed = {name: way for name, way in ways(shape, device).items() if name != "textbook" or shape.votes <= MOST_VOTES}
    for name, way in timed.items():
        if name != "textbook":
            check(name, way, shape, dtype, device)
    if device.type == "cuda" and shape == PAPER:
        timed["textbook, compiled"] = Way(torch.compile(timed["textbook"].call, dynamic=False))
    arguments = inputs(shape, dtype, device)
    splits = in_turns({name: partial(split, way, arguments) for name, way in timed.items()}, rounds)
    both = {name: [one.both for one in of] for name, of in splits.items()}
    told = {
        name: {
            "forward_ms": 1e3 * median(one.forward for one in of),
            "backward_ms": 1e3 * median(one.backward for one in of),
            "textbook_takes": ratio(both[name], both["textbook"]) if "textbook" in both else None,
        }
        for name, of in splits.items()
    }
    about = {"shape": shape._asdict(), "dtype": _name(dtype), "door": choose_backend(*arguments[:2])}
    return about | {"ways": told, "floor_ms": 1e3 * floor(shape, dtype, limits)}


def split(way: Way, arguments: tuple[Tensor, Tensor, Tensor]) -> Split:
    """The seconds of a way, each the mean of as many calls as a clock can tell."""
    forward = backward = 0.0
    calls = 0
    device = arguments[0].device
    children, weight, grad = arguments
    with way.taking():
        while forward + backward < LEAST_SECONDS:
            wait(device)
            start = perf_counter()
            parents = way.call(children, weight)
            wait(device)
            middle = perf_counter()
            torch.autograd.grad(parents, (children, weight), grad)
            wait(device)
            forward, backward, calls = forward + middle - start, backward + perf_counter() - middle, calls + 1
    return Split(forward / calls, backward / calls)


def floor(shape: Shape, dtype: torch.dtype, limits: Limits) -> float:
    """Seconds below which routing forward and backward cannot be: those of its FLOP, or of its bytes if they are more.

    Counted are the votes, made once, their two gradients, and the sums and agreements with twice as many backward; and
    children and weight, read twice, their gradients, and parents.
    """
    b, i, j, d, e = shape
    flop = 6 * shape.votes * d + 6 * (2 * ITERATIONS - 1) * shape.votes
    moved = dtype.itemsize * (3 * (b * i * d + shape.weights) + 2 * b * j * e)
    return max(flop / limits.flops, moved / limits.bandwidth)


def peaks(shape: Shape, names: tuple[str, ...], device: torch.device) -> dict[str, Any]:
    """Bytes that each way takes at most over inputs, output and gradients, of the ways that can run."""
    told = {name: peak(name, shape) for name in names if name in ways(shape, device)}
    return {"shape": shape._asdict(), "votes_bytes": 4 * shape.votes, "bytes": told}


def growth(axis: str, shapes: tuple[Shape, ...], rounds: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of the door as one size grows, and how far from proportional, from the first call over 10 ms on."""
    door = Way(ways(shapes[0], device)["door"].call)
    given = {getattr(shape, axis): inputs(shape, torch.float32, device) for shape in shapes}
    splits = in_turns({str(size): partial(split, door, arguments) for size, arguments in given.items()}, rounds)
    times = {size: 1e3 * median(one.both for one in splits[str(size)]) for size in given}
    first = next((size for size, ms in times.items() if ms > GROWN), None)
    told = [
        None if first is None or ms <= GROWN or size < first else ms / size / (times[first] / first)
        for size, ms in times.items()
    ]
    return {"shape": shapes[0]._asdict(), "sizes": list(times), "ms": list(times.values()), "of_proportional": told}


def times_on_the_list(shapes: Sequence[Shape], rounds: int, device: torch.device) -> dict[str, Any]:
    """`route`'s time over the textbook's at each of many small shapes, in float32: the median of so many pairs.

    The worst of many shapes are partly those with the most noise. So those that seem the worst are timed once more, and
    only these second figures count for them.
    """
    small = [shape for shape in shapes if max(shape.votes, shape.weights) <= MOST_LISTED]
    each = [{"shape": list(shape), "door_takes": _door_takes(shape, rounds, device)} for shape in small]
    slowest = sorted(zip((one["door_takes"] for one in each), small, strict=True), reverse=True)[:WORST]
    again = [{"shape": list(shape), "door_takes": _door_takes(shape, rounds, device)} for _, shape in slowest]
    return {"n": len(small), "left_out": len(shapes) - len(small), "rounds": rounds, "again": again, "each": each}


def _door_takes(shape: Shape, rounds: int, device: torch.device) -> float:
    found = ways(shape, device)
    check("door", found["door"], shape, torch.float32, device)
    arguments = inputs(shape, torch.float32, device)
    calls = {name: partial(split, found[name], arguments) for name in ("textbook", "door")}
    times = {name: [one.both for one in of] for name, of in in_turns(calls, rounds).items()}
    return ratio(times["textbook"], times["door"])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
