"""Labelled images in memory as bytes, data sets of three parts, and their fingerprints."""

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, with_config
from torch import Tensor
from torch.nn.functional import interpolate

from capsnet.checks import STRICT
from capsnet.errors import InputError

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, undecodable bytes, line and paragraph separators


@with_config(STRICT)
@dataclass(frozen=True)
class PartFingerprint:
    """The number of images of one part of a data set, and the SHA-256 of its images and labels."""

    n: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]


@with_config(STRICT)
@dataclass(frozen=True)
class Fingerprint:
    """Identifies a data set: two are equal if all parts have the same images and labels in the same order."""

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
        """Return the set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def select(self, indices: Tensor) -> "ImageSet":
        """Return the images and labels at these indices, int64 [m], in that order."""
        indices = indices.to(self.labels.device)
        return ImageSet(self.images[indices], self.labels[indices])

    def resized(self, size: tuple[int, int]) -> "ImageSet":
        """Return the set with its images resized to size (h, w)."""
        return ImageSet(resized(self.images, size), self.labels)

    def fingerprint(self) -> PartFingerprint:
        """Hash the shape and bytes of the images, and the labels, in order; the device does not matter."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().numpy().astype("<i8").data)
        return PartFingerprint(len(self), digest.hexdigest())


@dataclass(frozen=True)
class Data:
    """A data set of three disjoint parts; classes[k] is the name of label k.

    Raises InputError for fewer than two classes, for a class name that is empty, repeated or not printable, for a label
    without a class, and for parts of different image shapes.
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
        for part, images in self.parts.items():
            shape = tuple(images.images.shape[1:])
            if shape != self.image_shape:
                raise InputError(f"{self.name}: {part} images are {shape}, train images {self.image_shape} (c, h, w)")
            outside = images.labels[(images.labels < 0) | (images.labels >= len(self.classes))]
            if len(outside):
                raise InputError(f"{self.name}: {part} label {outside[0]} is not one of 0 to {len(self.classes) - 1}")

    @property
    def parts(self) -> dict[str, ImageSet]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (c, h, w) of one image."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    def resized(self, size: tuple[int, int]) -> "Data":
        """Return the data set with every image resized to size (h, w)."""
        return Data(self.name, self.classes, *(images.resized(size) for images in self.parts.values()))

    def fingerprint(self) -> Fingerprint:
        """Return the number of images and a SHA-256 of each part, by which a run recognises its data.

        The images are hashed as they are held, after any resizing; the names of the set and its classes are not hashed.
        """
        return Fingerprint(self.train.fingerprint(), self.validation.fingerprint(), self.test.fingerprint())


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images to size (h, w), bilinear and antialiased, without keeping the aspect ratio.

    uint8 [n, c, h', w'] → uint8 [n, c, h, w]
    """
    if len(images) == 0:
        return images.new_empty(*images.shape[:2], *size)
    return interpolate(images, size, mode="bilinear", antialias=True)


def size_pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (h, w): one number is the side of a square. Raises InputError below one pixel."""
    h, w = (image_size, image_size) if isinstance(image_size, int) else image_size
    if h < 1 or w < 1:
        raise InputError(f"images of {h}x{w} pixels are impossible: give --image-size at least 1")
    return h, w
