"""Numbers added to the dimensions of a capsule, and what is then drawn: Section 5.1 of the capsule paper.

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

from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.figures.effects import clear_effect, measured
from capsnet.models import CapsNet

MOST = 25  # steps each way that a page has room for


@dataclass(frozen=True)
class Tweaks:
    """The drawings of one capsule of one image, each dimension tweaked in turn; the one that moves most ink first."""

    label: int
    """The class whose capsule is drawn."""
    place: int
    """Where in its set the image is."""
    truth: int
    """The image's own class."""
    lengths: Tensor  # [j]
    image: Tensor  # [c, h, w]
    offsets: list[float]
    """What is added: t numbers from -extent to extent."""
    dimensions: list[int]
    drawings: Tensor  # [e, t, c, h, w]
    ink: list[float]
    """Absolute change of a dimension's drawing, averaged over channels and the offsets but zero, summed over places."""
    sizes: Tensor  # [e, t, 8], as `effects.measured`
    effects: list[str | None]
    """What `effects.clear_effect` calls each dimension."""

    @property
    def prediction(self) -> int:
        """The network's answer for the image."""
        return int(self.lengths.argmax())  # over classes j


def tweak(
    network: CapsNet,
    images: ImageSet,
    *,
    label: int = 0,
    image: int | None = None,
    extent: float = 0.25,
    step: float = 0.05,
    dimensions: Sequence[int] | None = None,
) -> Tweaks:
    """Draw the capsule of a class with numbers from -extent to extent added to one of its dimensions at a time.

    `image` is a place in the set; without one, it is the first image of the class that the network gets right, or the
    first of the class if it gets none right. `dimensions` are all if None.
    Raises InputError for a network without decoder, a class, dimension or image that does not exist, a class without
    images, and a step that does not divide the extent.
    """
    known = _known_dimensions(network, dimensions)
    offsets = steps(extent, step)
    place, pixels, capsules = _chosen(network, images, label, image)
    drawings = _drawings(network, capsules, label, known, offsets)
    ink = _ink_moved(drawings)
    order = ink.argsort(descending=True, stable=True)
    drawings = drawings[order]
    sizes = torch.stack([measured(row) for row in drawings])
    return Tweaks(
        label=label,
        place=place,
        truth=int(images.labels[place]),
        lengths=torch.linalg.vector_norm(capsules, dim=-1).cpu(),  # over the capsule's own axis e
        image=pixels.cpu(),
        offsets=offsets,
        dimensions=[known[k] for k in order.tolist()],
        drawings=drawings,
        ink=ink[order].tolist(),
        sizes=sizes,
        effects=[clear_effect(*row, torch.tensor(offsets)) for row in zip(drawings, sizes, strict=True)],
    )


def tweaked(capsules: Tensor, label: int, dimensions: Sequence[int], offsets: Tensor) -> Tensor:
    """Add each offset to each dimension in turn of the capsule of one class, and to nothing else.

    capsules [j, e], offsets [t] → capsules [dimensions, t, j, e]
    """
    tweaks = capsules.repeat(len(dimensions), len(offsets), 1, 1)
    for tweak, dimension in zip(tweaks, dimensions, strict=True):
        tweak[:, label, dimension] += offsets
    return tweaks


def _drawings(
    network: CapsNet, capsules: Tensor, label: int, dimensions: Sequence[int], offsets: Sequence[float]
) -> Tensor:
    """Capsules [j, e] → what is drawn with each offset added to each dimension, [dimensions, t, c, h, w]."""
    drawn = torch.full((len(offsets),), label, device=capsules.device)
    with torch.inference_mode():
        rows = tweaked(capsules, label, dimensions, torch.tensor(offsets).to(capsules))
        return torch.stack([network.decode(row, drawn) for row in rows]).float().cpu()


def _ink_moved(drawings: Tensor) -> Tensor:
    """Drawings [dimensions, t, c, h, w] → the mean change from the one in the middle, [dimensions]."""
    t = drawings.shape[1]
    change = (drawings - drawings[:, t // 2, None]).abs()
    return reduce(change, "e t c h w -> e t h w", "mean").sum(dim=(1, 2, 3)) / (t - 1)  # over offsets and places


def steps(extent: float, step: float) -> list[float]:
    """The numbers from -extent to extent, a step apart; zero, in the middle, is exactly zero.

    Raises InputError where the extent is no whole number of steps, or more than 25.
    """
    if not (0 < extent < inf and 0 < step < inf):
        raise InputError(f"a tweak's range and step are above 0, not {extent:g} and {step:g}")
    count = round(extent / step) if extent / step < 2 * MOST else 2 * MOST
    if count > MOST:
        raise InputError(f"{extent:g} in steps of {step:g} are more than {MOST} each way: choose larger steps")
    if not isclose(count * step, extent, rel_tol=1e-6):
        nearest = extent / max(1, count)
        raise InputError(f"steps of {step:g} do not lead from 0 to {extent:g}: choose steps of {nearest:g}, say")
    return [extent * k / count for k in range(-count, count + 1)]


def _known_dimensions(network: CapsNet, dimensions: Sequence[int] | None) -> list[int]:
    """The dimensions to tweak, each once."""
    network.check_decoder()
    size = network.digit_caps.weight.shape[-1]
    chosen = list(dict.fromkeys(range(size) if dimensions is None else dimensions))
    if not chosen:
        raise InputError(f"there is no dimension to tweak: name some of 0 to {size - 1}")
    for dimension in chosen:
        if not 0 <= dimension < size:
            raise InputError(f"there is no dimension {dimension}: this network's capsules have 0 to {size - 1}")
    return chosen


def _chosen(network: CapsNet, images: ImageSet, label: int, image: int | None) -> tuple[int, Tensor, Tensor]:
    """The image to tweak: its place in the set, its pixels [c, h, w] and its capsules [j, e]."""
    if not 0 <= label < network.classes:
        raise InputError(f"there is no class {label}: this network knows classes 0 to {network.classes - 1}")
    if not len(images):
        raise InputError("there are no images to draw")
    if image is not None and not 0 <= image < len(images):
        raise InputError(f"there is no image {image}: the set has images 0 to {len(images) - 1}")
    places = (images.labels == label).nonzero() if image is None else torch.tensor([image])
    if not len(places):
        raise InputError(f"no image of the set is of class {label}: name the place of another image")
    seen = (_seen(network, images, place) for place in places.flatten().cpu())
    first = next(seen)
    if image is not None:
        return first
    return next((one for one in chain([first], seen) if _answer(one[2]) == label), first)


def _seen(network: CapsNet, images: ImageSet, place: Tensor) -> tuple[int, Tensor, Tensor]:
    device = next(network.parameters()).device
    pixels, _ = next(batches(images.select(place.view(1)).to(device), 1))  # [1, c, h, w]
    with torch.inference_mode():
        return int(place), pixels[0], network.encode(pixels)[0]


def _answer(capsules: Tensor) -> int:
    """The class of the longest of the capsules [j, e]."""
    return int(torch.linalg.vector_norm(capsules, dim=-1).argmax())  # over the capsule's own axis e, over classes j
