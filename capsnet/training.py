"""The training loop: a recipe and a data set become a run folder with a trained network."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from shutil import which
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import get_total_norm

from capsnet.baselines import ConvBaseline
from capsnet.build import build_network, learning_rate
from capsnet.checkpoints import Checkpoint, checkpoint_paths, load_checkpoint, save_checkpoint
from capsnet.data import Data, ImageSet, batches
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.files import locked, remove_leftovers
from capsnet.hardware import default_device, environment, fast_bf16, seeded
from capsnet.interrupt import Interrupted, deferred_interrupt
from capsnet.logs import Log
from capsnet.models import CapsNet
from capsnet.recipe import Recipe
from capsnet.runs import Run, TrainingPart, load_run, save_network
from capsnet.steps import Step

LOG_STEPS = 20
SAVE_MINUTES = 5.0

logger = logging.getLogger(__name__)


def train(
    run: Run,
    data: Data,
    *,
    resume: bool = False,
    save_minutes: float = SAVE_MINUTES,
    images_on_device: bool = True,
    cuda_graph: bool = True,
) -> CapsNet | ConvBaseline:
    """Train the network of a run by its recipe, from the start or from its last checkpoint, and return the best one.

    A checkpoint is written after each epoch, every `save_minutes`, and at a first Ctrl-C, SIGTERM or SIGHUP, whose
    Interrupted (a KeyboardInterrupt) comes once the step under way is done. A resumed run sees the same batches as one
    that was never stopped; without a checkpoint it begins at the first step. Without validation images the network
    after the last epoch is the best. `images_on_device` copies all training images to the device, if they fit there;
    otherwise each batch is copied. `cuda_graph` records a step on a GPU once and replays it, if it can be recorded. The
    process's random state is left as it was.

    Raises InputError for data other than the run's; for a folder that another process trains in or has replaced; for a
    loss that is not finite, with the last good checkpoint left in place; for checkpoints that are damaged or of another
    network; and where the folder cannot be written to.
    """
    if not save_minutes > 0:
        raise InputError(f"checkpoints are more than 0 minutes apart, not {save_minutes:g}")
    run.check_data(data, ("train", "validation"))
    device = default_device()
    precision = _precision(run.recipe, device)
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    if images_on_device:
        data = replace(data, train=_on_device(data.train, device))
    with locked(run.folder), seeded(run.recipe.seed, device):  # of dropout
        kept = load_run(run.folder)
        if not kept.is_like(run):
            raise InputError(f"{run.folder} has become another run since this one was started: name another --run")
        for folder in (run.folder, run.folder / "checkpoints", run.folder / "figures"):
            remove_leftovers(folder)
        training = _Training(run, data, fabric, save_minutes, cuda_graph)
        if resume:
            training.restore()
        if run != kept:  # it is to be longer, or its data have moved
            run.write_json("recipe.json", run.about())
        training.run_to_the_end(environment(device) | {"precision": precision})
        return run.load_network().to(device)


class _Training:
    """A run under way: the network, its optimiser and how far they have come."""

    def __init__(self, run: Run, data: Data, fabric: Fabric, save_minutes: float, cuda_graph: bool) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.data, self.fabric = run, recipe, data, fabric
        self.save_seconds = 60 * save_minutes
        network = build_network(recipe, data.image_shape, len(data.classes))
        self.network = network.to(fabric.device)
        compiled = _compiles(recipe, fabric)
        self.compiling = compiled and len(data.train) >= recipe.batch  # until the first step has done it
        self.learn = Step(self.network, recipe, fabric, compiled=compiled, graph=cuda_graph)
        self.epoch_steps = math.ceil(len(data.train) / recipe.batch)
        self.steps = recipe.total_steps(self.epoch_steps)
        self.step, self.rate, self.least_errors, self.begun = 0, recipe.rate, math.inf, time.monotonic()
        self.measured: list[Tensor] = []  # since the last line of the log, a step's after the other
        self.measured_since = self.saved_at = self.begun

    def run_to_the_end(self, environment: dict[str, Any]) -> None:
        """Train until the last step, and leave a network to load."""
        if self.step < self.steps:
            part = TrainingPart(from_step=self.step, steps=self.steps, **environment)
            parts = [asdict(part) for part in (*self.run.training_parts, part)]
            self.run.write_json("environment.json", {"parts": parts})
        with Log(self.run, self.step, self.steps) as log, deferred_interrupt() as interrupted:
            while self.step < self.steps:
                self.epoch(log, interrupted)
        if self.least_errors == math.inf:  # the run had ended, but its network was lost
            save_network(self.run, self.kept)

    @property
    def kept(self) -> CapsNet | ConvBaseline:
        """The network that is evaluated and kept."""
        average = self.learn.average
        return self.network if average is None else average.module  # type: ignore[return-value]  # a network's copy

    @property
    def seconds(self) -> float:
        """Time spent on this run, resumed or not."""
        return time.monotonic() - self.begun

    def epoch(self, log: Log, interrupted: Callable[[], Interrupted | None]) -> None:
        """Train to the end of the epoch that the run stands in or to a signal, evaluate at the end, and save."""
        epoch, done = divmod(self.step, self.epoch_steps)
        order = torch.Generator().manual_seed(self.recipe.seed * 2**20 + epoch)
        last = min(self.steps, (epoch + 1) * self.epoch_steps)
        shuffled = batches(self.data.train, self.recipe.batch, shift=self.recipe.shift, generator=order)
        for images, labels in islice(shuffled, done, last - epoch * self.epoch_steps):
            self.take_step(log, images.to(self.fabric.device), labels.to(self.fabric.device))
            if interrupted():
                break
            save = time.monotonic() > self.saved_at + self.save_seconds and self.step < last
            if save or self.step % LOG_STEPS == 0:
                self.measure(log, epoch + 1)
            if save:
                self.save(log)
        self.measure(log, epoch + 1)
        if self.step == last:  # though interrupted: a resumed run begins with the next epoch
            self.validate(log, epoch + 1)
        self.save(log)
        if interruption := interrupted():
            raise interruption

    def take_step(self, log: Log, images: Tensor, labels: Tensor) -> None:
        """Learn from one batch; at the first one it says that it compiles, and how long that took."""
        self.rate = learning_rate(self.recipe, self.step, self.steps, self.epoch_steps)
        begun = time.monotonic()
        if self.compiling:
            log.say("compiling the network, which later runs will find compiled")
        self.measured.append(self.learn(images, labels, self.rate))
        if self.compiling:
            log.say(f"compiled: the first step took {time.monotonic() - begun:.0f} s")
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

    def save(self, log: Log) -> None:
        """Write a checkpoint; the lines of the log up to it are on the disk before."""
        log.sync()
        counters = {"step": self.step, "least_errors": self.least_errors, "seconds": self.seconds}
        random = {"random": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["random_cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        save_checkpoint(self.run, cast(Checkpoint, self.learn.state_dict() | counters | random))
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Go back to the state that the last intact checkpoint holds, if there is one.

        Raises InputError where it is of another network or of a longer run.
        """
        state = load_checkpoint(self.run)
        if state is None:
            logger.warning("%s has no checkpoint yet: it begins at the first step", self.run.folder)
            return
        path = checkpoint_paths(self.run)[0].parent
        if state["step"] > self.steps:
            raise InputError(
                f"{path} stands at step {state['step']}, beyond the {self.steps} steps asked for: ask for more"
            )
        try:
            kept = self.has_kept_network()  # before the random state, as a network that is built draws weights
            self.learn.load_state_dict(dict(state))
            torch.set_rng_state(state["random"])
            if self.fabric.device.type == "cuda" and "random_cuda" in state:
                torch.cuda.set_rng_state(state["random_cuda"], self.fabric.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is of another network: {' '.join(str(error).split())}") from error
        self.step, self.least_errors = state["step"], state["least_errors"]
        self.begun = time.monotonic() - state["seconds"]
        if self.least_errors < math.inf and not kept:
            logger.warning("the best network of %s is lost: the next one is kept in its place", self.run.folder)
            self.least_errors = math.inf

    def has_kept_network(self) -> bool:
        """Whether the run's best network can be loaded."""
        try:
            self.run.load_network()
        except InputError:
            return False
        return True


def _on_device(images: ImageSet, device: torch.device) -> ImageSet:
    """The images on the device, or where they are if there is no room for them."""
    try:
        return images.to(device)
    except torch.OutOfMemoryError:
        logger.warning("the training images do not fit on %s: each batch is copied there", device)
        return images


def _precision(recipe: Recipe, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16-mixed" if fast_bf16(device) else "32-true"


def _compiles(recipe: Recipe, fabric: Fabric) -> bool:
    """Whether to use torch.compile: by default on a GPU, if there is a compiler for its code.

    On a CPU it costs 10 to 20 seconds at the start and makes a step no faster.
    """
    if recipe.compile is not None:
        return recipe.compile
    return fabric.device.type == "cuda" and which("c++") is not None
