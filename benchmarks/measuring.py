"""Timers, the machine's limits, peak memory and wrong results: what all benchmarks share."""

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from capsnet.hardware import default_device, fast_bf16

SIDE = 4096  # of the square matrices whose product gives the GEMM peak


class WrongResult(Exception):
    """What was to be timed gives another result than naive PyTorch: no time is reported for it."""


class Limits(NamedTuple):
    """What the machine reaches in the same run, in one dtype."""

    flops: float  # FLOP/s of a matrix product
    bandwidth: float  # bytes/s of a copy, read and written


def machine_kind(device: torch.device) -> str:
    """Return the kind of machine that results are filed under: "cpu-bf16", "cpu-float32" or the accelerator's type."""
    if device.type != "cpu":
        return device.type
    return "cpu-bf16" if fast_bf16(device) else "cpu-float32"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")


def wait(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the time of a call, until the device has finished it."""
    wait(device)
    start = perf_counter()
    call()
    wait(device)
    return perf_counter() - start


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Make every call once in each round, so that other load affects all alike, and return their results by name.

    One call of each comes first and does not count: it compiles and allocates what later calls reuse.
    """
    for call in calls.values():
        call()
    results: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            results[name].append(call())
    return results


def median_ratio(values: list[float], others: list[float]) -> float:
    """Return the median over the rounds of `values` divided by `others`."""
    return median(value / other for value, other in zip(values, others, strict=True))


def gemm_flop(side: int = SIDE) -> int:
    """Return the FLOP of a product of two square matrices."""
    return 2 * side**3


def gemm(device: torch.device, dtype: torch.dtype, side: int = SIDE) -> Callable[[], float]:
    """Return a function that multiplies two square matrices and returns the seconds it took."""
    make = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, side, side, device=device, generator=make).to(dtype)
    out = torch.empty_like(left)
    return lambda: seconds(lambda: torch.mm(left, right, out=out), device)


def measure_limits(device: torch.device, dtype: torch.dtype, side: int = SIDE) -> Limits:
    """Measure the GEMM peak and the bandwidth of a copy, each the median of five."""
    source = torch.ones(side, side, 4, device=device)
    target = torch.empty_like(source)
    calls = {"gemm": gemm(device, dtype, side), "copy": lambda: seconds(lambda: target.copy_(source), device)}
    times = {name: median(found) for name, found in in_turns(calls, 5).items()}
    return Limits(gemm_flop(side) / times["gemm"], 2 * source.nbytes / times["copy"])


def peak_memory(function: Callable[..., int], *arguments: Any) -> int | None:
    """Return the bytes that a function reports from a new process, whose peak is not that of earlier work.

    The function has to be picklable. None if the system does not report memory: on a CPU only Linux does.
    """
    if default_device().type == "cpu" and sys.platform != "linux":
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


@contextmanager
def memory_growth(device: torch.device) -> Iterator[list[int]]:
    """Append the largest growth of memory within the block, in bytes, to the list that is given, at its end."""
    growth: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield growth
        growth.append(torch.cuda.max_memory_allocated(device) - before)
    else:
        before = _resident("VmRSS")
        yield growth
        growth.append(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    """Return this process's resident bytes: now (VmRSS), or its own peak (VmHWM), unlike getrusage's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
