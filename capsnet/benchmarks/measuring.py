"""What all measurements share: a clock that waits for the device, turns, the machine's limits, and wrong results."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from capsnet.hardware import fast_bf16

SIDE = 4096  # of the square matrices whose product sets the rate


class WrongResult(Exception):
    """What was to be timed gives another result than the textbook: it has no time."""


class Limits(NamedTuple):
    """What the machine reaches in the same run, in one dtype."""

    flops: float  # FLOP/s of a matrix product
    bandwidth: float  # bytes/s of a copy, read and written


def machine_kind(device: torch.device) -> str:
    """What results of this kind of machine are filed under: "cpu-bf16", "cpu-float32" or the accelerator's type."""
    if device.type != "cpu":
        return device.type
    return "cpu-bf16" if fast_bf16(device) else "cpu-float32"


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time that a call takes, to its end on the device."""
    wait(device)
    start = perf_counter()
    call()
    wait(device)
    return perf_counter() - start


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each call returns in every round; all have their turn in each, so that others' load falls on all alike."""
    for call in calls.values():
        call()  # the first call makes what later ones find ready
    results: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            results[name].append(call())
    return results


def ratio(times: list[float], others: list[float]) -> float:
    """How many times `others` take what `times` take: the median over the rounds."""
    return median(other / time for time, other in zip(times, others, strict=True))


def product_flop(side: int = SIDE) -> int:
    """FLOP of a product of two square matrices."""
    return 2 * side**3


def matrix_product(device: torch.device, dtype: torch.dtype, side: int = SIDE) -> Callable[[], float]:
    """A call that multiplies two square matrices and returns the seconds that it took."""
    make = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, side, side, device=device, generator=make).to(dtype)
    out = torch.empty_like(left)
    return lambda: seconds(lambda: torch.mm(left, right, out=out), device)


def measure_limits(device: torch.device, dtype: torch.dtype, side: int = SIDE) -> Limits:
    """The rates of a matrix product and of a copy, each the median of five."""
    multiply = matrix_product(device, dtype, side)
    source = torch.ones(side, side, 4, device=device)
    target = torch.empty_like(source)
    calls = {"product": multiply, "copy": lambda: seconds(lambda: target.copy_(source), device)}
    took = {name: median(times) for name, times in in_turns(calls, 5).items()}
    return Limits(product_flop(side) / took["product"], 2 * source.nbytes / took["copy"])
