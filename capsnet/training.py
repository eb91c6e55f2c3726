"""The training loop: trains the network of a run by its recipe, with checkpoints to resume from."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from shutil import which
from typing import cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import get_total_norm

from capsnet.baselines import ConvBaseline
from capsnet.build import build_network, learning_rate
from capsnet.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from capsnet.data import Data, ImageSet, batches, share
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation, evaluate
from capsnet.files import locked, remove_leftovers, write_json
from capsnet.hardware import default_device, environment, fast_bf16, seeded
from capsnet.interrupt import Interrupted, deferred_interrupt
from capsnet.launch import check_batch, local_process_count
from capsnet.logs import Log
from capsnet.models import CapsNet
from capsnet.processes import Precision, everywhere, first, join, process_seed
from capsnet.recipes import LOG_STEPS, SAVE_MINUTES, Recipe
from capsnet.runs import Run, TrainingPart, load_run, save_network
from capsnet.steps import Step

AGREE_STEPS = 20  # between agreements of several processes on GPUs, since each agreement waits for the device

logger = logging.getLogger(__name__)


def train(
    run: Run,
    data: Data,
    *,
    resume: bool = False,
    save_minutes: float = SAVE_MINUTES,
    log_steps: int = LOG_STEPS,
    images_on_device: bool = True,
    cuda_graph: bool = True,
) -> CapsNet | ConvBaseline:
    """Train the network of a run, from the start or from its last checkpoint, and return the best network.

    A checkpoint is written after each epoch, every `save_minutes`, and at the first Ctrl-C, SIGTERM or SIGHUP; then
    Interrupted (a KeyboardInterrupt) is raised after the current step. A resumed run sees the same batches as one that
    was never stopped; without a checkpoint, it starts at the first step. Without validation images, the network after
    the last epoch is the best. The log gets a record every `log_steps` steps. `images_on_device` copies all training
    images to the device, if they fit there; otherwise each batch is copied. `cuda_graph` records a step on a GPU and
    replays it, if recording succeeds. The process's random state is restored at the end.

    Processes that torchrun has started train one network: all of them must call this with the same arguments. Each
    learns from its share of every batch; only the first reads and writes the folder. An InputError is raised in all.

    Raises InputError for data other than the run's; for a folder in which another process trains, or which it has
    replaced; for a loss that is not finite (the last good checkpoint is kept); for checkpoints that are damaged or of
    another network; for more processes than GPUs or than images in a batch; and for a folder that cannot be written.
    """
    if not save_minutes > 0:
        raise InputError(f"checkpoints are more than 0 minutes apart, not {save_minutes:g}")
    if log_steps < 1:
        raise InputError(f"records of the log are at least 1 step apart, not {log_steps}")
    fabric = join(_precision(run.recipe, default_device()))
    check_batch(run.recipe.batch_size, fabric.world_size)
    everywhere(fabric, lambda: run.check_data(data, ("train", "validation")))
    if images_on_device:
        data = replace(data, train=_on_device(data.train, fabric.device))
    own_seed = process_seed(run.recipe.seed, fabric.global_rank)  # for dropout
    with ExitStack() as stack, seeded(own_seed, fabric.device):
        changed = first(fabric, lambda: _enter(run, stack))
        training = _Training(run, data, fabric, save_minutes, log_steps, cuda_graph)
        if resume:
            training.restore()
        if changed:
            first(fabric, lambda: write_json(run.folder / "recipe.json", run.description()))
        training.run_to_the_end()
        return first(fabric, run.load_network).to(fabric.device)


def _enter(run: Run, stack: ExitStack) -> bool:
    """Lock the run's folder and remove leftovers → whether recipe.json has to be written again."""
    stack.enter_context(locked(run.folder))
    recorded = load_run(run.folder)
    if not recorded.is_like(run):
        raise InputError(f"{run.folder} was replaced by another run: name another --run")
    for folder in (run.folder, run.folder / "checkpoints", run.folder / "figures"):
        remove_leftovers(folder)
    return run != recorded


