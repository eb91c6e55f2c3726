"""Inputs that random damage does not produce: class folders with odd entries, and checkpoints with odd values."""

import io
import os
import random
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capsnet import training
from capsnet.checkpoints import DIGITS, checkpoint_paths
from capsnet.data import Data
from capsnet.data.images import read_folder
from capsnet.runs import Run
from tests.soak.kinds import check_names, sealed_checkpoint
from tests.soak.mutations import damaged

NAMES: tuple[bytes, ...] = (
    *(
        b"a",
        b"b",
        b"train",
        b"test",
        b"validation",
        b"val",
        b"valid",
        b".hidden",
        b"-flag",
        b" ",
        b"x" * 255,
        b"\xff\xfe",
    ),
    "Käse 🧀".encode(),
    *(b"new\nline", b"tab\t", b"%s{0}$", b"Thumbs.db", b"notes.txt", b"..a", b"a.png", b"A.PNG", b"con", b"\x1b[31m"),
)


@dataclass(frozen=True)
class ClassFolders:
    """Folders of a few images, with odd entries and names."""

    name: str
    path: Path
    images: Sequence[bytes]
    originals: Sequence[bytes] = ()
    sealed: bool = False
    share: int = 2

    def write(self, rng: random.Random) -> None:
        """Make a new folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        for name in (b"a", b"b", b"c")[: rng.choice((1, 2, 2, 3))]:
            folder = os.fsencode(self.path) + b"/" + name
            os.makedirs(folder)
            for k in range(rng.choice((0, 1, 2, 3, 3))):
                self.put(folder + b"/%d.png" % k, rng.choice(self.images))
        for _ in range(rng.randrange(4)):
            within = [os.fsencode(self.path), *(os.fsencode(path) for path in self.path.iterdir() if path.is_dir())]
            place = rng.choice(within) + b"/" + rng.choice(NAMES)
            if not os.path.lexists(place):
                rng.choice(self.entries(rng))(place)

    def entries(self, rng: random.Random) -> list[Callable[[bytes], object]]:
        """Functions that create an entry."""
        return [
            os.mkdir,
            os.mkfifo,
            lambda place: self.put(place, rng.choice(self.images)),
            lambda place: self.put(place, damaged(rng, self.images)),
            lambda place: self.put(place, b""),
            lambda place: os.symlink(place, place),
            lambda place: os.symlink(b"/nowhere", place),
            lambda place: os.symlink(b"/dev/zero", place),
            lambda place: os.symlink(b"..", place),
            lambda place: os.symlink(os.fsencode(self.path) + b"/a", place),
            bind,
        ]

    def put(self, place: bytes, content: bytes) -> None:
        """Write a file."""
        with open(place, "wb") as file:
            file.write(content)

    def read(self, path: Path) -> Any:
        """The folder as a data set, whose names can be printed and written to a file."""
        data = read_folder(path)
        check_names(data.classes)
        return {part: vars(getattr(data, part)) for part in ("train", "validation", "test")} | {"as": data.classes}


def bind(place: bytes) -> None:
    """Create a socket, or nothing if its name would be too long."""
    if len(place) < 100:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(place)


class OddCheckpoints:
    """Checkpoints as PyTorch writes them, with a valid checksum and odd values, to resume from."""

    name = "checkpoint with odd values, to resume from"
    originals: Sequence[bytes] = ()
    sealed = False
    share = 1

    def __init__(self, run: Run, data: Data) -> None:
        self.run, self.data, self.path = run, data, checkpoint_paths(run)[0]
        self.content = self.path.read_bytes()

    def write(self, rng: random.Random) -> None:
        """Replace values of the valid checkpoint, or remove them."""
        state = torch.load(io.BytesIO(self.content[DIGITS:]), weights_only=True)
        state["step"] -= rng.choice((0, 1))  # of two, so that at most one step is left
        for _ in range(rng.choice((1, 1, 2))):
            inside: Any = state
            while isinstance(inside, dict | list) and inside:
                key = rng.choice([*inside] if isinstance(inside, dict) else range(len(inside)))
                if not isinstance(inside[key], dict | list) or not inside[key] or rng.random() < 0.15:
                    replace(rng, inside, key)
                    break
                inside = inside[key]
        file = io.BytesIO()
        torch.save(state, file)
        self.path.write_bytes(sealed_checkpoint(file.getvalue()))

    def read(self, path: Path) -> Any:
        """Resume, and remove the new files."""
        try:
            return dict(training.train(self.run, self.data, resume=True).state_dict())
        finally:
            for other in checkpoint_paths(self.run):
                other.unlink()
            for events in self.run.folder.glob("*tfevents*"):
                events.unlink()


def replace(rng: random.Random, inside: Any, key: Any) -> None:
    """Replace a value by an odd one, or remove it."""
    value = inside[key]
    odd: list[Any] = [None, -1, 0, 2**63, 2**200, float("nan"), float("inf"), -1.5, "", "x" * 1000, [], {}, True]
    odd += [b"bytes"]
    odd += [torch.zeros(0), torch.tensor(float("nan")), torch.ones(1).expand(2**20), torch.ones(2, 3).to_sparse()]
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
        odd += [value.double(), value[None], value.bool(), torch.full_like(value, 2**7 - 1), value.to(torch.complex64)]
        odd += [value.flatten()[:1].squeeze().expand(value.shape), value.to("meta")]
        odd += [value * float("nan")] if value.is_floating_point() else []
    if rng.random() < 0.1 and isinstance(inside, dict):
        del inside[key]
    elif rng.random() < 0.1 and isinstance(inside, dict):
        inside[rng.choice(("extra", 7, "network"))] = value
    else:
        inside[key] = rng.choice(odd)
