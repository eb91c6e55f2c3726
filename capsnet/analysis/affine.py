"""How networks hold out against rotation, shift, scale and shear, which they were not trained on.

The paper's claim is that capsules hold out better than a plain convolutional network (Section 5.1 of Sabour, Frosst
and Hinton, 2017, on affNIST). Here the same networks see the same images, changed by known amounts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.models import CapsNet

Amount = float | Tensor
"""The same for every image, or each image's own [b]."""


@dataclass(frozen=True)
class Curve:
    """How many images networks classify right as one change grows."""

    change: str
    """What `transformed` calls it: rotation, right, scale or shear."""
    amounts: tuple[float, ...]
    right: dict[str, tuple[int, ...]]
    """By network, the images classified right under each amount."""


@dataclass(frozen=True)
class AffineResult:
    """What networks did with the same n images under changes."""

    n: int
    seed: int
    curves: tuple[Curve, ...]
    random_rotation: float
    """Degrees, either way: each image is rotated and shifted at random, by seed."""
    random_shift: int
    """Whole pixels, either way, down and to the right."""
    random_right: dict[str, int]
    """By network, the images classified right after these random changes."""

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks' names, in the order given."""
        return tuple(self.random_right)


def transformed(
    images: Tensor,
    *,
    rotation: Amount = 0.0,
    down: Amount = 0.0,
    right: Amount = 0.0,
    scale: Amount = 1.0,
    shear: Amount = 0.0,
) -> Tensor:
    """Scale, shear, rotate and then shift images about their centre: bilinear, filled with zeros.

    - rotation: degrees, anticlockwise as the image is seen: 90 is `torch.rot90(images, 1, (2, 3))`
    - down, right: pixels, or parts of them
    - scale: a factor above 0; below 1 the image shrinks, without smoothing
    - shear: degrees by which what is upright leans to the right, within ±90

    No change, whole shifts and quarter turns of a square are exact to the bit.
    Raises InputError for a scale or a shear outside these bounds.
    images [b, c, h, w] in [0, 1] → the same shape and dtype, in [0, 1]
    """
    b, c, h, w = images.shape
    matrix = _matrix(*(torch.as_tensor(a, dtype=torch.float64).cpu().expand(b) for a in (rotation, scale, shear)))
    shift = torch.stack([torch.as_tensor(a, dtype=torch.float64).cpu().expand(b) for a in (right, down)], dim=-1)
    # On a canvas whose sides are powers of two every pixel has a place in [-1, 1] that float32 holds exactly, and to
    # which float64's errors are rounded away.
    across, tall = (1 << (size - 1).bit_length() for size in (w, h))
    half = torch.tensor([across, tall], dtype=torch.float64) / 2  # (x, y): pixels in one unit of the canvas
    centre = torch.tensor([w, h], dtype=torch.float64) / (2 * half) - 1
    back = torch.linalg.inv(matrix) * half / half[:, None]  # [b, 2, 2]: from places in the answer to those in the image
    start = centre - (back @ (centre + shift / half).unsqueeze(-1)).squeeze(-1)  # [b, 2]
    theta = torch.cat([back, start.unsqueeze(-1)], dim=-1)
    places = F.affine_grid(theta, [b, c, tall, across], align_corners=False).float()  # [b, h, w, 2]
    canvas = F.pad(images, (0, across - w, 0, tall - h))
    return F.grid_sample(canvas, places.to(images), align_corners=False)[:, :, :h, :w].clamp(0, 1)


def _matrix(rotation: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Where (x, y), right and down of the centre, go: degrees, factors and degrees [b] → matrices [b, 2, 2]."""
    if not (scale > 0).all() or not (shear.abs() < 90).all():
        raise InputError(
            f"a scale is above 0 and a shear within 90 degrees, not {scale.min():g} and {shear.abs().max():g}"
        )
    turn, lean = rotation.deg2rad(), shear.deg2rad().tan()
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    rotate, slant = [[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]], [[one, -lean], [zero, one]]
    rotations, slants = (torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2) for rows in (rotate, slant))
    return rotations @ slants * scale[:, None, None]


def changed(images: ImageSet, **change: Amount) -> ImageSet:
    """The set with every image `transformed`, in bytes again: what a file would hold."""
    pixels = transformed(images.images.float() / 255, **change)
    return ImageSet((255 * pixels).round().to(torch.uint8), images.labels)


def changed_at_random(images: ImageSet, seed: int, *, rotation: float = 30.0, shift: int = 2) -> ImageSet:
    """The set with each image rotated by up to ±rotation degrees and shifted by up to ±shift whole pixels each way."""
    generator, n = torch.Generator().manual_seed(seed), len(images)
    turns = rotation * (2 * torch.rand(n, generator=generator) - 1)
    down, right = torch.randint(-shift, shift + 1, (2, n), generator=generator)
    return changed(images, rotation=turns, down=down, right=right)


def amounts(width: int) -> dict[str, tuple[float, ...]]:
    """The amounts of each change that are tried; shifts in fourteenths of images so wide: 2, 4 and 6 pixels of 28."""
    step = max(1, round(width / 14))
    return {
        "rotation": (-45, -30, -15, 0, 15, 30, 45),
        "right": tuple(k * step for k in range(-3, 4)),
        "scale": (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3),
        "shear": (-30, -20, -10, 0, 10, 20, 30),
    }


def measure_affine(
    networks: Mapping[str, CapsNet | ConvBaseline],
    images: ImageSet,
    *,
    count: int = 250,
    seed: int = 0,
    random_rotation: float = 30.0,
    random_shift: int = 2,
) -> AffineResult:
    """Count what networks, by name, classify right as images are changed: `count` of a set, drawn by seed, or all.

    Each of four changes is made alone, by the `amounts` for images of this size; then each image is rotated by up to
    random_rotation degrees and shifted by up to random_shift whole pixels each way at random.
    Raises InputError for no networks, an empty set, a count below 1, and images that a network cannot see.
    """
    _check(networks, images, count)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = images.select(order[:count].sort().values)
    unchanged = _right(networks, chosen)
    curves = []
    for change, tried in amounts(images.images.shape[-1]).items():
        neutral = 1 if change == "scale" else 0
        right = [_right(networks, changed(chosen, **{change: k})) if k != neutral else unchanged for k in tried]
        curves.append(Curve(change, tried, {name: tuple(counts[name] for counts in right) for name in networks}))
    moved = _right(networks, changed_at_random(chosen, seed, rotation=random_rotation, shift=random_shift))
    return AffineResult(len(chosen), seed, tuple(curves), random_rotation, random_shift, moved)


def _check(networks: Mapping[str, CapsNet | ConvBaseline], images: ImageSet, count: int) -> None:
    if not networks:
        raise InputError("there is no network to measure: give at least one, by name")
    if not len(images) or count < 1:
        raise InputError(f"affine changes are measured on at least one image, not {min(count, len(images))}")
    shape = tuple(images.images.shape[1:])
    for name, network in networks.items():
        if network.image_shape != shape:
            raise InputError(f"{name} sees images (c, h, w) of {network.image_shape}, not {shape}: give it its own")


def _right(networks: Mapping[str, CapsNet | ConvBaseline], images: ImageSet) -> dict[str, int]:
    return {name: len(images) - evaluate(network, images).errors for name, network in networks.items()}
