"""Batches of images in [0, 1], shuffled and shifted by up to a few pixels as in Section 4 of the paper."""

from collections.abc import Iterable, Iterator
from itertools import repeat

import torch
from torch import Tensor
from torch.nn.functional import pad

from capsnet.data.sets import ImageSet
from capsnet.errors import InputError


def batches(
    images: ImageSet,
    size: int,
    *,
    shift: int = 0,
    generator: torch.Generator | None = None,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Divide a set into batches of `size` images; the last one may be smaller.

    With a generator, each call draws a new order, and shifts each image by up to `shift` pixels; without one, images
    come in their own order, unshifted. The generator is on the CPU, so that a seed draws the same on every device; the
    order and shifts of all batches are copied to the set's device at once, so that no batch waits for a copy. Several
    processes with equal generators each get their share of every batch: see `share`.

    Yields images float32 [b, c, h, w] in [0, 1] and labels int64 [b], on the set's device.

    Raises InputError for a size below 1, a negative shift, or a shift without a generator.
    """
    if size < 1:
        raise InputError(f"a batch holds at least one image, not {size}")
    if shift < 0 or (shift > 0 and generator is None):
        raise InputError(f"a shift of {shift} pixels cannot be drawn: give 0 or more pixels and a generator")
    n, device = len(images), images.labels.device
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    parts = order.to(device).split(size)
    offsets: Iterable[Tensor | None] = repeat(None)
    if shift:
        offsets = torch.randint(-shift, shift + 1, (2 * n,), generator=generator).to(device).split(2 * size)
    return (
        _batch(images, indices, moves, shift, share(len(indices), rank, processes))
        for indices, moves in zip(parts, offsets, strict=False)
        if len(indices)
    )


def share(n: int, rank: int, processes: int) -> slice:
    """Return which of n images belong to the process of this rank; each image belongs to one process.

    The sizes of the shares differ by at most one; with more processes than images, some shares are empty.
    """
    return slice(n * rank // processes, n * (rank + 1) // processes)


def _batch(images: ImageSet, indices: Tensor, offsets: Tensor | None, shift: int, ours: slice) -> tuple[Tensor, Tensor]:
    images = images.select(indices[ours])
    pixels = images.images if offsets is None else shifted(images.images, offsets.view(2, -1)[:, ours], shift)
    return pixels.float() / 255, images.labels


def shifted(images: Tensor, offsets: Tensor, shift: int) -> Tensor:
    """Move each image down and to the right by its own offsets, of at most `shift` pixels; fill with zeros.

    images [b, c, h, w], offsets int64 [2, b] from -shift to shift → the same shape and dtype
    """
    b, _, h, w = images.shape
    padded = pad(images, (shift, shift, shift, shift))
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # [b, c, 2 · shift + 1, 2 · shift + 1, h, w], a view
    down, right = shift - offsets
    return windows[torch.arange(b, device=images.device), :, down, right]
