"""Times routing, forward and backward, by every path, and measures its memory; and how both grow with the work.

python benchmarks/routing.py            prints tables and writes results/routing/cpu.json, or cuda.json
python benchmarks/routing.py --quick    a few shapes, for a look and for tests

Every path must first give the twin's parents and gradients: a wrong path has no time.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsnet.hardware import default_device, environment, keep_freed_memory
from capsnet.ops.paths import RoutingPath, routing_path
from capsnet.ops.routing import route

RESULTS = Path(__file__).parent.parent / "results" / "routing"
PAIRS = 7  # rounds, each with every path once: others' load falls on all alike
MEMORY = "import sys; sys.path.insert(0, {0!r}); from routing import peak; print(peak(*{1!r}))"


class Shape(NamedTuple):
    """Images, children, parents and their dimensions."""

    b: int
    i: int
    j: int
    d: int = 8
    e: int = 16


PAPER = Shape(128, 1152, 10)
SHAPES = (
    *(PAPER, Shape(1, 1152, 10), Shape(1, 1, 1, 1, 1), Shape(128, 7, 3, 5, 8), Shape(1, 1153, 3, 33, 33)),
    *(Shape(8, 1152, 100), Shape(2, 7, 1000), Shape(1024, 1152, 10)),
)
GROWTH = {
    "i": [Shape(8, i, 10) for i in (1152, 4608, 18432, 100_000)],
    "j": [Shape(8, 1152, j) for j in (10, 32, 100, 320, 1000)],
    "b": [Shape(b, 1152, 10) for b in (1, 4, 16, 64, 256, 1024)],
}
LARGE = Shape(32, 20_000, 100)  # its votes alone are 4.1 GB
MOST_VOTES = 1 << 28  # numbers of them that the twin is asked to keep


def inputs(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Children, a weight that makes parents of middling length, and the parents' gradient."""
    device = default_device()
    make = torch.Generator(device).manual_seed(0)
    b, i, j, d, e = shape
    children = torch.randn(b, i, d, device=device, dtype=dtype, generator=make)
    weight = torch.randn(i, j, d, e, device=device, dtype=dtype, generator=make) * (j / (i * d)) ** 0.5
    return children, weight, torch.randn(b, j, e, device=device, dtype=dtype, generator=make)


def step(children: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Parents, and the gradients for children and weight, through all iterations."""
    children, weight = children.requires_grad_(), weight.requires_grad_()
    parents = route(children, weight)
    return parents.detach(), *torch.autograd.grad(parents, (children, weight), grad)


def known_paths() -> list[RoutingPath]:
    """The paths that can run here."""
    from capsnet.ops.native import compiled

    if default_device().type == "cuda":
        return ["twin", "streaming", "triton"]
    return ["twin", "streaming", *(["native"] if compiled(torch.float32, 8, 16) else [])]  # type: ignore[list-item]


def check(shape: Shape, path: RoutingPath) -> None:
    """Refuse to go on with a path that is not the twin, in float64 as in all tests."""
    arguments = inputs(shape._replace(b=min(shape.b, 8), i=min(shape.i, 500), j=min(shape.j, 50)), torch.float64)
    with routing_path("twin"):
        right = step(*arguments)
    with routing_path(path):
        torch.testing.assert_close(step(*arguments), right)


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - start


def compare(shape: Shape, paths: list[RoutingPath | None]) -> dict[str, float]:
    """Median milliseconds of forward and backward by each path; None is what the door chooses."""
    arguments = inputs(shape)
    times: dict[str, list[float]] = {path or "door": [] for path in paths}

    def once(path: RoutingPath | None) -> float:
        if path is None:
            return timed(lambda: step(*arguments))
        with routing_path(path):
            return timed(lambda: step(*arguments))

    for path in paths:
        once(path)
    for _ in range(PAIRS):
        for path in paths:
            times[path or "door"].append(once(path))
    return {name: 1e3 * median(seconds) for name, seconds in times.items()}


def peak(path: RoutingPath, shape: Shape) -> int:
    """Bytes that a step takes at most beyond its inputs, output and their gradients: in a process of its own."""
    import resource

    if default_device().type == "cpu":
        keep_freed_memory()
    arguments = inputs(Shape(*shape))
    kept = sum(t.nbytes for t in (*arguments[:2], arguments[2]))  # the gradients are as large as these
    with routing_path(path):
        step(*inputs(Shape(2, 4, 2)))  # what the libraries take for themselves
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step(*arguments)
            return torch.cuda.max_memory_allocated() - before - kept
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step(*arguments)
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) - kept


def peak_elsewhere(path: RoutingPath, shape: Shape) -> int:
    """`peak` in a fresh process, whose memory has no past."""
    program = MEMORY.format(str(Path(__file__).parent), (path, tuple(shape)))
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def exponent(sizes: list[int], times: list[float]) -> list[float]:
    """How far each step of growth is from proportional: 1 is proportional."""
    return [
        (after / before) / (size / smaller)
        for before, after, smaller, size in zip(times, times[1:], sizes, sizes[1:], strict=False)
    ]


def main() -> None:
    """Check, time, measure, print and write."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--quick", action="store_true", help="two shapes, no growth, nothing written")
    asked = words.parse_args()
    device, paths = default_device(), known_paths()
    if device.type == "cpu":
        keep_freed_memory()
    about = environment(device)
    print(f"{about['device']}, {about['cores']} cores, torch {about['torch']}, float32, forward and backward, ms")
    results: dict[str, Any] = {"environment": about, "shapes": [], "growth": {}}
    for shape in SHAPES[:2] if asked.quick else SHAPES:
        for path in paths[1:]:
            check(shape, path)
        few = [path for path in paths if path != "twin" or shape.b * shape.i * shape.j * shape.e <= MOST_VOTES]
        times = compare(shape, [None, *few])
        results["shapes"].append({"shape": shape._asdict(), "ms": times})
        print(tuple(shape), "  ".join(f"{name} {ms:.2f}" for name, ms in times.items()), flush=True)
    if asked.quick:
        return
    for axis, shapes in GROWTH.items():
        times = [compare(shape, [None])["door"] for shape in shapes]
        sizes = [getattr(shape, axis) for shape in shapes]
        results["growth"][axis] = {"sizes": sizes, "ms": times, "of_proportional": exponent(sizes, times)}
        print(f"{axis}:", "  ".join(f"{size:,} {ms:.1f}" for size, ms in zip(sizes, times, strict=True)), flush=True)
    results["memory"] = {"shape": LARGE._asdict(), "bytes": peak_elsewhere(paths[-1], LARGE)}
    print(f"memory at {tuple(LARGE)}: {results['memory']['bytes'] / 2**20:,.0f} MiB over inputs, output and gradients")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{device.type}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
