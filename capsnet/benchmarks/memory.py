"""How much memory routing takes at most, measured in a process of its own, whose memory has no past."""

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from capsnet.benchmarks.ways import Shape, inputs, step, ways
from capsnet.hardware import default_device, keep_freed_memory


def peak(name: str, shape: Shape) -> int | None:
    """Bytes that a way takes at most, forward and backward, beyond its inputs, its output and their gradients.

    In float32. None where the system does not tell: on a processor only Linux does.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_peak, name, shape).result()


def _peak(name: str, shape: Shape) -> int | None:
    device = default_device()
    if device.type == "cpu" and sys.platform != "linux":
        return None
    keep_freed_memory()
    way = ways(shape, device)[name]
    step(way, inputs(Shape(2, 4, 2, shape.d, shape.e), torch.float32, device))  # what the libraries take for themselves
    arguments = inputs(shape, torch.float32, device)
    with _growth(device) as grown:
        step(way, arguments)
    return grown[0] - sum(t.nbytes for t in arguments)  # as large as what is made: two gradients and the output


@contextmanager
def _growth(device: torch.device) -> Iterator[list[int]]:
    """Bytes that memory grew by at most, in a list, once the block is over."""
    grown: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield grown
        grown.append(torch.cuda.max_memory_allocated(device) - before)
    else:
        before = _resident("VmRSS")
        yield grown
        grown.append(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most so far (VmHWM), which unlike getrusage's is its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
