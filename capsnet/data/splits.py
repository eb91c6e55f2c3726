"""Which part an image of one's own belongs to: what its content says, so that others come and go without moving it.

A digest stands for an image's content: copies of an image have the same one, and stay together.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from capsnet.data.sets import ImageSet
from capsnet.errors import InputError

TENTH = 0.1
FEW = 10  # images, of which no tenth is set aside if chance does not


def split_by_content(
    images: ImageSet,
    digests: Sequence[bytes],
    classes: Sequence[str],
    *,
    test: bool,
    validation: int | None = None,
    seed: int = 0,
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Cut a set in three, train, validation and test; digests has one digest for each image.

    - test: whether test images are wanted. They are those whose digest, hashed, is below 0.1 as a fraction in [0, 1):
      about a tenth. A class left without test images has its lowest one moved there, and the last image of a class
      stays in training: these are the only cases in which an image added or removed can move another.
    - validation: how many of the other images are set aside: those whose digests, hashed with the seed, are lowest, so
      that an image added or removed moves at most one other. Without a number it is those below 0.1, or the lowest
      where this would be none of ten or more images. The last image of a class stays in training.

    Copies of an image are in one part, except where a class with nothing else to test takes one of them. File names,
    order and image sizes play no part, and the test images do not depend on the seed.
    Raises InputError for a number of validation images that cannot be had, and for a class of a single image where test
    images are wanted, which cannot be both learned from and tested on.
    """
    labels = images.labels.tolist()
    counts = Counter(labels)
    for k, name in enumerate(classes):
        if test and counts[k] < 2:
            raise InputError(f"class {name!r} has {counts[k]} image: add images, or give test images of your own")
    tested = _test_places(labels, digests) if test else set()
    others = [place for place in range(len(labels)) if place not in tested]
    held_out = _validation_places([labels[k] for k in others], [digests[k] for k in others], validation, seed)
    validated = {others[k] for k in held_out}
    parts = (set(others) - validated, validated, tested)
    train, held, unseen = (images.select(torch.tensor(sorted(part), dtype=torch.long)) for part in parts)
    return train, held, unseen


class _Pool:
    """Images to take from, content by content in an order drawn for a purpose; each class keeps at least one."""

    def __init__(self, labels: Sequence[int], digests: Sequence[bytes], purpose: str) -> None:
        self.labels = labels
        self.size = Counter(labels)  # of each class
        self.left = self.size.copy()
        self.taken: set[int] = set()
        self.places: dict[bytes, list[int]] = defaultdict(list)  # of the images of each content
        for place, digest in enumerate(digests):
            self.places[hashlib.sha256(purpose.encode() + digest).digest()].append(place)
        self.contents = sorted(self.places)

    def take(self, content: bytes, at_most: int | None = None) -> bool:
        """Take all images of a content and say so, unless they are too many or a class would keep none."""
        places = self.places[content]
        counts = Counter(self.labels[place] for place in places)
        if any(self.left[k] <= n for k, n in counts.items()) or (at_most is not None and len(places) > at_most):
            return False
        self.left -= counts
        self.taken.update(places)
        return True

    def take_one(self, k: int) -> None:
        """Take one image of a class, of its lowest content, whatever copies it has."""
        self.taken.add(next(place for c in self.contents for place in self.places[c] if self.labels[place] == k))
        self.left[k] -= 1


def _fraction(content: bytes) -> float:
    return int.from_bytes(content[:8]) / 2**64


def _test_places(labels: Sequence[int], digests: Sequence[bytes]) -> set[int]:
    pool = _Pool(labels, digests, "test")
    contents_of: dict[int, dict[bytes, None]] = defaultdict(dict)  # of each class, in order
    for content in pool.contents:
        for k in {labels[place] for place in pool.places[content]}:
            contents_of[k][content] = None
        if _fraction(content) < TENTH:
            pool.take(content)
    for k in sorted(contents_of):
        tested = pool.left[k] < pool.size[k]
        if not tested and not any(pool.take(content) for content in contents_of[k]):  # takes the first that it can
            pool.take_one(k)
    return pool.taken


def _validation_places(labels: Sequence[int], digests: Sequence[bytes], count: int | None, seed: int) -> set[int]:
    pool = _Pool(labels, digests, f"validation {seed} ")
    if count is None:
        for content in pool.contents:
            if _fraction(content) < TENTH or (not pool.taken and len(labels) >= FEW):
                pool.take(content)
        return pool.taken
    for content in pool.contents:
        pool.take(content, at_most=count - len(pool.taken))
    if len(pool.taken) != count:
        raise InputError(
            f"{count} validation images cannot be drawn from {len(labels)}: choose --validation from 0 to "
            f"{len(labels) - len(pool.size)}, or less where images have copies: these stay together"
        )
    return pool.taken
