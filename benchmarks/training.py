"""Times training steps from naive PyTorch to `capsnet train`, prediction and start-up, and measures their memory.

python benchmarks/training.py            prints tables, writes results/training/<kind of machine>.json and a plot
python benchmarks/training.py --quick    small sizes, to see that it runs; writes to build/

Takes minutes. The first step of `capsnet train mnist` is timed if $CAPSNET_DATA or the cache has MNIST.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from math import isclose
from multiprocessing import get_context
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from capsnet.analysis.attacks.pgd import FullGradient, margin
from capsnet.analysis.style import BLACK, BLUE, GREY, LABEL, PALE, SMALL
from capsnet.build import build_network
from capsnet.hardware import default_device, environment, fast_bf16, keep_freed_memory
from capsnet.recipes import Paper
from goals import NOT_RUN, Results
from latency import first_step_seconds, help_seconds, one_image_seconds, prediction_seconds
from measuring import (
    WrongResult,
    gemm,
    gemm_flop,
    in_turns,
    machine_kind,
    median_ratio,
    memory_growth,
    peak_memory,
)
from naive import NaiveCapsNet
from report import Benchmark, Table, mib_text, ms_text, parser, plain_axes, plot_title, run
from variants import (
    CLASSES,
    IMAGE_SHAPE,
    Stepper,
    Variant,
    default_variant,
    eager,
    first_losses,
    images_per_second,
    routing_seconds,
    step_seconds,
    variants,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-2}  # of a loss, relative
STEPS = 5  # before memory stops growing: the first makes Adam's state, and on a GPU the fourth is recorded


@dataclass(frozen=True)
class Plan:
    """How much is measured, and in how many rounds."""

    batch_size: int
    rounds: int
    predicted: int
    times: int  # that one image is predicted, and that the command line prints its help
    side: int  # of the matrices whose product gives the GEMM peak
    attack_images: int  # in a step of an attack
    starts: int  # of `capsnet train`, with empty caches and with filled ones


FULL = Plan(batch_size=128, rounds=9, predicted=10_000, times=30, side=4096, attack_images=100, starts=3)
QUICK = Plan(batch_size=2, rounds=1, predicted=20, times=1, side=512, attack_images=2, starts=1)
Call = Callable[..., Any]
Ask = Callable[..., Any]  # a variant or None, a function and its arguments → its result in a process that suits them


def measure(plan: Plan) -> Iterator[Results]:
    """Measure steps, prediction, memory and start-up, and yield all results so far after each.

    Raises WrongResult where a variant has other losses than naive PyTorch.
    """
    device = default_device()
    rows = variants(device)
    results: Results = {"environment": environment(device), "kind": machine_kind(device)}
    results |= {"rounds": plan.rounds, "batch_size": plan.batch_size}
    results["flop"] = flop = {"step": flop_of(True), "prediction": flop_of(False)}
    with _process() as plain, _process(keep_freed_memory if device.type == "cpu" else None) as kept:

        def ask(variant: Variant | None, function: Call, *arguments: Any) -> Any:
            process = plain if variant is not None and device.type == "cpu" and not variant.keeps_memory else kept
            return process.submit(function, *arguments).result()

        results["losses"] = {row.name: ask(row, first_losses, row, plan.batch_size) for row in rows}
        check({row: results["losses"][row.name] for row in rows}, device.type)
        yield (results := results | measure_steps(ask, rows, plan, flop["step"]))
        yield (results := results | measure_prediction(ask, plan, flop["prediction"]))
    results["memory"] = {
        "naive": training_peak(rows[0], plan.batch_size),
        "capsnet": training_peak(default_variant(rows), plan.batch_size),
        "attack": attack_peak(plan.attack_images),
        "attack_images": plan.attack_images,
    }
    yield results
    results["help_seconds"] = help_seconds(plan.times)
    results["first_step"] = first_step_seconds(plan.starts)
    yield results


def _process(start: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Return a new process, since a setting of glibc's memory holds for a whole one."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=start)


def flop_of(backward: bool) -> int:
    """Return the FLOP of the matrix products and convolutions for one image, counted on the naive network's shapes."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = NaiveCapsNet()
        loss = network(torch.empty(1, *IMAGE_SHAPE), torch.zeros(1, dtype=torch.int64))
        if backward:
            loss.backward()
    return int(counter.get_total_flops())


def check(losses: dict[Variant, list[float]], device_type: str) -> None:
    """Raise WrongResult if a variant's first losses differ from the first variant's by more than its dtype rounds."""
    right = next(iter(losses.values()))
    for variant, found in losses.items():
        tf32 = device_type == "cuda" and variant.dtype == "float32"  # in which cuDNN convolves
        tolerance = TOLERANCE["tf32" if tf32 else variant.dtype]
        if not all(isclose(one, other, rel_tol=tolerance) for one, other in zip(found, right, strict=True)):
            raise WrongResult(f"{variant.name} has losses {found}, and naive PyTorch {right}")


