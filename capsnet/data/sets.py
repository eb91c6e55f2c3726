"""Labelled images held in memory as bytes, and how a set is cut in two."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, with_config
from torch import Tensor

from capsnet.data.resize import resized
from capsnet.errors import InputError
from capsnet.schema import STRICT

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, undecodable bytes, breaks of lines and paragraphs


@with_config(STRICT)
@dataclass(frozen=True)
class PartFingerprint:
    """The number of images of one part of a data set, and the SHA-256 of all that it holds."""

    n: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]


@with_config(STRICT)
@dataclass(frozen=True)
class Fingerprint:
    """What tells a data set from any other: equal where all parts have the same images and labels in one order."""

    train: PartFingerprint
    validation: PartFingerprint
    test: PartFingerprint


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: images uint8 [n, c, h, w], labels int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def select(self, places: Tensor) -> "ImageSet":
        """Return the images and labels at places, int64 [m], in that order."""
        places = places.to(self.labels.device)
        return ImageSet(self.images[places], self.labels[places])

    def resized(self, size: tuple[int, int]) -> "ImageSet":
        """Return the set with its images brought to size (h, w)."""
        return ImageSet(resized(self.images, size), self.labels)

    def fingerprint(self) -> PartFingerprint:
        """Hash the images' shape and bytes and the labels, in order; the device makes no difference."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").data)
        return PartFingerprint(len(self), digest.hexdigest())


@dataclass(frozen=True)
class Data:
    """A data set in three parts that do not overlap; classes[k] is the name of label k.

    Raises InputError where there are fewer than two classes, one whose name is empty, repeated or cannot be printed, a
    label outside them, or parts of different image shapes.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise InputError(f"{self.name} has {len(self.classes)} class: telling apart takes at least two")
        for name, times in Counter(self.classes).items():
            if times > 1:
                raise InputError(f"{self.name} has {times} classes called {name!r}: give each a name of its own")
            if not name.strip() or any(unicodedata.category(c) in UNPRINTABLE for c in name):
                raise InputError(f"{self.name} has a class called {name!r}: give it a name that can be printed")
        for part in ("train", "validation", "test"):
            images: ImageSet = getattr(self, part)
            shape = tuple(images.images.shape[1:])
            if shape != self.image_shape:
                raise InputError(f"{self.name}: {part} images are {shape}, train images {self.image_shape} (c, h, w)")
            outside = images.labels[(images.labels < 0) | (images.labels >= len(self.classes))]
            if len(outside):
                raise InputError(f"{self.name}: {part} label {outside[0]} is not one of 0 to {len(self.classes) - 1}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (c, h, w) of one image."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    def resized(self, size: tuple[int, int]) -> "Data":
        """Return the same data with every image brought to size (h, w)."""
        parts = (part.resized(size) for part in (self.train, self.validation, self.test))
        return Data(self.name, self.classes, *parts)

    def fingerprint(self) -> Fingerprint:
        """Return the number of images and a SHA-256 of each part: what a run keeps to know its data again.

        The images are hashed as they are held here, after any resizing; names of the set and its classes take no part.
        """
        return Fingerprint(self.train.fingerprint(), self.validation.fingerprint(), self.test.fingerprint())


def split(images: ImageSet, validation: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Draw a validation set by seed: the other images and it, disjoint and together everything.

    Raises InputError where validation is negative or leaves no image to train on.
    """
    if not 0 <= validation < len(images):
        raise InputError(
            f"{validation} validation images cannot be drawn from {len(images)}: "
            f"choose --validation from 0 to {len(images) - 1}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.select(order[validation:].sort().values), images.select(order[:validation].sort().values)


def hold_out(images: ImageSet, per_class: Sequence[int], seed: int) -> tuple[ImageSet, ImageSet]:
    """Draw per_class[k] images of each class k by seed: the other images, and those drawn."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = images.labels.cpu()[order]
    drawn = torch.cat([order[labels == k][:count] for k, count in enumerate(per_class)])
    others = torch.ones(len(images), dtype=torch.bool)
    others[drawn] = False
    return images.select(others.nonzero().flatten()), images.select(drawn.sort().values)
