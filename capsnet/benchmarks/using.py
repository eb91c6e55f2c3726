"""How long it takes to use a network and the command line: many images, one image, the help, a first training step."""

import os
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from capsnet.benchmarks.measuring import seconds
from capsnet.benchmarks.settings import CLASSES, IMAGE_SHAPE
from capsnet.build import build_network
from capsnet.data import ImageSet
from capsnet.data.sources import FILES, data_folder
from capsnet.evaluation import evaluate
from capsnet.hardware import default_device
from capsnet.models import CapsNet
from capsnet.recipes import Paper

HELP = "from capsnet.cli import main; main()"
CACHES = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
FIRST_STEP = """
import os
from capsnet.steps import Step

step = Step.__call__

def end(*batch):
    step(*batch).cpu()  # waits for the device
    os._exit(0)

Step.__call__ = end
"""


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


def first_step_seconds(times: int) -> dict[str, float] | None:
    """The median time from the start of `capsnet train mnist` to the end of its first step, by how caches are.

    "empty": all that is compiled is compiled anew. "filled": an earlier start has left it.
    None where MNIST's files are not at hand: they are not downloaded for this.
    """
    if (folder := _mnist_folder()) is None:
        return None
    took: dict[str, list[float]] = {"empty": [], "filled": []}
    for _ in range(times):
        with tempfile.TemporaryDirectory() as place:
            inside = os.environ | {name: str(Path(place, name)) for name in CACHES} | {"CAPSNET_DATA": str(folder)}
            for kind, of in took.items():
                command = ["train", "mnist", "--steps", "1", "--run", str(Path(place, kind))]
                start = perf_counter()
                subprocess.run(
                    [sys.executable, "-c", FIRST_STEP + HELP, *command], env=inside, check=True, capture_output=True
                )
                of.append(perf_counter() - start)
    return {kind: median(of) for kind, of in took.items()}


def _mnist_folder() -> Path | None:
    folder = data_folder()
    found = {path.name.removesuffix(".gz") for inner in ("", "mnist/") for path in folder.glob(f"{inner}*-ubyte*")}
    return folder if found >= {name.removesuffix(".gz") for name in FILES} else None
