"""Trainings killed at random times and at every change of their folder, stopped by signals, and started twice."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from capsnet.checkpoints import checkpoint_paths
from capsnet.errors import InputError
from capsnet.runs import load_run
from tests.soak.changes import Change, at_each_change
from tests.soak.processes import STEPS, Ended, Training, discard, fork, last_line, side_by_side

OFTEN = ("--save-every", "0.002")  # minutes, for checkpoints within the epochs


def kills(room: Path, rng: random.Random, count: int | None) -> dict[str, Any]:
    """All ways to stop a process; `count` limits the number of tries of each."""
    training = Training(room)
    n = count or 100
    parts: dict[str, Callable[[], Any]] = {
        "random_kills": partial(random_kills, training, random.Random(rng.random()), n),
        "kills_at_changes": partial(kills_at_changes, training, count),
        "kills_at_changes_of_an_overwriting": partial(kills_at_changes, training, count, overwriting=True),
        "signals": partial(signals, training, random.Random(rng.random()), max(2, 6 * n // 10)),
        "two_starts": partial(two_at_once, training, max(1, n // 10), resuming=False),
        "two_resumptions": partial(two_at_once, training, max(1, n // 10), resuming=True),
    }
    return {"training_seconds": round(training.seconds, 1)} | side_by_side(room, parts)


def random_kills(training: Training, rng: random.Random, n: int) -> dict[str, Any]:
    """SIGKILL at a random time of a training, until n processes were killed."""
    found, progress, ended = Counter[str](), Counter[str](), 0
    while progress.total() < n and ended < 2 * n:
        folder = training.fresh()
        child = fork(training.start(folder, *OFTEN))
        time.sleep(rng.uniform(0, 1.1 * training.seconds))
        child.kill()
        how = child.wait()
        if how.status == 0:
            ended, training.seconds = ended + 1, how.seconds  # as the machine's load changes
        if how.status == -signal.SIGKILL:
            progress[where(folder)] += 1
            found.update(fault for fault in [training.fault(folder)] if fault)
        discard(folder)
    return {"killed": progress.total(), "had_ended": ended, "progress": dict(progress), "findings": dict(found)}


def where(folder: Path) -> str:
    """The progress of the training in a folder."""
    try:
        paths = checkpoint_paths(load_run(folder))
    except InputError:
        return "no run yet"
    if not paths:
        return "before the first checkpoint"
    if int(paths[0].stem) < STEPS:
        return "between the first checkpoint and the last"
    return "evaluation and report" if not (folder / "report.html").exists() else "after the report"


def kills_at_changes(training: Training, count: int | None, *, overwriting: bool = False) -> dict[str, Any]:
    """SIGKILL before and after the k-th change of the folder, for each k, or for at most `count` of them.

    With `overwriting`, the folder has a run that has ended, and the same command is used to continue.
    """
    changes = changes_of(training, overwriting)
    if overwriting:  # up to the first file of the new run; later changes are those in a new folder
        changes = changes[: 1 + max(k for k, change in enumerate(changes) if change.call in ("unlink", "rmdir"))]
    picked = changes if count is None else changes[:: max(1, len(changes) // count)][:count]
    found, killed = Counter[str](), 0
    for change in picked:
        for moment in ("before", "after"):
            folder = prepared(training, overwriting)
            ended = fork(partial(killed_at, training, folder, change.number, moment, overwriting)).wait()
            again = training.start(folder, "--overwrite") if overwriting else None
            fault = training.fault(folder, again) if ended.status == -signal.SIGKILL else unkilled(ended)
            killed += ended.status == -signal.SIGKILL
            if fault:
                found[f"{fault} ({moment} {change.call} of {change.path.name})"] += 1
            discard(folder)
    kinds = Counter(change.call for change in changes)
    return {"changes": dict(kinds), "killed": killed, "findings": dict(found)}


def unkilled(ended: Ended) -> str:
    """The finding for a child that was to be killed and was not."""
    return f"it ended with status {ended.status} before: {last_line(ended.said)}"


def prepared(training: Training, overwriting: bool) -> Path:
    """A folder to start a training in."""
    folder = training.fresh()
    if overwriting:
        shutil.copytree(training.folder, folder)
    return folder


def changes_of(training: Training, overwriting: bool) -> list[Change]:
    """All changes that a training makes below the parent of its run folder."""
    folder = prepared(training, overwriting)
    record = training.room / f"changes-{os.getpid()}.txt"

    def act() -> None:
        made: list[Change] = []
        at_each_change(folder.parent, made.append, lambda change: None)
        start(training, folder, overwriting)()
        record.write_text("".join(f"{number}\t{call}\t{path}\n" for number, call, path in made))

    ended = fork(act).wait()
    if ended.status:
        raise RuntimeError(ended.said)
    discard(folder)
    lines = (line.split("\t") for line in record.read_text().splitlines())
    return [Change(int(number), call, Path(path)) for number, call, path in lines]


def start(training: Training, folder: Path, overwriting: bool) -> Callable[[], None]:
    """The command that starts the training in a new folder or overwrites another run."""
    return training.start(folder, *(["--overwrite"] if overwriting else []))


def killed_at(training: Training, folder: Path, number: int, moment: str, overwriting: bool) -> None:
    """Train, and kill this process before or after the change with that number."""

    def die(change: Change) -> None:
        if change.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def live(change: Change) -> None:
        pass

    at_each_change(folder.parent, *((die, live) if moment == "before" else (live, die)))
    start(training, folder, overwriting)()


def signals(training: Training, rng: random.Random, n: int) -> dict[str, Any]:
    """SIGTERM and SIGHUP at a random time of a training: check its status, its message, and that it can be resumed."""
    found, outcomes, progress = Counter[str](), Counter[str](), Counter[str]()
    while progress.total() < n and outcomes.total() < 3 * n:
        number = (signal.SIGTERM, signal.SIGHUP)[outcomes.total() % 2]
        folder = training.fresh()
        child = fork(training.start(folder, *OFTEN))
        time.sleep(rng.uniform(0, 1.1 * training.seconds))
        child.kill(number)
        ended = child.wait()
        outcomes[f"{number.name}: {ended.status}"] += 1
        if ended.status:
            progress[where(folder)] += 1
            faults = [wrong_ending(ended, number, folder), training.fault(folder)]
            found.update(f"{number.name}: {fault}" for fault in faults if fault)
        else:
            training.seconds = ended.seconds
        discard(folder)
    return {"statuses": dict(outcomes), "progress": dict(progress), "findings": dict(found)}


def wrong_ending(ended: Ended, number: signal.Signals, folder: Path) -> str | None:
    """What is wrong with how a process ended at a signal, if anything."""
    if ended.status == -number:  # before the command line has handlers
        return None if where(folder) == "no run yet" else "killed by the signal in its training"
    if "Traceback" in ended.said:
        return f"a traceback: {ended.said[ended.said.index('Traceback') :][-3000:]}"
    if ended.status != 128 + number:
        return f"status {ended.status}: {last_line(ended.said)}"
    if where(folder).startswith("between") and "continue with: capsnet train" not in ended.said:
        return "the line with the command that resumes is missing"
    return None


def two_at_once(training: Training, n: int, *, resuming: bool) -> dict[str, Any]:
    """Two processes that start at the same time in one folder: one trains, the other is refused in one line."""
    found, outcomes = Counter[str](), Counter[str]()
    for _ in range(n):
        folder = training.fresh()
        if resuming:
            fork(partial(killed_at, training, folder, RESUMED_AT, "before", False)).wait()
        act = training.resume(folder) if resuming else training.start(folder)
        both = [child.wait() for child in [fork(act), fork(act)]]
        outcomes[" and ".join(str(status) for status in sorted(ended.status for ended in both))] += 1
        found.update(fault for fault in [*wrong_pair(both, resuming), training.difference(folder)] if fault)
        discard(folder)
    return {"statuses": dict(outcomes), "findings": dict(found)}


RESUMED_AT = 20  # the number of a change in the middle of a training


def wrong_pair(both: Iterable[Ended], resuming: bool) -> Iterable[str]:
    """What is wrong with how two processes shared a folder, if anything."""
    first, second = sorted(both, key=lambda ended: ended.status)
    if first.status or second.status not in ((0, 2) if resuming else (2,)):  # a late one resumes a run that has ended
        yield f"statuses {first.status} and {second.status}: {last_line(second.said)}"
    elif second.status and second.said.count("capsnet: ") != 1:
        yield f"not one line: {second.said!r}"
