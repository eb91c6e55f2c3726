"""How long a trained network takes to be used: ten thousand images, one image, and the command line's first word."""

import subprocess
import sys
from functools import cache, partial
from statistics import median
from time import perf_counter

import torch

from capsnet.benchmarks.measuring import seconds
from capsnet.benchmarks.settings import CLASSES, IMAGE_SHAPE
from capsnet.build import build_network
from capsnet.data import ImageSet
from capsnet.evaluation import answer, evaluate
from capsnet.hardware import default_device
from capsnet.models import CapsNet
from capsnet.recipes import Paper

HELP = "from capsnet.cli import main; main()"


@cache
def _network() -> CapsNet:
    network = build_network(Paper(), IMAGE_SHAPE, CLASSES).to(default_device()).eval()
    assert isinstance(network, CapsNet)
    return network


def prediction_seconds(n: int) -> float:
    """The time to evaluate a set of n images as `capsnet evaluate` does, from bytes to answers and drawings."""
    make = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, *IMAGE_SHAPE), dtype=torch.uint8, generator=make)
    labels = torch.randint(CLASSES, (n,), generator=make)
    network, device = _network(), default_device()
    return seconds(lambda: evaluate(network, ImageSet(images, labels)), device)


def one_image_seconds(times: int) -> float:
    """The median time of the answer to one image by a network that is loaded, as `capsnet predict` asks for it."""
    device = default_device()
    image, network = torch.rand(1, *IMAGE_SHAPE, device=device), _network()
    ask = partial(answer, network, image)
    seconds(ask, device)  # the first call makes what later ones find ready
    return median(seconds(ask, device) for _ in range(times))


def help_seconds(times: int) -> float:
    """The median time of `capsnet --help`, each in a process of its own."""
    took = []
    for _ in range(times + 1):
        start = perf_counter()
        subprocess.run([sys.executable, "-c", HELP, "--help"], check=True, capture_output=True)
        took.append(perf_counter() - start)
    return median(took[1:])  # the first one may have to compile Python's files
