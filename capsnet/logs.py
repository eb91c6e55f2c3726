"""What a run measures, written to log.jsonl, to TensorBoard and to the terminal.

A line of log.jsonl has a kind, "train" or "validation", the step and epoch after which it was measured, the seconds of
training up to it, and the measurements: every loss part, accuracy, rate, gradient_norm and images_per_second, or n,
errors, accuracy and reconstruction.
"""

import json
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from capsnet.runs import Run

PLAIN_SECONDS = 10.0


class Log:
    """The log of a run, from a step on; lines of a later step, left by a run that was killed, are dropped."""

    def __init__(self, run: Run, step: int, steps: int) -> None:
        kept = [record for kind in ("train", "validation") for record in run.records(kind) if record["step"] <= step]
        kept.sort(key=lambda record: record["step"])
        run.log.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self.file = run.log.open("a", buffering=1)
        self.board = SummaryWriter(str(run.folder), purge_step=step + 1)
        self.steps, self.printed = steps, 0.0
        self.console = Console()
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
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()
        self.board.close()
        self.file.close()

    def train(self, step: int, epoch: int, seconds: float, measured: dict[str, float]) -> None:
        """Write down a training step, counted from 1; the bar moves to it."""
        self._write("train", step, epoch, seconds, measured)
        words = " ".join(f"{name} {value:.3g}" for name, value in measured.items() if name != "images_per_second")
        words += f" · {measured['images_per_second']:,.0f} images/s"
        self.bar.update(self.task, completed=step, epoch=str(epoch), words=words)
        if not self.console.is_terminal and time.monotonic() > self.printed + PLAIN_SECONDS:
            left = seconds / step * (self.steps - step)
            print(f"epoch {epoch} step {step}/{self.steps} {words} · {left:.0f} s left", flush=True)
            self.printed = time.monotonic()

    def validation(self, step: int, epoch: int, seconds: float, measured: dict[str, float]) -> None:
        """Write down an evaluation on the validation images."""
        self._write("validation", step, epoch, seconds, measured)
        errors, n = measured["errors"], measured["n"]
        self.console.print(
            f"epoch {epoch}: validation accuracy {measured['accuracy']:.2%} ({errors} errors of n = {n:,}), "
            f"{seconds:.0f} s of training",
            highlight=False,
        )

    def _write(self, kind: str, step: int, epoch: int, seconds: float, measured: dict[str, float]) -> None:
        about = {"kind": kind, "step": step, "epoch": epoch, "seconds": round(seconds, 3)}
        self.file.write(json.dumps(about | measured) + "\n")
        for name, value in measured.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
