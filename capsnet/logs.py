"""The log of a run: its measurements in log.jsonl, in TensorBoard and on the terminal.

A line of log.jsonl has a kind, "train" or "validation", the step and epoch after which it was measured, the training
time until then in seconds, and the measured values: for "train" each part of the loss, accuracy, lr, gradient_norm and
images_per_second, for "validation" n, errors, accuracy and reconstruction.
"""

import json
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from capsnet.errors import InputError
from capsnet.files import atomic_write, flush_to_disk
from capsnet.runs import Run

PLAIN_SECONDS = 10.0


class Log:
    """The log of a run from a step on. Records of later steps, which a killed process left, are removed.

    Raises InputError if it cannot be written. If the terminal is closed, training continues without it.
    """

    def __init__(self, run: Run, step: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needed only in the first of several processes

        kept = sorted((record for record in run.records() if record["step"] <= step), key=lambda kept: kept["step"])
        with atomic_write(run.log) as part:
            part.write_text("".join(json.dumps(record) + "\n" for record in kept))
        try:
            self.file = run.log.open("a", buffering=1)
            self.board = SummaryWriter(str(run.folder), purge_step=step + 1)
        except OSError as error:
            raise InputError(f"cannot write the log of {run.folder}: {error}") from error
        self.folder = run.folder
        self.steps, self.printed, self.terminal_closed = steps, 0.0, False
        self.console, self.null = Console(), open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps, completed=step, epoch="1", words="")

    def __enter__(self) -> Self:
        self.show(self.bar.start)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.show(self.bar.stop)
        if self.terminal_closed:  # the line above may have found it closed
            self.bar.stop()
        self.null.close()
        self.board.close()
        self.file.close()
        for path in self.folder.glob("*tfevents*"):
            flush_to_disk(path)

    def say(self, words: str) -> None:
        """Print a line on the terminal, above the progress bar."""
        self.show(lambda: self.console.print(words, highlight=False))

    def show(self, act: Callable[[], object]) -> None:
        """Call `act`, which writes to the terminal, unless the terminal is closed."""
        if self.terminal_closed:
            return
        try:
            act()
        except OSError:
            self.terminal_closed = True
            self.console.file = self.null  # so that the bar can still be stopped

    def sync(self) -> None:
        """Flush the log to disk. To be called before a checkpoint is written, which refers to the log."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.file.name}: {error.strerror}; the last checkpoint is kept") from error

    def train(self, step: int, epoch: int, seconds: float, measured: dict[str, float]) -> None:
        """Log a training step, counted from 1, and advance the progress bar."""
        self._write("train", step, epoch, seconds, measured)
        words = " ".join(f"{name} {value:.3g}" for name, value in measured.items() if name != "images_per_second")
        words += f" · {measured['images_per_second']:,.0f} images/s"
        self.show(lambda: self.bar.update(self.task, completed=step, epoch=str(epoch), words=words))
        if not self.console.is_terminal and time.monotonic() > self.printed + PLAIN_SECONDS:
            left = seconds / step * (self.steps - step)
            line = f"epoch {epoch} step {step}/{self.steps} {words} · {left:.0f} s left"
            self.show(lambda: print(line, flush=True))
            self.printed = time.monotonic()

    def validation(self, step: int, epoch: int, seconds: float, measured: dict[str, float]) -> None:
        """Log an evaluation on the validation images."""
        self._write("validation", step, epoch, seconds, measured)
        errors, n = measured["errors"], measured["n"]
        self.say(
            f"epoch {epoch}: validation accuracy {measured['accuracy']:.2%} ({errors} errors of n = {n:,}), "
            f"{seconds:.0f} s of training"
        )

    def _write(self, kind: str, step: int, epoch: int, seconds: float, measured: dict[str, float]) -> None:
        about = {"kind": kind, "step": step, "epoch": epoch, "seconds": round(seconds, 3)}
        try:
            self.file.write(json.dumps(about | measured) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.file.name}: {error.strerror}; the last checkpoint is kept") from error
        for name, value in measured.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
