"""Times training steps from the textbook's to ours, and the use of what was trained, beside a matrix product."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from math import isclose
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from capsnet.benchmarks.measuring import WrongResult, in_turns, matrix_product, product_flop
from capsnet.benchmarks.settings import (
    IMAGE_SHAPE,
    Setting,
    eager,
    first_losses,
    routing_seconds,
    settings,
    step_seconds,
    stepper,
)
from capsnet.benchmarks.textbook import Textbook
from capsnet.benchmarks.using import help_seconds, one_image_seconds, prediction_seconds
from capsnet.hardware import default_device, environment, keep_freed_memory

TOLERANCE = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-2}  # of a loss, relative


@dataclass(frozen=True)
class Plan:
    """How much is measured, and in how many rounds."""

    batch: int
    rounds: int
    predicted: int
    times: int  # that one image is asked for, and the command line for help
    side: int  # of the matrices that set the rate


WHOLE = Plan(batch=128, rounds=9, predicted=10_000, times=30, side=4096)
QUICK = Plan(batch=2, rounds=1, predicted=20, times=1, side=512)
Call = Callable[..., Any]


def measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """Measure steps, then the use of the network: what is known so far, after each of them.

    Raises WrongResult where a setting has other losses than the textbook.
    """
    device = default_device()
    rows = settings(device)
    results: dict[str, Any] = {"environment": environment(device), "rounds": plan.rounds, "batch": plan.batch}
    results["kind"] = device.type
    results["flop"] = flop = {"step": flop_of(True), "prediction": flop_of(False)}
    with _process() as plain, _process(keep_freed_memory if device.type == "cpu" else None) as kept:

        def ask(setting: Setting | None, function: Call, *arguments: Any) -> Any:
            process = plain if setting is not None and device.type == "cpu" and not setting.keeps_memory else kept
            return process.submit(function, *arguments).result()

        results["losses"] = {row.name: ask(row, first_losses, row, plan.batch) for row in rows}
        check({row: results["losses"][row.name] for row in rows}, device.type)
        calls: dict[str, Call] = {dtype: partial(ask, None, multiply, dtype, plan.side) for dtype in _dtypes(rows)}
        calls |= {row.name: partial(ask, row, rate, row, plan.batch) for row in rows}
        calls["routing"] = partial(ask, rows[-1], routing_seconds, rows[-1], plan.batch)
        calls["step"] = partial(ask, rows[-1], step_seconds, eager(rows[-1]), plan.batch)
        took = in_turns(calls, plan.rounds)
        results["matrix_flops"] = {dtype: product_flop(plan.side) / median(took[dtype]) for dtype in _dtypes(rows)}
        results["rows"] = [row_of(row, took, flop["step"], plan.side) for row in rows]
        share = median(part / whole for part, whole in zip(took["routing"], took["step"], strict=True))
        results["routing"] = {"ms": 1e3 * median(took["routing"]), "share": share}
        yield results
        calls = {"float32": calls["float32"], "predictions": partial(ask, None, prediction_seconds, plan.predicted)}
        took = in_turns(calls, min(3, plan.rounds))
        results["prediction"] = prediction_of(took, plan, flop["prediction"])
        results["one_image_ms"] = 1e3 * ask(None, one_image_seconds, plan.times)
    results["help_seconds"] = help_seconds(plan.times)
    yield results


def flop_of(backward: bool) -> int:
    """FLOP of the matrix products and convolutions for one image, counted from the textbook's shapes."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = Textbook()
        loss = network(torch.empty(1, *IMAGE_SHAPE), torch.zeros(1, dtype=torch.int64))
        if backward:
            loss.backward()
    return int(counter.get_total_flops())


def check(losses: dict[Setting, list[float]], kind: str) -> None:
    """Refuse settings whose first losses are not the textbook's, up to what their dtype rounds off on a kind of device.

    Raises WrongResult.
    """
    right = next(iter(losses.values()))
    for setting, found in losses.items():
        by_cudnn = kind == "cuda" and setting.dtype == "float32"  # which rounds a convolution's numbers to tf32
        tolerance = TOLERANCE["tf32" if by_cudnn else setting.dtype]
        if not all(isclose(one, other, rel_tol=tolerance) for one, other in zip(found, right, strict=True)):
            raise WrongResult(f"{setting.name} has losses {found}, and the textbook {right}")


def rate(setting: Setting, batch: int) -> float:
    """Images/s of a setting in this process."""
    return stepper(setting, batch).images_per_second()


def multiply(dtype: str, side: int) -> float:
    """The seconds of a matrix product in this process."""
    return _product(dtype, side)()


@cache
def _product(dtype: str, side: int) -> Callable[[], float]:
    return matrix_product(default_device(), getattr(torch, dtype), side)


def row_of(row: Setting, took: dict[str, list[float]], flop: int, side: int) -> dict[str, Any]:
    """What came out for a setting: images/s, share of the matrix rate, and how many times the textbook's images/s."""
    rates, products, textbook = took[row.name], took[row.dtype], took["textbook"]
    return {
        "name": row.name,
        "dtype": row.dtype,
        "images_per_second": median(rates),
        "share": median(flop * one * s / product_flop(side) for one, s in zip(rates, products, strict=True)),
        "times_textbook": median(one / other for one, other in zip(rates, textbook, strict=True)),
    }


def prediction_of(took: dict[str, list[float]], plan: Plan, flop: int) -> dict[str, Any]:
    """What came out for many images: images/s and share of the matrix rate."""
    pairs = list(zip(took["predictions"], took["float32"], strict=True))
    shares = [flop * plan.predicted / s / (product_flop(plan.side) / product) for s, product in pairs]
    rates = [plan.predicted / s for s in took["predictions"]]
    return {"n": plan.predicted, "dtype": "float32", "images_per_second": median(rates), "share": median(shares)}


def _dtypes(rows: list[Setting]) -> list[str]:
    return list(dict.fromkeys(row.dtype for row in rows))


def _process(start: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """A process of its own: how memory is kept holds for a whole one."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=start)
