"""The training loop: a recipe and a data set become a run folder with a trained network."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from shutil import which
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import get_total_norm

from capsnet.baselines import ConvBaseline
from capsnet.build import build_network, learning_rate
from capsnet.data import Data, batches
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.hardware import default_device, environment, fast_bf16, keep_freed_memory
from capsnet.interrupt import deferred_interrupt
from capsnet.logs import Log
from capsnet.models import CapsNet
from capsnet.recipe import Recipe
from capsnet.runs import Run, load_checkpoint, save_checkpoint, save_network
from capsnet.steps import Step

LOG_STEPS = 20


def train(run: Run, data: Data, *, resume: bool = False) -> CapsNet | ConvBaseline:
    """Train the network of a run by its recipe, from the start or from its checkpoint, and return the best one.

    The checkpoint is written after each epoch, and at a first Ctrl-C, whose KeyboardInterrupt comes once the step under
    way is done. A resumed run sees the same batches as one that was never stopped. Without validation images the
    network after the last epoch is the best.

    Raises InputError for a loss that is not finite, with the last good checkpoint left in place; for a checkpoint that
    is missing, damaged or of another network; and where the folder cannot be written to.
    """
    keep_freed_memory()
    device = default_device()
    precision = _precision(run.recipe, device)
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    data = replace(data, train=data.train.to(device), validation=data.validation.to(device))
    training = _Training(run, data, fabric)
    if resume:
        training.restore()
    run.write_json("environment.json", environment(device) | {"precision": precision})
    with Log(run, training.step, training.steps) as log, deferred_interrupt() as interrupted:
        while training.step < training.steps:
            training.epoch(log, interrupted)
    return run.load_network().to(device)


class _Training:
    """A run under way: the network, its optimiser and how far they have come."""

    def __init__(self, run: Run, data: Data, fabric: Fabric) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.data, self.fabric = run, recipe, data, fabric
        network = build_network(recipe, data.image_shape, len(data.classes))
        self.network = network.to(fabric.device)
        compiled = _compiles(recipe, fabric)
        self.compiling = compiled and len(data.train) >= recipe.batch  # until the first step has done it
        self.learn = Step(self.network, recipe, fabric, compiled=compiled)
        self.epoch_steps = math.ceil(len(data.train) / recipe.batch)
        self.steps = recipe.total_steps(self.epoch_steps)
        self.step, self.rate, self.least_errors, self.begun = 0, recipe.rate, math.inf, time.monotonic()
        self.measured: list[Tensor] = []  # since the last line of the log, a step's after the other
        self.measured_since = self.begun

    @property
    def kept(self) -> CapsNet | ConvBaseline:
        """The network that is evaluated and kept."""
        average = self.learn.average
        return self.network if average is None else average.module  # type: ignore[return-value]  # a network's copy

    @property
    def seconds(self) -> float:
        """Time spent on this run, resumed or not."""
        return time.monotonic() - self.begun

    def epoch(self, log: Log, interrupted: Callable[[], bool]) -> None:
        """Train to the end of the epoch that the run stands in or to a Ctrl-C, evaluate at the end, and save."""
        epoch, done = divmod(self.step, self.epoch_steps)
        order = torch.Generator().manual_seed(self.recipe.seed * 2**20 + epoch)
        last = min(self.steps, (epoch + 1) * self.epoch_steps)
        shuffled = batches(self.data.train, self.recipe.batch, shift=self.recipe.shift, generator=order)
        for images, labels in islice(shuffled, done, last - epoch * self.epoch_steps):
            self.take_step(log, images, labels)
            if self.step % LOG_STEPS == 0:
                self.measure(log, epoch + 1)
            if interrupted():
                break
        self.measure(log, epoch + 1)
        if self.step == last:  # though interrupted: a resumed run begins with the next epoch
            self.validate(log, epoch + 1)
        self.save()
        if interrupted():
            raise KeyboardInterrupt

    def take_step(self, log: Log, images: Tensor, labels: Tensor) -> None:
        """Learn from one batch; at the first one it says that it compiles, and how long that took."""
        self.rate = learning_rate(self.recipe, self.step, self.steps, self.epoch_steps)
        begun = time.monotonic()
        if self.compiling:
            log.console.print("compiling the network, which later runs will find compiled", highlight=False)
        self.measured.append(self.learn(images, labels, self.rate))
        if self.compiling:
            log.console.print(f"compiled: the first step took {time.monotonic() - begun:.0f} s", highlight=False)
        self.compiling = False
        self.step += 1

    def measure(self, log: Log, epoch: int) -> None:
        """Read what the steps since the last reading measured: the only point where an epoch waits for the device."""
        if not self.measured:
            return
        weights = list(self.network.parameters())
        norms = torch.stack([get_total_norm(weights), get_total_norm([w.grad for w in weights if w.grad is not None])])
        rows = dict(zip(self.learn.names, torch.stack(self.measured, dim=1).cpu(), strict=True))
        weight_norm, gradient_norm = norms.tolist()
        self.check(rows["loss"], weight_norm)
        seconds = time.monotonic() - self.measured_since
        measured = {name: float(values.mean()) for name, values in rows.items()}  # over the steps
        measured |= {"rate": self.rate, "gradient_norm": gradient_norm}
        measured["images_per_second"] = self.recipe.batch * len(self.measured) / seconds
        log.train(self.step, epoch, self.seconds, measured)
        self.measured, self.measured_since = [], time.monotonic()

    def check(self, latest: Tensor, weight_norm: float) -> None:
        """Raise InputError where one of the latest losses is not finite, or the weights that they led to are not."""
        finite = latest.isfinite()
        if not finite.all():
            step = self.step - len(latest) + int(finite.int().argmin()) + 1
            what = f"the loss at step {step} is not finite"
        elif not math.isfinite(weight_norm):
            what = f"the weights after step {self.step} are not finite"
        else:
            return
        raise InputError(f"{what}: the last good checkpoint stays in {self.run.folder}; try a lower --rate")

    def validate(self, log: Log, epoch: int) -> None:
        """Evaluate the kept network on the validation images, and keep it on disk if none before was better."""
        errors = 0
        if len(self.data.validation):
            with self.fabric.autocast():
                result = evaluate(self.kept, self.data.validation)
            errors = result.errors
            measured = {"n": result.n, "errors": errors, "accuracy": result.accuracy}
            if result.reconstruction is not None:
                measured["reconstruction"] = result.reconstruction
            log.validation(self.step, epoch, self.seconds, measured)
        if errors <= self.least_errors:
            self.least_errors = errors
            save_network(self.run, self.kept)
        self.measured_since = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint."""
        counters = {"step": self.step, "least_errors": self.least_errors, "seconds": self.seconds}
        random = {"random": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["random_cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        save_checkpoint(self.run, self.learn.state_dict() | counters | random)

    def restore(self) -> None:
        """Go back to the state that the checkpoint holds.

        Raises InputError where it is of another network.
        """
        state = load_checkpoint(self.run)
        try:
            self.learn.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{self.run.checkpoint} is of another network: {' '.join(str(error).split())}") from error
        self.step, self.least_errors = state["step"], state["least_errors"]
        self.begun = time.monotonic() - state["seconds"]
        torch.set_rng_state(state["random"])
        if self.fabric.device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], self.fabric.device)


def _precision(recipe: Recipe, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16-mixed" if fast_bf16(device) else "32-true"


def _compiles(recipe: Recipe, fabric: Fabric) -> bool:
    """Whether to use torch.compile: where it pays, on a GPU or with bf16, and there is a compiler for its code."""
    if recipe.compile is not None:
        return recipe.compile
    return (fabric.device.type == "cuda" or fast_bf16(fabric.device)) and which("c++") is not None