def measure_steps(ask: Ask, rows: list[Variant], plan: Plan, flop: int) -> Results:
    """Measure the GEMM peak, the variants' steps, and routing's part of a step, all in the same rounds."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    calls: dict[str, Call] = {dtype: partial(ask, None, gemm_seconds, dtype, plan.side) for dtype in dtypes}
    calls |= {row.name: partial(ask, row, images_per_second, row, plan.batch_size) for row in rows}
    routed = routed_variants(default_variant(rows))
    for variant in routed:
        calls[f"{variant.name}, routing"] = partial(ask, variant, routing_seconds, variant, plan.batch_size)
        calls[f"{variant.name}, step"] = partial(ask, variant, step_seconds, variant, plan.batch_size)
    took = in_turns(calls, plan.rounds)
    return {
        "gemm_flops": {dtype: gemm_flop(plan.side) / median(took[dtype]) for dtype in dtypes},
        "rows": [step_row(row, rows[0], took, flop, plan.side) for row in rows],
        "routing": [routing_row(variant, took) for variant in routed],
    }


def gemm_seconds(dtype: str, side: int) -> float:
    """Return the time of a matrix product in this process."""
    return _gemm(dtype, side)()


@cache
def _gemm(dtype: str, side: int) -> Callable[[], float]:
    return gemm(default_device(), getattr(torch, dtype), side)


def routed_variants(variant: Variant) -> list[Variant]:
    """Return the eager variant in float32, and in bf16 where that is fast, for each extent of the gradient."""
    dtypes = ("float32", *(["bfloat16"] if fast_bf16(default_device()) else []))
    return [
        replace(eager(variant), name=f"{dtype}, {gradient}", dtype=dtype, gradient=gradient)
        for dtype in dtypes
        for gradient in ("all", "last")
    ]


def step_row(row: Variant, naive: Variant, took: dict[str, list[float]], flop: int, side: int) -> Results:
    """Return a variant's images/s, its share of the GEMM peak, and its speed-up over naive PyTorch."""
    rates, products = took[row.name], took[row.dtype]
    return {
        "name": row.name,
        "dtype": row.dtype,
        "default": not row.optional,
        "images_per_second": median(rates),
        "gemm_share": median(flop * rate * s / gemm_flop(side) for rate, s in zip(rates, products, strict=True)),
        "speedup": median_ratio(rates, took[naive.name]),
    }


def routing_row(variant: Variant, took: dict[str, list[float]]) -> Results:
    """Return routing's milliseconds, those of the step, and routing's share of it."""
    routing, step = took[f"{variant.name}, routing"], took[f"{variant.name}, step"]
    about = {"dtype": variant.dtype, "gradient": variant.gradient}
    return about | {"ms": 1e3 * median(routing), "step_ms": 1e3 * median(step), "share": median_ratio(routing, step)}


def measure_prediction(ask: Ask, plan: Plan, flop: int) -> Results:
    """Measure prediction of many images and of one, in float32 as `capsnet predict` does."""
    calls = {
        "float32": partial(ask, None, gemm_seconds, "float32", plan.side),
        "predictions": partial(ask, None, prediction_seconds, plan.predicted),
    }
    took = in_turns(calls, min(3, plan.rounds))
    return {
        "prediction": prediction_row(took, plan, flop),
        "one_image_ms": 1e3 * ask(None, one_image_seconds, plan.times),
    }


def prediction_row(took: dict[str, list[float]], plan: Plan, flop: int) -> Results:
    """Return images/s of prediction and its share of the GEMM peak."""
    pairs = list(zip(took["predictions"], took["float32"], strict=True))
    shares = [flop * plan.predicted / s / (gemm_flop(plan.side) / product) for s, product in pairs]
    rates = [plan.predicted / s for s in took["predictions"]]
    about = {"n": plan.predicted, "dtype": "float32"}
    return about | {"images_per_second": median(rates), "gemm_share": median(shares)}


def training_peak(variant: Variant, batch_size: int) -> int | None:
    """Return the peak bytes of training: network, gradients, Adam's state and intermediate results."""
    return peak_memory(_training_peak, variant, batch_size)


def _training_peak(variant: Variant, batch_size: int) -> int:
    if variant.keeps_memory:
        keep_freed_memory()
    with memory_growth(default_device()) as grown:
        taken = Stepper(variant, batch_size)
        for _ in range(STEPS):
            taken.step()
    return grown[0]


