"""Times training steps from the textbook's to ours and the use of what was trained, and measures their memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from math import isclose
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from capsnet.benchmarks.measuring import WrongResult, in_turns, machine_kind, matrix_product, product_flop
from capsnet.benchmarks.memory import attack_peak, training_peak
from capsnet.benchmarks.settings import (
    IMAGE_SHAPE,
    Setting,
    default_setting,
    eager,
    first_losses,
    routing_seconds,
    settings,
    step_seconds,
    stepper,
)
from capsnet.benchmarks.textbook import Textbook
from capsnet.benchmarks.using import first_step_seconds, help_seconds, one_image_seconds, prediction_seconds
from capsnet.hardware import default_device, environment, fast_bf16, keep_freed_memory

TOLERANCE = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 2e-2}  # of a loss, relative


@dataclass(frozen=True)
class Plan:
    """How much is measured, and in how many rounds."""

    batch: int
    rounds: int
    predicted: int
    times: int  # that one image is asked for, and the command line for help
    side: int  # of the matrices that set the rate
    attacked: int  # images in a step of an attack
    starts: int  # of `capsnet train`, with empty caches and with filled ones


WHOLE = Plan(batch=128, rounds=9, predicted=10_000, times=30, side=4096, attacked=100, starts=3)
QUICK = Plan(batch=2, rounds=1, predicted=20, times=1, side=512, attacked=2, starts=1)
Call = Callable[..., Any]
Ask = Callable[..., Any]  # a setting or None, a function and its arguments → its result in a process that suits them


def measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """Measure steps, the use of the network, memory, and how soon training begins: what is known so far, after each.

    Raises WrongResult where a setting has other losses than the textbook.
    """
    device = default_device()
    rows = settings(device)
    results: dict[str, Any] = {"environment": environment(device), "rounds": plan.rounds, "batch": plan.batch}
    results["kind"] = machine_kind(device)
    results["flop"] = flop = {"step": flop_of(True), "prediction": flop_of(False)}
    with _process() as plain, _process(keep_freed_memory if device.type == "cpu" else None) as kept:

        def ask(setting: Setting | None, function: Call, *arguments: Any) -> Any:
            process = plain if setting is not None and device.type == "cpu" and not setting.keeps_memory else kept
            return process.submit(function, *arguments).result()

        results["losses"] = {row.name: ask(row, first_losses, row, plan.batch) for row in rows}
        check({row: results["losses"][row.name] for row in rows}, device.type)
        yield (results := results | steps_of(ask, rows, plan, flop["step"]))
        yield (results := results | use_of(ask, plan, flop["prediction"]))
    ours = default_setting(rows)
    results["memory"] = {
        "textbook": training_peak(rows[0], plan.batch),
        "ours": training_peak(ours, plan.batch),
        "attack": attack_peak(plan.attacked),
        "attacked": plan.attacked,
    }
    yield results
    results["help_seconds"] = help_seconds(plan.times)
    results["first_step"] = first_step_seconds(plan.starts)
    yield results


def steps_of(ask: Ask, rows: list[Setting], plan: Plan, flop: int) -> dict[str, Any]:
    """Matrix products, the settings' steps, and routing's part of a step, all in the same rounds."""
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    calls: dict[str, Call] = {dtype: partial(ask, None, multiply, dtype, plan.side) for dtype in dtypes}
    calls |= {row.name: partial(ask, row, rate, row, plan.batch) for row in rows}
    watched = routed_settings(default_setting(rows))
    for setting in watched:
        calls[f"{setting.name}, routing"] = partial(ask, setting, routing_seconds, setting, plan.batch)
        calls[f"{setting.name}, step"] = partial(ask, setting, step_seconds, setting, plan.batch)
    took = in_turns(calls, plan.rounds)
    return {
        "matrix_flops": {dtype: product_flop(plan.side) / median(took[dtype]) for dtype in dtypes},
        "rows": [row_of(row, took, flop, plan.side) for row in rows],
        "routing": [share_of(setting, took) for setting in watched],
    }


def routed_settings(setting: Setting) -> list[Setting]:
    """The setting one operation after the other, in float32 and in bf16 where that is fast, by the gradient's reach."""
    dtypes = ("float32", *(["bfloat16"] if fast_bf16(default_device()) else []))
    return [
        replace(eager(setting), name=f"{dtype}, {gradient}", dtype=dtype, gradient=gradient)
        for dtype in dtypes
        for gradient in ("all", "last")
    ]


def share_of(setting: Setting, took: dict[str, list[float]]) -> dict[str, Any]:
    """What came out for routing's part of a step."""
    routing, step = took[f"{setting.name}, routing"], took[f"{setting.name}, step"]
    share = median(part / whole for part, whole in zip(routing, step, strict=True))
    about = {"dtype": setting.dtype, "gradient": setting.gradient}
    return about | {"ms": 1e3 * median(routing), "step_ms": 1e3 * median(step), "share": share}


def use_of(ask: Ask, plan: Plan, flop: int) -> dict[str, Any]:
    """Prediction of many images and of one, in float32 as `capsnet predict` does."""
    calls = {
        "float32": partial(ask, None, multiply, "float32", plan.side),
        "predictions": partial(ask, None, prediction_seconds, plan.predicted),
    }
    took = in_turns(calls, min(3, plan.rounds))
    return {
        "prediction": prediction_of(took, plan, flop),
        "one_image_ms": 1e3 * ask(None, one_image_seconds, plan.times),
    }


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
        "default": not row.optional,
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


def _process(start: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """A process of its own: how memory is kept holds for a whole one."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=start)
