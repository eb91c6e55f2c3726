"""How much memory routing, training and attacks take, each in a process of its own, whose memory has no past."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from capsnet.analysis.attacks.pgd import FullGradient, margin
from capsnet.benchmarks.settings import CLASSES, IMAGE_SHAPE, Setting, Stepper
from capsnet.benchmarks.ways import Shape, inputs, step, ways
from capsnet.build import build_network
from capsnet.hardware import default_device, keep_freed_memory
from capsnet.models import CapsNet
from capsnet.recipes import Paper

STEPS = 5  # until one takes no more memory: the first makes Adam's state, and on a GPU the fourth is recorded


def peak(name: str, shape: Shape) -> int | None:
    """Bytes that a way takes at most, forward and backward, beyond its inputs, its output and their gradients.

    In float32. None where the system does not tell: on a processor only Linux does.
    """
    return _elsewhere(_routing_peak, name, shape)


def training_peak(setting: Setting, batch: int) -> int | None:
    """Bytes that training steps take at most: the network, its gradients, Adam's state and what is made on the way.

    None where the system does not tell.
    """
    return _elsewhere(_training_peak, setting, batch)


def attack_peak(n: int) -> int | None:
    """Bytes that the gradient of an attack's loss for n images takes at most, the frozen network included.

    None where the system does not tell.
    """
    return _elsewhere(_attack_peak, n)


def _elsewhere(function: Callable[..., int], *arguments: Any) -> int | None:
    """What a function returns in a new process, or None where memory cannot be measured."""
    if default_device().type == "cpu" and sys.platform != "linux":
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _training_peak(setting: Setting, batch: int) -> int:
    device = default_device()
    if setting.keeps_memory:
        keep_freed_memory()
    with _growth(device) as grown:
        taken = Stepper(setting, batch)
        for _ in range(STEPS):
            taken.step()
    return grown[0]


def _attack_peak(n: int) -> int:
    device = default_device()
    keep_freed_memory()
    images, labels = torch.rand(n, *IMAGE_SHAPE, device=device), torch.arange(n, device=device) % CLASSES
    with _growth(device) as grown:
        network = build_network(Paper(), IMAGE_SHAPE, CLASSES)
        assert isinstance(network, CapsNet)
        attacked = FullGradient(network.to(device))
        for _ in range(2):
            pixels = images.clone().requires_grad_()
            torch.autograd.grad(margin(attacked(pixels), labels).sum(), pixels)
    return grown[0]


def _routing_peak(name: str, shape: Shape) -> int:
    device = default_device()
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