def attack_peak(n: int) -> int | None:
    """Return the peak bytes of the gradient of an attack's loss for n images, with the frozen network."""
    return peak_memory(_attack_peak, n)


def _attack_peak(n: int) -> int:
    device = default_device()
    keep_freed_memory()
    images, labels = torch.rand(n, *IMAGE_SHAPE, device=device), torch.arange(n, device=device) % CLASSES
    with memory_growth(device) as grown:
        attacked = FullGradient(build_network(Paper(), IMAGE_SHAPE, CLASSES).to(device))
        for _ in range(2):
            pixels = images.clone().requires_grad_()
            torch.autograd.grad(margin(attacked(pixels), labels).sum(), pixels)
    return grown[0]


def tables(results: Results) -> list[Table]:
    """Return the tables of steps, of routing's part, and of all the rest."""
    return [_step_table(results), _routing_table(results), _other_table(results)]


def _step_table(results: Results) -> Table:
    rows = [
        (
            *(row["name"], row["dtype"], f"{row['images_per_second']:,.0f}"),
            *(f"{row['speedup']:.2f} x", f"{100 * row['gemm_share']:.0f} %"),
        )
        for row in results["rows"]
    ]
    gigaflop = results["flop"]["step"] / 1e9
    title = (
        f"Training at batch size {results['batch_size']}, {gigaflop:.2f} GFLOP per image; each row adds one change to "
        "the row above"
    )
    return Table(title, ("change", "dtype", "images/s", "speed-up over naive PyTorch", "of the GEMM peak"), rows)


def _routing_table(results: Results) -> Table:
    rows = []
    for one in results["routing"]:
        times = (ms_text(one[name]) if name in one else NOT_RUN for name in ("ms", "step_ms"))
        rows.append((one["dtype"], one["gradient"], *times, f"{100 * one['share']:.1f} %"))
    title = "Routing in an eager training step, by the iterations that gradients pass through"
    return Table(title, ("dtype", "iterations", "routing, ms", "step, ms", "routing's part"), rows)


def _other_table(results: Results) -> Table:
    rates = ", ".join(f"{rate / 1e9:,.0f} in {dtype}" for dtype, rate in results["gemm_flops"].items())
    rows = [("GEMM peak, GFLOP/s", rates)]
    if (many := results.get("prediction")) is not None:
        rate = f"{many['images_per_second']:,.0f} images/s, {100 * many['gemm_share']:.0f} % of the GEMM peak"
        rows += [(f"prediction of {many['n']:,} images, {many['dtype']}", rate)]
        rows += [("prediction of one image by a loaded network", f"{results['one_image_ms']:.1f} ms")]
    if (memory := results.get("memory")) is not None:
        what = f"memory of training at batch size {results['batch_size']}, with network, gradients and Adam's state"
        rows += [(f"{what}: naive PyTorch", f"{mib_text(memory['naive'])} MiB")]
        rows += [(f"{what}: capsnet", f"{mib_text(memory['capsnet'])} MiB")]
        attack = f"memory of an attack's gradient for {memory['attack_images']} images, with the frozen network"
        rows += [(attack, f"{mib_text(memory['attack'])} MiB")]
    if results.get("help_seconds") is not None:
        rows += [("`capsnet --help`", f"{results['help_seconds']:.2f} s")]
    for caches, seconds in (results.get("first_step") or {}).items():
        rows += [(f"`capsnet train mnist` to the end of its first step, {caches} caches", f"{seconds:.2f} s")]
    return Table("Prediction, memory and start-up", ("what", "measured"), rows)


def plot(figure: Figure, results: Results) -> None:
    """Plot the images/s of all variants."""
    plot_title(figure, f"Training at batch size {results['batch_size']}: each bar adds one change to the bar above")
    axes, rows = figure.subplots(), results["rows"]
    rates = [row["images_per_second"] for row in rows]
    colours = [GREY, *(BLUE if row.get("default", True) else PALE for row in rows[1:])]
    bars = axes.barh([row["name"] for row in rows], rates, color=colours, height=0.7)
    labels = [f"{row['speedup']:.2f} x, {100 * row['gemm_share']:.0f} % of the GEMM peak" for row in rows]
    axes.bar_label(bars, labels, padding=4, fontsize=SMALL, color=BLACK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(rates))
    axes.set_xlabel("images/s", fontsize=LABEL)
    plain_axes(axes, "x")


BENCHMARK = Benchmark("training", "Training and prediction, step by step", tables, plot)


def main() -> None:
    """Measure and show what the command line asks for."""
    asked = parser(__doc__).parse_args()
    run(BENCHMARK, measure(QUICK if asked.quick else FULL), asked)


if __name__ == "__main__":
    main()
