"""Splits of a data set: at random by a seed, or by the content of each image.

`data/__init__.py` decides which split applies to which data. A split by content does not change for the other images
when some are added or removed. An image's content is known by a digest: copies of an image have the same one, and stay
in one part.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from capsnet.data.sets import ImageSet
from capsnet.errors import InputError

TENTH = 0.1
FEW = 10  # from this many images on, at least one is a validation image


def split(images: ImageSet, validation: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Draw a validation set by a seed → the other images, and the validation set.

    Raises InputError if `validation` is negative or leaves no image to train on.
    """
    if not 0 <= validation < len(images):
        raise InputError(
            f"{validation} validation images cannot be drawn from {len(images)}: "
            f"choose --validation from 0 to {len(images) - 1}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.select(order[validation:].sort().values), images.select(order[:validation].sort().values)


def hold_out(images: ImageSet, per_class: Sequence[int], seed: int) -> tuple[ImageSet, ImageSet]:
    """Draw per_class[k] images of each class k by a seed → the other images, and those drawn."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = images.labels.cpu()[order]
    drawn = torch.cat([order[labels == k][:count] for k, count in enumerate(per_class)])
    others = torch.ones(len(images), dtype=torch.bool)
    others[drawn] = False
    return images.select(others.nonzero().flatten()), images.select(drawn.sort().values)


def split_by_content(
    images: ImageSet,
    digests: Sequence[bytes],
    classes: Sequence[str],
    *,
    test: bool,
    validation: int | None = None,
    seed: int = 0,
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Split a set into train, validation and test; digests has one digest for each image.

    - test: whether to take test images. They are those whose digest, hashed, is below 0.1 as a fraction in [0, 1):
      about a tenth. If a class has none of them, its image with the lowest hash is taken; the last image of a class
      stays in training. Only in these two cases can an image that is added or removed move another.
    - validation: how many of the other images to take: those whose digests, hashed with the seed, are lowest, so that
      an image that is added or removed moves at most one other. Without a number, take those below 0.1, or the lowest
      if that gives none of ten or more images. The last image of a class stays in training.

    Copies of an image are in one part, except where a class has nothing else to test on and gives one of them. File
    names, order and image sizes do not matter, and the test images do not depend on the seed.

    Raises InputError for a number of validation images that is not possible, and for a class of a single image where
    test images are to be taken.
    """
    labels = images.labels.tolist()
    counts = Counter(labels)
    for k, name in enumerate(classes):
        if test and counts[k] < 2:
            raise InputError(f"class {name!r} has {counts[k]} image: add images, or give test images of your own")
    tested = _test_indices(labels, digests) if test else set()
    others = [index for index in range(len(labels)) if index not in tested]
    held_out = _validation_indices([labels[k] for k in others], [digests[k] for k in others], validation, seed)
    validated = {others[k] for k in held_out}
    parts = (set(others) - validated, validated, tested)
    train, held, unseen = (images.select(torch.tensor(sorted(part), dtype=torch.long)) for part in parts)
    return train, held, unseen


class _Pool:
    """Images to take from, all copies of one content at a time, in a pseudorandom order; each class keeps one image."""

    def __init__(self, labels: Sequence[int], digests: Sequence[bytes], purpose: str) -> None:
        self.labels = labels
        self.size = Counter(labels)  # of each class
        self.left = self.size.copy()
        self.taken: set[int] = set()
        self.indices: dict[bytes, list[int]] = defaultdict(list)  # of the images of each content
        for index, digest in enumerate(digests):
            self.indices[hashlib.sha256(purpose.encode() + digest).digest()].append(index)
        self.contents = sorted(self.indices)

    def take(self, content: bytes, at_most: int | None = None) -> bool:
        """Take all images of a content, unless they are too many or a class would keep none → whether it did."""
        indices = self.indices[content]
        counts = Counter(self.labels[index] for index in indices)
        if any(self.left[k] <= n for k, n in counts.items()) or (at_most is not None and len(indices) > at_most):
            return False
        self.left -= counts
        self.taken.update(indices)
        return True

    def take_one(self, k: int) -> None:
        """Take one image of a class, with the lowest hash, even if it has copies."""
        self.taken.add(next(index for c in self.contents for index in self.indices[c] if self.labels[index] == k))
        self.left[k] -= 1


def _fraction(content: bytes) -> float:
    return int.from_bytes(content[:8]) / 2**64


def _test_indices(labels: Sequence[int], digests: Sequence[bytes]) -> set[int]:
    pool = _Pool(labels, digests, "test")
    contents_of: dict[int, dict[bytes, None]] = defaultdict(dict)  # of each class, in order
    for content in pool.contents:
        for k in {labels[index] for index in pool.indices[content]}:
            contents_of[k][content] = None
        if _fraction(content) < TENTH:
            pool.take(content)
    for k in sorted(contents_of):
        tested = pool.left[k] < pool.size[k]
        if not tested and not any(pool.take(content) for content in contents_of[k]):  # takes the first that it can
            pool.take_one(k)
    return pool.taken


def _validation_indices(labels: Sequence[int], digests: Sequence[bytes], count: int | None, seed: int) -> set[int]:
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
