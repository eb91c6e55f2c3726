"""Trainings in child processes, which can be killed at any time, and the checks of their folders.

A parent that has imported everything forks the children, each of which runs the command line of `capsnet train`. The
parent itself computes nothing, as a process whose libraries have started threads cannot be forked safely.
"""

import hashlib
import importlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from capsnet import cli
from capsnet.analysis import report
from capsnet.checkpoints import load_checkpoint
from capsnet.data import load_data
from capsnet.detector import load_detector
from capsnet.errors import InputError
from capsnet.runs import load_run

FLAGS = (
    "--recipe digits --epochs 2 --conv-channels 8 --primary-types 2 --decoder conv --shift 1 --validation 60 "
    "--precision 32-true --no-compile"
)
STEPS = 14  # two epochs of 200 images in batches of 32
LIMIT = 300  # seconds for a child on a busy machine
LATE = (  # modules that are imported when they are needed; otherwise each child would import them
    *("capsnet.analysis.report", "capsnet.training", "capsnet.cli.run", "capsnet.cli.train", "capsnet.cli.analysis"),
    *("jinja2", "matplotlib.backends.backend_agg", "matplotlib.figure"),
)


@dataclass
class Ended:
    """How a child ended."""

    status: int
    """The exit status, or the negative number of the signal that killed it."""
    said: str
    seconds: float