class _Training:
    """The state of a training: the network, its optimizer, and the progress so far.

    Every process has one, and all take the same steps.
    """

    log: Log
    """Exists in the first process only."""

    def __init__(
        self, run: Run, data: Data, fabric: Fabric, save_minutes: float, log_steps: int, cuda_graph: bool
    ) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.data, self.fabric = run, recipe, data, fabric
        self.save_seconds, self.log_steps = 60 * save_minutes, log_steps
        self.agree_steps = 1 if fabric.device.type == "cpu" else AGREE_STEPS
        network = build_network(recipe, data.image_shape, len(data.classes))
        self.network = network.to(fabric.device)
        compiled = _compiles(recipe, fabric)
        self.compiling = compiled and len(data.train) >= recipe.batch_size  # until the first step is done
        self.train_step = Step(self.network, recipe, fabric, compiled=compiled, graph=cuda_graph)
        self.epoch_steps = math.ceil(len(data.train) / recipe.batch_size)
        self.steps = recipe.total_steps(self.epoch_steps)
        self.step, self.lr, self.least_errors, self.start_time = 0, recipe.lr, math.inf, time.monotonic()
        self.measured: list[Tensor] = []  # of each step since the last log record
        self.measured_images = 0  # of these steps
        self.measured_since = self.saved_at = self.start_time

    def run_to_the_end(self) -> None:
        """Train until the last step, and save the best network."""
        with ExitStack() as stack:
            first(self.fabric, lambda: self.open_log(stack))
            self.measured_since = time.monotonic()
            interrupted = stack.enter_context(deferred_interrupt(patient=self.fabric.world_size > 1))
            while self.step < self.steps:
                self.epoch(interrupted)
        if self.least_errors == math.inf:  # the run had ended, but its best network was lost
            first(self.fabric, lambda: save_network(self.run, self.evaluated_network))

    def open_log(self, stack: ExitStack) -> None:
        """Record hardware and versions in environment.json, and open the log until the stack is closed."""
        if self.step < self.steps:
            processes = self.fabric.world_size
            part = TrainingPart(
                from_step=self.step,
                steps=self.steps,
                precision=_precision(self.recipe, self.fabric.device),
                processes=processes,
                nodes=processes // local_process_count(),
                **environment(self.fabric.device),
            )
            parts = [asdict(part) for part in (*self.run.training_parts, part)]
            write_json(self.run.folder / "environment.json", {"parts": parts})
        self.log = stack.enter_context(Log(self.run, self.step, self.steps))

    @property
    def evaluated_network(self) -> CapsNet | ConvBaseline:
        """The network that is validated and saved: the average of the weights, if the recipe has one."""
        average = self.train_step.average
        return self.network if average is None else cast(CapsNet | ConvBaseline, average.module)

    @property
    def seconds(self) -> float:
        """Training time of this run, including the time before it was resumed."""
        return time.monotonic() - self.start_time

    def epoch(self, interrupted: Callable[[], Interrupted | None]) -> None:
        """Train until the end of the current epoch or until a signal, evaluate at the end, and save."""
        epoch, done = divmod(self.step, self.epoch_steps)
        last = min(self.steps, (epoch + 1) * self.epoch_steps)
        for images, labels in islice(self.shuffled(epoch), done, last - epoch * self.epoch_steps):
            self.take_step(images.to(self.fabric.device), labels.to(self.fabric.device))
            interruption, save = None, False
            if self.step % self.agree_steps == 0 or self.fabric.world_size == 1:
                interruption, save = self.agree(interrupted())
            if interruption:
                break
            save = save and self.step < last
            if save or self.step % self.log_steps == 0:
                self.measure(epoch + 1)
            if save:
                self.save()
        self.measure(epoch + 1)
        if self.step == last:  # even if interrupted, since a resumed run starts with the next epoch
            self.validate(epoch + 1)
        self.save()
        if interruption := self.agree(interrupted())[0]:
            raise interruption

    def shuffled(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return this process's shares of an epoch's batches, with the order and shifts that one process would draw."""
        order = torch.Generator().manual_seed(self.recipe.seed * 2**20 + epoch)
        return batches(
            self.data.train,
            self.recipe.batch_size,
            shift=self.recipe.shift,
            generator=order,
            rank=self.fabric.global_rank,
            processes=self.fabric.world_size,
        )

    def agree(self, interruption: Interrupted | None) -> tuple[Interrupted | None, bool]:
        """Return the signal that any process got, which stops all, and whether the first process is due to save."""
        save = time.monotonic() > self.saved_at + self.save_seconds
        if self.fabric.world_size == 1:
            return interruption, save
        wish = [interruption.number if interruption else 0, save and self.fabric.is_global_zero]
        agreed = self.fabric.all_reduce(torch.tensor(wish, device=self.fabric.device), reduce_op="max")
        number, save = cast(Tensor, agreed).tolist()
        return Interrupted(number) if number else None, bool(save)

    def take_step(self, images: Tensor, labels: Tensor) -> None:
        """Learn from one batch; at the first one, log that the network is compiled, and how long that took."""
        self.lr = learning_rate(self.recipe, self.step, self.steps, self.epoch_steps)
        start = time.monotonic()
        compiling = self.compiling and self.fabric.is_global_zero
        if compiling:
            self.log.say("compiling the network; later runs reuse the result")
        done = self.step % self.epoch_steps * self.recipe.batch_size  # images of this epoch
        batch_size = min(self.recipe.batch_size, len(self.data.train) - done)
        self.measured.append(self.train_step(images, labels, self.lr, batch_size))
        self.measured_images += batch_size
        if compiling:
            self.log.say(f"compiled: the first step took {time.monotonic() - start:.0f} s")
        self.compiling = False
        self.step += 1

    def measure(self, epoch: int) -> None:
        """Log the mean measurements since the last record. Only here does an epoch wait for the device."""
        if not self.measured:
            return
        weights = list(self.network.parameters())
        norms = torch.stack([get_total_norm(weights), get_total_norm([w.grad for w in weights if w.grad is not None])])
        steps = torch.stack(self.measured, dim=1)
        if self.fabric.world_size > 1:
            steps = cast(Tensor, self.fabric.all_reduce(steps, reduce_op="mean"))
        rows = dict(zip(self.train_step.names, steps.cpu(), strict=True))
        weight_norm, gradient_norm = norms.tolist()
        self.check_finite(rows["loss"], weight_norm)
        seconds = time.monotonic() - self.measured_since
        measured = {name: float(values.mean()) for name, values in rows.items()}  # over the steps
        measured |= {"lr": self.lr, "gradient_norm": gradient_norm}
        measured["images_per_second"] = self.measured_images / seconds
        first(self.fabric, lambda: self.log.train(self.step, epoch, self.seconds, measured))
        self.measured, self.measured_images, self.measured_since = [], 0, time.monotonic()

    def check_finite(self, latest: Tensor, weight_norm: float) -> None:
        """Raise InputError if one of the latest losses, or the norm of the present weights, is not finite."""
        finite = latest.isfinite()
        if not finite.all():
            step = self.step - len(latest) + int(finite.int().argmin()) + 1
            what = f"the loss at step {step} is not finite"
        elif not math.isfinite(weight_norm):
            what = f"the weights after step {self.step} are not finite"
        else:
            return
        raise InputError(f"{what}: the last good checkpoint is kept in {self.run.folder}; try a lower --lr")

    def validate(self, epoch: int) -> None:
        """Evaluate the network on the validation images, and save it if no earlier one had fewer errors."""
        errors = 0
        if len(self.data.validation):
            results = [result for result in everywhere(self.fabric, self.evaluate_share) if result is not None]
            n, errors = sum(result.n for result in results), sum(result.errors for result in results)
            measured = {"n": n, "errors": errors, "accuracy": 1 - errors / n}
            parts = [result.reconstruction * (result.n / n) for result in results if result.reconstruction is not None]
            if parts:
                measured["reconstruction"] = sum(parts)
            first(self.fabric, lambda: self.log.validation(self.step, epoch, self.seconds, measured))
        if errors <= self.least_errors:
            self.least_errors = errors
            first(self.fabric, lambda: save_network(self.run, self.evaluated_network))
        self.measured_since = time.monotonic()

    def evaluate_share(self) -> Evaluation | None:
        """Evaluate the network on this process's share of the validation images; None if the share is empty.

        If the first of many processes did this alone, it could take longer than an epoch.
        """
        images = self.data.validation
        indices = share(len(images), self.fabric.global_rank, self.fabric.world_size)
        images = ImageSet(images.images[indices], images.labels[indices])
        with self.fabric.autocast():
            return evaluate(self.evaluated_network, images) if len(images) else None

    def save(self) -> None:
        """Write a checkpoint."""
        first(self.fabric, self.write_checkpoint)
        self.saved_at = self.measured_since = time.monotonic()

    def write_checkpoint(self) -> None:
        """Write a checkpoint, from which any number of processes can resume."""
        self.log.sync()
        counters = {"step": self.step, "least_errors": self.least_errors, "seconds": self.seconds}
        random = {"random": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["random_cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        save_checkpoint(self.run, cast(Checkpoint, self.train_step.state_dict() | counters | random))

    def restore(self) -> None:
        """Load the last intact checkpoint, if there is one.

        Raises InputError for a checkpoint of another network or of a longer run.
        """
        state = first(self.fabric, lambda: load_checkpoint(self.run))
        if state is None:
            logger.warning("%s has no checkpoint yet: it begins at the first step", self.run.folder)
            return
        folder = self.run.folder / "checkpoints"
        if state["step"] > self.steps:
            raise InputError(
                f"{folder} has step {state['step']}, but the run ends at {self.steps}: raise --steps or --epochs"
            )
        has_best = first(self.fabric, self.has_best_network)  # changes the random state
        try:
            self.train_step.load_state_dict(dict(state))
            self.restore_random(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder} is of another network: {' '.join(str(error).split())}") from error
        self.step, self.least_errors = state["step"], state["least_errors"]
        self.start_time = time.monotonic() - state["seconds"]
        if self.least_errors < math.inf and not has_best:
            logger.warning("the best network of %s is missing; the next validated network replaces it", self.run.folder)
            self.least_errors = math.inf

    def restore_random(self, state: Checkpoint) -> None:
        """Restore the random state of the first process; seed the others by rank and step."""
        rank, device = self.fabric.global_rank, self.fabric.device
        if rank:
            torch.manual_seed(process_seed(self.recipe.seed, rank, state["step"]))  # on all devices
            return
        torch.set_rng_state(state["random"])
        if device.type == "cuda" and "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"], device)

    def has_best_network(self) -> bool:
        """Whether the run's best network can be loaded."""
        try:
            self.run.load_network()
        except InputError:
            return False
        return True


def _on_device(images: ImageSet, device: torch.device) -> ImageSet:
    """Copy images to the device; return them as they are if they do not fit there."""
    try:
        return images.to(device)
    except torch.OutOfMemoryError:
        logger.warning("the training images do not fit on %s: each batch is copied there", device)
        return images


def _precision(recipe: Recipe, device: torch.device) -> Precision:
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16-mixed" if fast_bf16(device) else "32-true"


def _compiles(recipe: Recipe, fabric: Fabric) -> bool:
    """Whether to use torch.compile: by default on a GPU, if there is a C++ compiler.

    On a CPU it takes 10 to 20 seconds at the start and does not make a step faster.
    """
    if recipe.compile is not None:
        return recipe.compile
    return fabric.device.type == "cuda" and which("c++") is not None
