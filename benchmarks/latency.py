"""Times prediction of many images and of one, `capsnet --help`, and the first step of `capsnet train`."""

import os
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from capsnet.build import build_network
from capsnet.data import ImageSet
from capsnet.data.sources import FILES, data_folder
from capsnet.evaluation import evaluate, predict_batch
from capsnet.hardware import default_device
from capsnet.models import CapsNet
from capsnet.recipes import Paper
from measuring import seconds
from variants import CLASSES, IMAGE_SHAPE

COMMAND = "from capsnet.cli import main; main()"
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
    """Return the time to evaluate n images as `capsnet evaluate` does, from bytes to predictions."""
    make = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, *IMAGE_SHAPE), dtype=torch.uint8, generator=make)
    labels = torch.randint(CLASSES, (n,), generator=make)
    network, device = _network(), default_device()
    return seconds(lambda: evaluate(network, ImageSet(images, labels)), device)


def one_image_seconds(times: int) -> float:
    """Return the median time to predict one image with a loaded network, as `capsnet predict` does."""
    device = default_device()
    image, network = torch.rand(1, *IMAGE_SHAPE, device=device), _network()
    predict = partial(predict_batch, network, image)
    seconds(predict, device)  # the first call allocates what later ones reuse
    return median(seconds(predict, device) for _ in range(times))


def help_seconds(times: int) -> float:
    """Return the median time of `capsnet --help`, each in a new process."""
    took = []
    for _ in range(times + 1):
        start = perf_counter()
        subprocess.run([sys.executable, "-c", COMMAND, "--help"], check=True, capture_output=True)
        took.append(perf_counter() - start)
    return median(took[1:])  # the first one may have to compile Python's files


def first_step_seconds(times: int) -> dict[str, float] | None:
    """Return the median time from the start of `capsnet train mnist` to the end of its first step, by its caches.

    With "empty" caches everything is compiled; with "filled" ones an earlier start has left it. None if MNIST's
    files are not there: they are not downloaded for this.
    """
    if (folder := _mnist_folder()) is None:
        return None
    took: dict[str, list[float]] = {"empty": [], "filled": []}
    for _ in range(times):
        with tempfile.TemporaryDirectory() as place:
            environment = os.environ | {name: str(Path(place, name)) for name in CACHES}
            environment["CAPSNET_DATA"] = str(folder)
            for caches, of in took.items():
                command = ["train", "mnist", "--steps", "1", "--run", str(Path(place, caches))]
                program = [sys.executable, "-c", FIRST_STEP + COMMAND, *command]
                start = perf_counter()
                subprocess.run(program, env=environment, check=True, capture_output=True)
                of.append(perf_counter() - start)
    return {caches: median(of) for caches, of in took.items()}


def _mnist_folder() -> Path | None:
    folder = data_folder()
    found = {path.name.removesuffix(".gz") for inner in ("", "mnist/") for path in folder.glob(f"{inner}*-ubyte*")}
    return folder if found >= {name.removesuffix(".gz") for name in FILES} else None