@dataclass
class Child:
    """A process that was forked, and the file with its output."""

    number: int
    said: Path
    begun: float = field(default_factory=time.monotonic)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the child."""
        os.kill(self.number, number)

    def has_ended(self) -> bool:
        """Whether the child has ended; it still has to be waited for."""
        return os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, limit: float = LIMIT) -> Ended:
        """Wait for the end; after `limit` seconds, kill the child."""
        while not self.has_ended():
            if time.monotonic() > self.begun + limit:
                self.kill()
            time.sleep(0.005)
        _, status = os.waitpid(self.number, 0)
        said = self.said.read_text(errors="replace")
        self.said.unlink()
        return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - self.begun)


def fork(act: Callable[[], object]) -> Child:
    """Call `act` in a child, which exits with the status that Python would exit with."""
    number, name = tempfile.mkstemp(prefix="soak-said-")
    pid = os.fork()
    if pid:
        os.close(number)
        return Child(pid, Path(name))
    status = 1
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # even if the soak test runs under nohup
    try:
        os.dup2(number, 1)
        os.dup2(number, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
        act()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)


def side_by_side(room: Path, parts: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """The counts of each part, which runs in its own process."""

    def write(name: str) -> None:
        (room / f"{name}.json").write_text(json.dumps(parts[name]()))

    children = [fork(partial(write, name)) for name in parts]
    for ended in [child.wait(limit=4 * 3600) for child in children]:
        if ended.status:
            raise RuntimeError(ended.said)
    return {name: json.loads((room / f"{name}.json").read_text()) for name in parts}


def import_all() -> None:
    """Import everything that the children would import."""
    for module in LATE:
        importlib.import_module(module)
    load_data("digits")


def command(*words: str) -> Callable[[], None]:
    """Call the command line; the report of a training has one picture that is plotted quickly."""

    def act() -> None:
        sys.argv = ["capsnet", *words]
        report.QUICK = ("confusion",)
        cli.main()

    return act


def make_data(folder: Path) -> Path:
    """Write a few digits to an .npz file: 260 to train and validate on, 60 for the test."""
    data, path = load_data("digits"), folder / "few.npz"
    arrays = {"images": data.train.images[:260], "labels": data.train.labels[:260]}
    arrays |= {"test_images": data.test.images[:60], "test_labels": data.test.labels[:60]}
    np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    return path


class Training:
    """A training as a command, its results when nothing stops it, and its time."""

    def __init__(self, room: Path) -> None:
        import_all()
        self.room, self.data = room, make_data(room)
        self.begun = 0
        both = [fork(self.start(self.fresh())).wait() for _ in range(2)]
        if any(ended.status for ended in both):
            raise RuntimeError(both[0].said)
        self.seconds = both[1].seconds  # the first one is slower, as caches are cold
        self.folder = room / f"run-{os.getpid()}-1" / "run"
        self.left = results_of(self.folder)

    def fresh(self) -> Path:
        """A new path for a run folder; neither it nor its parent exists."""
        self.begun += 1
        return self.room / f"run-{os.getpid()}-{self.begun}" / "run"

    def start(self, folder: Path, *more: str) -> Callable[[], None]:
        """The command that starts the training."""
        return command("train", str(self.data), *shlex.split(FLAGS), "--run", str(folder), *more)

    def resume(self, folder: Path) -> Callable[[], None]:
        """The command that resumes it."""
        return command("train", str(self.data), "--run", str(folder), "--resume")

    def fault(self, folder: Path, again: Callable[[], None] | None = None) -> str | None:
        """What is wrong with a folder after its training was stopped; None if nothing is.

        The training is resumed, or started if the folder is no run yet, or the command `again` is called. Then its
        results must be those of a training that was never stopped.
        """
        if again is None:
            try:
                load_run(folder)
                again = self.resume(folder)
            except InputError:
                again = self.start(folder)
        ended = fork(again).wait()
        if ended.status:
            return f"resuming ends with status {ended.status}: {last_line(ended.said)}"
        if "damaged" in ended.said:
            return f"a file was damaged: {next(line for line in ended.said.splitlines() if 'damaged' in line)}"
        return self.difference(folder)

    def difference(self, folder: Path) -> str | None:
        """How the folder of a training that has ended differs from one that was never stopped; None if it does not."""
        if leftovers := [path.name for path in folder.parent.rglob("*.part")]:
            return f"leftovers: {leftovers}"
        try:
            found = results_of(folder)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        different = [name for name, value in self.left.items() if found.get(name) != value]
        return f"different from never stopped: {', '.join(different)}" if different else None


def results_of(folder: Path) -> dict[str, Any]:
    """All results of a training that must not depend on when it was stopped: values, or digests of them."""
    run = load_run(folder)
    run.load_network()
    state = load_checkpoint(run)
    if state is None or state["step"] != STEPS:
        raise ValueError("there is no last checkpoint")
    measured = [record | {"seconds": 0} for record in run.records("validation")]
    steps = [record["step"] for record in run.records("train")]
    if steps != sorted(set(steps)) or not {STEPS // 2, STEPS} <= set(steps):
        raise ValueError(f"log.jsonl has the steps {steps}")
    results = json.loads((folder / "results.json").read_text())
    if not (folder / "report.html").read_text().rstrip().endswith("</html>"):
        raise ValueError("report.html is not complete")
    return {
        "recipe": run.recipe,
        "the checkpoint": {name: digest(value) for name, value in state.items() if name != "seconds"},
        "best/model.safetensors": digest(load_file(run.best / "model.safetensors")),
        "the validation records": measured,
        "detector.json": load_detector(run),
        "results.json": results["test"],
        "figures": (folder / "figures" / "confusion.png").read_bytes(),
    }


def digest(value: Any) -> str:
    """A hash of the bits of numbers, tensors, and dicts and lists of them."""
    if isinstance(value, torch.Tensor):
        content = value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes()
        return hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode() + content).hexdigest()
    if isinstance(value, dict):
        value = {str(name): digest(inner) for name, inner in sorted(value.items(), key=lambda item: str(item[0]))}
    elif isinstance(value, list | tuple):
        value = [digest(inner) for inner in value]
    return hashlib.sha256(repr(value).encode()).hexdigest()


def last_line(text: str) -> str:
    """The last line of a text that is not blank."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing said")


def discard(folder: Path) -> None:
    """Remove the parent of a run folder that `Training.fresh` made."""
    shutil.rmtree(folder.parent, ignore_errors=True)
