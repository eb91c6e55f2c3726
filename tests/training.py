"""A network and a data set so small that a run of 14 steps takes a fraction of a second, and calls at its steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from capsnet import training
from capsnet.baselines import ConvBaseline
from capsnet.checkpoints import load_checkpoint
from capsnet.data import Data, load_data
from capsnet.models import CapsNet
from capsnet.recipes import LOG_STEPS, Digits, Recipe
from capsnet.runs import Run, load_run, start_run

TINY = Digits(
    conv_channels=8,
    primary_types=2,
    primary_stride=2,
    reconstruction_weight=0.0005,
    shift=1,
    lr=2e-3,
    epochs=2,
    batch_size=32,
    schedule="exponential",
    precision="32-true",
    compile=False,
)
BASELINE = Digits(
    network="small-cnn",
    shift=1,
    lr=2e-3,
    epochs=2,
    schedule="exponential",
    precision="32-true",
    compile=False,
)  # trained as TINY is
LEARNS = replace(TINY, epochs=4, batch_size=8, lr=1e-2, shift=0)  # learns nearly all of its training images
EPOCH = 7  # TINY's, in steps: 200 images in six batches of 32 and one of 8


@cache
def few_digits() -> Data:
    """The bundled digits: 200 to train on, 60 for validation and 60 for the test."""
    data = load_data("digits")
    parts = {"train": 200, "validation": 60, "test": 60}
    return replace(data, **{part: getattr(data, part).select(torch.arange(n)) for part, n in parts.items()})


def train(folder: Path, recipe: Recipe = TINY, data: Data | None = None, **options: Any) -> Run:
    """Train a network of `recipe` into a new run folder."""
    data = data or few_digits()
    run = start_run(folder, recipe, data)
    training.train(run, data, **options)
    return run


def resume(folder: Path, data: Data | None = None, log_steps: int = LOG_STEPS, **longer: int) -> Run:
    """Resume a run to its end, or for as many epochs or steps as `longer` says."""
    run = load_run(folder)
    data = data or few_digits()
    run = run.extended(data, replace(run.recipe, **longer))
    training.train(run, data, resume=True, log_steps=log_steps)
    return run


@contextmanager
def at_step(step: int, act: Callable[[], Any]) -> Iterator[None]:
    """Call `act` at the start of a step of training, counted from 1."""
    learning_rate = training.learning_rate

    def acting(recipe: Recipe, done: int, *lengths: int) -> float:
        if done + 1 == step:
            act()
        return learning_rate(recipe, done, *lengths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "learning_rate", acting)
        yield


def press_ctrl_c() -> None:
    """Send this process the signal of Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def weights(network: CapsNet | ConvBaseline | Run) -> Tensor:
    """All weights of a network, or of a run's best one, in one vector."""
    network = network.load_network() if isinstance(network, Run) else network
    return torch.cat([weight.flatten() for weight in network.state_dict().values()])


def last_weights(run: Run) -> Tensor:
    """All weights in a run's last checkpoint, in one vector."""
    return torch.cat([weight.flatten() for weight in load_checkpoint(run)["network"].values()])
