"""Perturbations of a capsule's dimensions and the reconstructions that they make: Section 5.1 of the capsule paper.

Sabour, Frosst and Hinton (2017) perturb one dimension of the one capsule that the decoder sees, in steps of 0.05 from
-0.25 to 0.25 (Figure 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf, isclose

import torch
from einops import reduce
from torch import Tensor

from capsnet.analysis.perturbations.effects import clear_effect, measured
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.models import CapsNet

MOST = 25  # steps each way that a figure has room for


@dataclass(frozen=True)
class Perturbations:
    """Reconstructions from one capsule of one image, each dimension perturbed in turn; the largest change is first."""

    n: int
    """The number of images in the set."""
    place: int
    """Where in the set the image is."""
    truth: int
    """The image's own class."""
    label: int
    """The class whose capsule is perturbed."""
    lengths: Tensor  # [j]
    image: Tensor  # [c, h, w]
    offsets: list[float]
    """What is added: t numbers from -extent to extent."""
    dimensions: list[int]
    reconstructions: Tensor  # [e, t, c, h, w]
    change: list[float]
    """Absolute change of a dimension's reconstruction: mean over channels and nonzero offsets, sum over places."""
    sizes: Tensor  # [e, t, 8], as `effects.measured`
    effects: list[str | None]
    """What `effects.clear_effect` calls each dimension."""

    @property
    def prediction(self) -> int:
        """The predicted class of the image."""
        return int(self.lengths.argmax())  # over classes j


def measure_perturbations(
    network: CapsNet,
    images: ImageSet,
    *,
    label: int = 0,
    image: int | None = None,
    extent: float = 0.25,
    step: float = 0.05,
    dimensions: Sequence[int] | None = None,
) -> Perturbations:
    """Reconstruct from the capsule of a class with numbers from -extent to extent added to one dimension at a time.

    `image` is a place in the set; without one, it is the first image of the class that is classified right, or the
    first of the class if none is. `dimensions` are all if None.
    Raises InputError for a network without decoder, a class, dimension or image that does not exist, a class without
    images, and a step that does not divide the extent.
    """
    known = _known_dimensions(network, dimensions)
    offsets = steps(extent, step)
    place, pixels, capsules = _choose_image(network, images, label, image)
    classes = torch.full((len(offsets),), label, device=capsules.device)
    with torch.inference_mode():
        rows = perturb(capsules, label, known, torch.tensor(offsets).to(capsules))
        made = torch.stack([network.decode(row, classes) for row in rows]).float().cpu()  # [e, t, c, h, w]
    moved = reduce((made - made[:, len(offsets) // 2, None]).abs(), "e t c h w -> e t h w", "mean")
    change = moved.sum(dim=(1, 2, 3)) / (len(offsets) - 1)  # over offsets t and places
    order = change.argsort(descending=True, stable=True)
    made = made[order]
    sizes = torch.stack([measured(row) for row in made])
    return Perturbations(
        n=len(images),
        place=place,
        truth=int(images.labels[place]),
        label=label,
        lengths=torch.linalg.vector_norm(capsules, dim=-1).cpu(),  # over the capsule's own axis e
        image=pixels.cpu(),
        offsets=offsets,
        dimensions=[known[k] for k in order.tolist()],
        reconstructions=made,
        change=change[order].tolist(),
        sizes=sizes,
        effects=[clear_effect(*row, torch.tensor(offsets)) for row in zip(made, sizes, strict=True)],
    )


def perturb(capsules: Tensor, label: int, dimensions: Sequence[int], offsets: Tensor) -> Tensor:
    """Add each offset to each dimension in turn of the capsule of one class, and to nothing else.

    capsules [j, e], offsets [t] → capsules [dimensions, t, j, e]
    """
    perturbed = capsules.repeat(len(dimensions), len(offsets), 1, 1)
    for row, dimension in zip(perturbed, dimensions, strict=True):
        row[:, label, dimension] += offsets
    return perturbed


def steps(extent: float, step: float) -> list[float]:
    """The numbers from -extent to extent, a step apart; zero, in the middle, is exactly zero.

    Raises InputError if the extent is no whole number of steps, or more than 25.
    """
    if not (0 < extent < inf and 0 < step < inf):
        raise InputError(f"range and step of a perturbation are above 0, not {extent:g} and {step:g}")
    count = round(extent / step) if extent / step < 2 * MOST else 2 * MOST
    if count > MOST:
        raise InputError(f"{extent:g} in steps of {step:g} are more than {MOST} each way: choose larger steps")
    if not isclose(count * step, extent, rel_tol=1e-6):
        nearest = extent / max(1, count)
        raise InputError(f"steps of {step:g} do not lead from 0 to {extent:g}: choose for example steps of {nearest:g}")
    return [extent * k / count for k in range(-count, count + 1)]


def _known_dimensions(network: CapsNet, dimensions: Sequence[int] | None) -> list[int]:
    """The dimensions to perturb, each once."""
    network.check_decoder()
    size = network.digit_caps.weight.shape[-1]
    chosen = list(dict.fromkeys(range(size) if dimensions is None else dimensions))
    if not chosen:
        raise InputError(f"there is no dimension to perturb: choose from 0 to {size - 1}")
    for dimension in chosen:
        if not 0 <= dimension < size:
            raise InputError(f"there is no dimension {dimension}: this network's capsules have 0 to {size - 1}")
    return chosen


def _choose_image(network: CapsNet, images: ImageSet, label: int, image: int | None) -> tuple[int, Tensor, Tensor]:
    """The image to reconstruct: its place in the set, its pixels [c, h, w] and its capsules [j, e]."""
    if not 0 <= label < network.classes:
        raise InputError(f"there is no class {label}: this network has classes 0 to {network.classes - 1}")
    if not len(images):
        raise InputError("there are no images to plot")
    if image is not None and not 0 <= image < len(images):
        raise InputError(f"there is no image {image}: the set has images 0 to {len(images) - 1}")
    places = (images.labels == label).nonzero().flatten().tolist() if image is None else [image]
    if not places:
        raise InputError(f"no image of the set is of class {label}: give the index of another image")
    encoded = (_encode(network, images, place) for place in places)
    first = next(encoded)
    lengths = ((each, torch.linalg.vector_norm(each[2], dim=-1)) for each in chain([first], encoded))  # over axis e
    return next((each for each, of_each in lengths if of_each.argmax() == label), first)  # over classes j


def _encode(network: CapsNet, images: ImageSet, place: int) -> tuple[int, Tensor, Tensor]:
    device = next(network.parameters()).device
    pixels, _ = next(batches(images.select(torch.tensor([place])).to(device), 1))  # [1, c, h, w]
    with torch.inference_mode():
        return place, pixels[0], network.encode(pixels)[0]
