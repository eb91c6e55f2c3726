"""Every state that a power loss can leave of a training, by what was not yet flushed to disk.

A file system keeps the content of a file as of its last fsync, and nothing of a file that was never flushed. It
guarantees the names in a folder as of the last fsync of the folder ("names are lost"); most file systems keep later
names too, but not the content of these files ("names are kept": they have 0 bytes). Both states are recorded at every
change.
"""

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests.soak.changes import Change, at_each_change
from tests.soak.kills import where
from tests.soak.processes import Training, discard, fork

State = dict[str, str | None]  # by path: the name of the content, or None for a folder
VARIANTS = ("names are kept", "names are lost")


class Disk:
    """The content of a folder, and what a power loss would leave of it. Contents are stored under their hash."""

    def __init__(self, folder: Path, contents: Path) -> None:
        self.folder, self.contents = folder, contents
        self.held: dict[int, int] = {}  # by inode: a descriptor, so that the inode is not reused
        self.flushed: dict[int, str] = {}  # by inode of a file
        self.names: dict[int, dict[str, int]] = {}  # by inode of a folder
        self.folders: set[int] = set()
        self.empty = self.keep(b"")
        self.flush(folder)

    def keep(self, content: bytes) -> str:
        """Store a content → its name."""
        name = hashlib.sha256(content).hexdigest()
        if not (self.contents / name).exists():
            (self.contents / name).write_bytes(content)
        return name

    def inode(self, path: Path) -> int:
        """The inode of a file or folder, which is not reused from now on."""
        number = path.lstat().st_ino
        if number not in self.held:
            self.held[number] = os.open(path, os.O_RDONLY)
            if path.is_dir():
                self.folders.add(number)
        return number

    def flush(self, path: Path) -> None:
        """Record an fsync."""
        number = self.inode(path)
        if number in self.folders:
            self.names[number] = self.entries(path)
        else:
            self.flushed[number] = self.keep(path.read_bytes())

    def entries(self, folder: Path) -> dict[str, int]:
        """The present names in a folder and their inodes."""
        return {path.name: self.inode(path) for path in folder.iterdir()}

    def states(self) -> tuple[State, State]:
        """The states that a power loss would leave now, in the order of VARIANTS."""
        kept: State = {}
        for path in sorted(self.folder.rglob("*")):
            number = self.inode(path)
            name = str(path.relative_to(self.folder))
            kept[name] = None if path.is_dir() else self.flushed.get(number, self.empty)
        lost: State = {}
        self.walk(self.inode(self.folder), "", lost)
        return kept, lost

    def walk(self, folder: int, prefix: str, state: State) -> None:
        """Add the names that were flushed."""
        for name, number in self.names.get(folder, {}).items():
            if number in self.folders:
                state[prefix + name] = None
                self.walk(number, f"{prefix}{name}/", state)
            else:
                state[prefix + name] = self.flushed.get(number, self.empty)


def power(room: Path, rng: random.Random, count: int | None) -> dict[str, Any]:
    """Resume from every state, or from `count` random ones; compare the last ones without resuming."""
    training = Training(room)
    record, contents = room / "states.json", room / "contents"
    contents.mkdir()
    folder = training.fresh()
    ended = fork(partial(recorded, training, folder, record, contents)).wait()
    if ended.status:
        raise RuntimeError(ended.said)
    taken = json.loads(record.read_text())
    distinct = {json.dumps(state, sort_keys=True): (variant, moment, state) for variant, moment, state in taken}
    picked = (
        list(distinct.values()) if count is None else rng.sample(list(distinct.values()), min(count, len(distinct)))
    )
    progress, found = Counter[str](), Counter[str]()
    for variant, moment, state in picked:
        again = materialised(training, state, contents)
        progress[where(again)] += 1
        if fault := training.fault(again):
            found[f"{fault} ({variant}, {moment})"] += 1
        discard(again)
    for variant, _, state in taken[-len(VARIANTS) :]:
        lost = lost_at_the_end(training, folder, state, contents)
        found.update(f"{fault} ({variant}, after the end)" for fault in lost)
    return {
        "moments": len(taken) // len(VARIANTS),
        "distinct_states": len(distinct),
        "resumed_from": len(picked),
        "progress": dict(progress),
        "findings": dict(found),
    }


def recorded(training: Training, folder: Path, record: Path, contents: Path) -> None:
    """Train, and record at each change what a power loss would leave."""
    folder.parent.mkdir()
    disk = Disk(folder.parent, contents)
    taken: list[tuple[str, str, State]] = []

    def take(moment: str) -> None:
        taken.extend((variant, moment, state) for variant, state in zip(VARIANTS, disk.states(), strict=True))

    def after(change: Change) -> None:
        if change.call == "fsync":
            disk.flush(change.path)
        take(f"after {change.call} of {change.path.name}")

    at_each_change(folder.parent, lambda change: take(f"before {change.call} of {change.path.name}"), after)
    training.start(folder)()
    take("after the end")
    record.write_text(json.dumps(taken))


def materialised(training: Training, state: State, contents: Path) -> Path:
    """Write a state to a run folder."""
    folder = training.fresh()
    folder.parent.mkdir()
    for name, content in state.items():
        path = folder.parent / name
        if content is None:
            path.mkdir(parents=True)
        else:
            shutil.copyfile(contents / content, path)
    return folder


def lost_at_the_end(training: Training, folder: Path, state: State, contents: Path) -> list[str]:
    """Findings of a power loss after a training has ended: lost files, and differences to the run without it."""
    wanted = {str(path.relative_to(folder.parent)): path for path in folder.rglob("*") if path.name != "run.lock"}
    lost = []
    for name, path in wanted.items():
        content = state.get(name)
        if name not in state or (content and path.is_file() and (contents / content).read_bytes() != path.read_bytes()):
            lost.append("TensorBoard's file is lost" if "tfevents" in name else f"{path.name} is lost")
    left = materialised(training, state, contents)
    lost += [fault for fault in [training.difference(left)] if fault]
    discard(left)
    return lost
