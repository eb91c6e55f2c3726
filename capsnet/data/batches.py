"""Batches of images in [0, 1], shuffled and shifted by up to a few pixels as in Section 4 of the paper."""

from collections.abc import Iterator

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.functional import pad

from capsnet.data.sets import ImageSet
from capsnet.errors import InputError


def batches(
    images: ImageSet, size: int, *, shift: int = 0, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a set into batches of size; the last one may be smaller.

    With a generator (on the CPU) the images come in an order drawn anew at each call, each shifted by up to
    shift pixels; without one they come in their own order, unshifted.
    Raises InputError for a size below 1, a negative shift, or a shift without a generator.
    Yields images float32 [b, c, h, w] in [0, 1] and labels int64 [b], on the set's device.
    """
    if size < 1:
        raise InputError(f"a batch holds at least one image, not {size}")
    if shift < 0 or (shift > 0 and generator is None):
        raise InputError(f"a shift of {shift} pixels cannot be drawn: it takes 0 or more pixels and a generator")
    n = len(images)
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    order = order.to(images.labels.device)
    return (_batch(images, places, shift, generator) for places in order.split(size) if len(places))


def _batch(images: ImageSet, places: Tensor, shift: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    batch = images.select(places)
    pixels = shifted(batch.images, shift, generator) if shift and generator else batch.images
    return pixels.float() / 255, batch.labels


def shifted(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Shift each image by its own whole offsets, drawn from -shift to shift, down and to the right; fill with zeros.

    The generator is a CPU one wherever the images are, so that a seed draws the same offsets on every device.
    images [b, c, h, w] → the same shape and dtype
    """
    b, c, h, w = images.shape
    down, right = torch.randint(-shift, shift + 1, (2, b, 1), generator=generator).to(images.device)
    rows = torch.arange(h, device=images.device) + shift - down  # [b, h], in the padded image
    columns = torch.arange(w, device=images.device) + shift - right  # [b, w]
    places = rows[:, :, None] * (w + 2 * shift) + columns[:, None, :]  # [b, h, w]
    padded = rearrange(pad(images, (shift, shift, shift, shift)), "b c h w -> b c (h w)")
    moved = padded.gather(-1, repeat(places, "b h w -> b c (h w)", c=c))
    return rearrange(moved, "b c (h w) -> b c h w", h=h)
