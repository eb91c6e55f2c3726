"""What the tests of pictures share: small networks, images, runs with a log, and a look at what is drawn."""

import json
from contextlib import contextmanager

import pytest
import torch
from matplotlib.figure import Figure

from capsnet.data import Data, ImageSet
from capsnet.models import CapsNet
from capsnet.recipes import Paper
from capsnet.runs import Run

CLASSES = ("cat", "dog", "owl")


def train_record(step, epoch, **changes):
    measured = {"loss": 0.5 / step, "margin": 0.4 / step, "reconstruction": 20 / step, "accuracy": 1 - 0.5 / step}
    rates = {"lr": 1e-3 / step, "gradient_norm": 1.0, "images_per_second": 100.0}
    return {"kind": "train", "step": step, "epoch": epoch, "seconds": 61.0 + step} | measured | rates | changes


def validation_record(step, epoch, errors):
    measured = {"n": 50, "errors": errors, "accuracy": 1 - errors / 50, "reconstruction": 18.0}
    return {"kind": "validation", "step": step, "epoch": epoch, "seconds": 61.0 + step} | measured


TRAINING = [train_record(step, (step + 9) // 10) for step in (5, 10, 15, 20, 25, 30)]
VALIDATION = [validation_record(10, 1, 9), validation_record(20, 2, 4), validation_record(30, 3, 4)]


@pytest.fixture
def network():
    """An untrained network whose weights are so large that its capsules draw different pictures."""
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
    return network


@pytest.fixture
def images():
    """Twelve images of noise, whose labels an untrained network gets partly wrong."""
    return ImageSet(torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 3)


@pytest.fixture
def data(images):
    return Data("noise", CLASSES, images, images, images)


@pytest.fixture
def make_run(tmp_path, data):
    """A run folder with a log of these records."""

    def make_run(records=(*TRAINING, *VALIDATION), recipe=None, classes=CLASSES, name="noise"):
        run = Run(tmp_path, recipe or Paper(), name, classes, (1, 8, 8), data.fingerprint())
        run.log.write_text("".join(json.dumps(record) + "\n" for record in records))
        return run

    return make_run


@pytest.fixture
def pages(monkeypatch):
    """The matplotlib figures that a module draws, which are not saved: that takes the most time."""

    def watch(module):
        drawn = []

        @contextmanager
        def page(path, width, height, *, layout=None):
            drawn.append(Figure((width, height), layout=layout))
            yield drawn[-1]

        monkeypatch.setattr(module, "page", page)
        return drawn

    return watch
