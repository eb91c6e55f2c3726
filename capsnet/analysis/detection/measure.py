"""Telling attacks by their drawings: Frosst, Sabour and Hinton, "DARCCC" (2018, arXiv 1811.06969).

An image is flagged where the drawing of the capsule that won is worse than nearly all drawings of validation images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capsnet.baselines import ConvBaseline
from capsnet.data import Data, ImageSet
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.robustness.aware import attacks
from capsnet.robustness.detector import Detector, Look, fit_detector, look, that_draws

CLEAN = 1_000  # at most so many images measure the false alarms


@dataclass(frozen=True)
class Kind:
    """Images of one kind, as the detector sees them: of an attack only those that fooled the network."""

    name: str
    epsilon: float | None
    """How far an attack may change a pixel; None for images that were not attacked."""
    tried: int
    """Images that the attack was tried on; all n where nothing was attacked."""
    seen: Look
    labels: Tensor | None
    """[n]; None for images of none of the network's classes."""


@dataclass(frozen=True)
class Detection:
    """What a detector does with clean test images, attacked ones, and images that are none of the network's."""

    classes: tuple[str, ...]
    detector: Detector
    clean: Kind
    suspects: tuple[Kind, ...]
    steps: int
    """Gradients that PGD takes, and the aware attack at most, each from one random start."""
    seed: int


def measure_detection(
    network: CapsNet | ConvBaseline,
    data: Data,
    other: Data | None = None,
    *,
    count: int = 100,
    epsilons: tuple[float, ...] = (0.1, 0.3),
    steps: int = 20,
    seed: int = 0,
) -> Detection:
    """Set a detector on validation images; show it test images drawn by seed, attacks on them, noise and other data.

    Up to 1,000 test images are shown as they are. Those of the first `count` of them that the network classifies right
    are attacked; `count` are of noise, uniform in [0, 1], and `count` are test images of the other data.
    Raises InputError for a network that does not draw, sets that it cannot see, and numbers out of range.
    """
    network, test = that_draws(network), data.test
    _check(test, other, count, epsilons, steps)
    detector = fit_detector(network, data.validation)
    draw = torch.Generator().manual_seed(seed)
    shown = test.select(torch.randperm(len(test), generator=draw)[:CLEAN])
    clean = Kind("clean test images", None, len(shown), look(network, shown.images / 255), shown.labels.cpu())
    right = shown.select((clean.seen.answers == shown.labels.cpu())[:count].nonzero().flatten())
    suspects = [kind for epsilon in epsilons for kind in _attacked(network, right, detector, epsilon, steps, seed)]
    noise = torch.rand((count, *test.images.shape[1:]), generator=draw)
    suspects.append(Kind("noise", None, count, look(network, noise), None))
    if other:
        pixels = other.test.images[torch.randperm(len(other.test), generator=draw)[:count]] / 255
        suspects.append(Kind(other.name, None, len(pixels), look(network, pixels), None))
    return Detection(data.classes, detector, clean, tuple(suspects), steps, seed)


def _check(test: ImageSet, other: Data | None, count: int, epsilons: tuple[float, ...], steps: int) -> None:
    if not len(test) or (other and not len(other.test)):
        raise InputError("there are no test images to show the detector")
    if other and other.test.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{other.name} has images {other.image_shape}, the network sees {tuple(test.images.shape[1:])}"
        )
    if count < 1 or steps < 1:
        raise InputError(f"an attack takes at least one image and one step, not {count} and {steps}")
    if not all(0 < epsilon <= 1 for epsilon in epsilons):
        raise InputError(f"an attack changes a pixel by more than 0 and at most 1, not by {epsilons}")


def _attacked(
    network: CapsNet, images: ImageSet, detector: Detector, epsilon: float, steps: int, seed: int
) -> Iterator[Kind]:
    """Attack images, and keep those that are then taken for another class."""
    if not len(images):
        raise InputError("the network classifies none of the images right, so there is nothing to attack")
    labels = images.labels.cpu()
    for name, changed in attacks(network, images, detector.threshold, epsilon=epsilon, steps=steps, seed=seed):
        seen = look(network, changed)
        fooled = seen.answers != labels
        yield Kind(name, epsilon, len(labels), Look(*(part[fooled] for part in seen)), labels[fooled])


def auc(clean: Tensor, suspects: Tensor) -> float | None:
    """How probably a suspect's error [n] is above a clean image's [m], ties counted half: the area below the ROC curve.

    It is Mann and Whitney's statistic, counted by ranks and so exact; None where there are no suspects.
    """
    if not len(suspects):
        return None
    order = clean.sort().values
    below, not_above = (torch.searchsorted(order, suspects, right=ties).double() for ties in (False, True))
    return float((below + not_above).mean() / (2 * len(clean)))
