"""How many images a detector flags: clean ones, attacks, noise and out-of-distribution data.

The adaptive attack knows the detector: it seeks a wrong class whose reconstruction is good, as the reconstructive
attack of Qin et al. (2019, arXiv 1907.02957).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capsnet.analysis.attacks.pgd import BATCH, FullGradient, cross_entropy, misclassify, pgd
from capsnet.analysis.detection.detector import Detector, fit_detector, reconstruct, with_decoder
from capsnet.analysis.subject import Network
from capsnet.data import Data, ImageSet
from capsnet.errors import InputError
from capsnet.hardware import seeded
from capsnet.losses import squared_errors
from capsnet.models import CapsNet

CLEAN = 1_000  # images that measure the false alarms, at most
GAP, ROOM = 0.01, 0.01  # how far beyond its two aims an attack goes: in length, and as a share of the threshold


@dataclass(frozen=True)
class ImageGroup:
    """Images of one kind, all on the CPU; of an attack, only those that fooled the network."""

    name: str
    epsilon: float | None  # the largest change of a pixel; None for images that were not attacked
    tried: int  # images that were attacked; n where nothing was attacked
    labels: Tensor | None  # [n]; None for images of none of the network's classes
    images: Tensor  # [n, c, h, w] in [0, 1]
    predictions: Tensor  # [n]
    reconstructions: Tensor  # [n, c, h, w] in [0, 1], from the capsules of the predictions
    errors: Tensor  # [n]: squared errors of the reconstructions, summed over pixels


@dataclass(frozen=True)
class Detection:
    """A detector, and the groups of images that it was measured on."""

    classes: tuple[str, ...]
    detector: Detector
    clean: ImageGroup
    suspects: tuple[ImageGroup, ...]  # attacks, noise and out-of-distribution data
    steps: int  # of PGD, and at most of the adaptive attack, each from one random start
    seed: int


def measure_detection(
    network: Network,
    data: Data,
    ood: Data | None = None,
    *,
    count: int = 100,
    epsilons: tuple[float, ...] = (0.1, 0.3),
    steps: int = 20,
    seed: int = 0,
) -> Detection:
    """Set a detector on validation images, and apply it to test images drawn by seed, attacks, noise and other data.

    Up to 1,000 test images are left as they are. The first `count` of them that the network classifies right are
    attacked; `count` images are of noise, uniform in [0, 1], and `count` are test images of the out-of-distribution
    data.
    Raises InputError for a network without decoder, sets of another image shape, and numbers out of range.
    """
    network, test = with_decoder(network), data.test
    _check(test, ood, count, epsilons, steps)
    detector = fit_detector(network, data.validation)
    generator = torch.Generator().manual_seed(seed)
    shown = test.select(torch.randperm(len(test), generator=generator)[:CLEAN])
    clean = _group(network, "clean test images", shown.images / 255, shown.labels.cpu())
    right = shown.select((clean.predictions == shown.labels.cpu())[:count].nonzero().flatten())
    suspects = [
        _group(network, name, changed, right.labels.cpu(), epsilon)
        for epsilon in epsilons
        for name, changed in attacks(network, right, detector.threshold, epsilon=epsilon, steps=steps, seed=seed)
    ]
    suspects.append(_group(network, "noise", torch.rand((count, *test.images.shape[1:]), generator=generator)))
    if ood:
        chosen = torch.randperm(len(ood.test), generator=generator)[:count]
        suspects.append(_group(network, ood.name, ood.test.images[chosen] / 255))
    return Detection(data.classes, detector, clean, tuple(suspects), steps, seed)


def _check(test: ImageSet, ood: Data | None, count: int, epsilons: tuple[float, ...], steps: int) -> None:
    if not len(test) or (ood and not len(ood.test)):
        raise InputError("there are no test images to apply the detector to")
    if ood and ood.test.images.shape[1:] != test.images.shape[1:]:
        raise InputError(f"{ood.name} has images {ood.image_shape}, the network takes {tuple(test.images.shape[1:])}")
    if count < 1 or steps < 1:
        raise InputError(f"an attack takes at least one image and one step, not {count} and {steps}")
    if not all(0 < epsilon <= 1 for epsilon in epsilons):
        raise InputError(f"an attack changes a pixel by more than 0 and at most 1, not by {epsilons}")


def _group(
    network: CapsNet, name: str, images: Tensor, labels: Tensor | None = None, epsilon: float | None = None
) -> ImageGroup:
    """Classify and reconstruct images [n, c, h, w]; of attacked ones, keep those that fool the network."""
    parts = [images.cpu(), *reconstruct(network, images)]
    if epsilon is not None and labels is not None:
        fooled = parts[1] != labels
        labels, parts = labels[fooled], [part[fooled] for part in parts]
    return ImageGroup(name, epsilon, len(images), labels, *parts)


def attacks(
    network: CapsNet, images: ImageSet, threshold: float, *, epsilon: float, steps: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Attack images in three ways, within epsilon in every pixel: FGSM, PGD and the adaptive attack.

    FGSM takes one step; PGD on the cross-entropy takes `steps`, and continues after it has fooled the network; the
    adaptive attack takes at most `steps`.
    Raises InputError for a set without images, and a network without decoder.

    Yields names and changed images [n, c, h, w] in [0, 1]
    """
    if not len(images):
        raise InputError("the network classifies none of the images right, so there is nothing to attack")
    model = FullGradient(network)
    wrong = misclassify(model, cross_entropy, stops=False)
    by_name: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "FGSM": lambda pixels, labels: pgd(wrong, pixels, labels, epsilon, 1, random_start=False).adversarial,
        "PGD": lambda pixels, labels: pgd(wrong, pixels, labels, epsilon, steps).adversarial,
        "adaptive": partial(adaptive_attack, network, threshold=threshold, epsilon=epsilon, steps=steps, seed=seed),
    }
    pixels, labels = (part.to(model.device).split(BATCH) for part in (images.images / 255, images.labels))
    for name, attack in by_name.items():
        with seeded(seed):
            changed = [attack(*batch) for batch in zip(pixels, labels, strict=True)]
        yield name, torch.cat(changed)


def adaptive_attack(
    network: CapsNet, images: Tensor, labels: Tensor, threshold: float, *, epsilon: float, steps: int, seed: int
) -> Tensor:
    """Change images so that a wrong class is predicted and the error of its reconstruction stays below a threshold.

    PGD minimises max(0, |v_true| - |v_wrong|) + max(0, error/threshold - 1): v_wrong is the longest wrong capsule, and
    error that of the reconstruction from it. It starts at random, by seed, and stops where the sum is zero.
    Raises InputError for a network without decoder, a negative epsilon and no steps.

    images [b, c, h, w] in [0, 1], labels [b] → changed images [b, c, h, w] in [0, 1], each pixel within epsilon
    """
    model: CapsNet = FullGradient(network).network  # type: ignore[assignment]

    def objective(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = _loss(model, pixels, labels, threshold)
        return -loss, loss == 0

    with seeded(seed):
        return pgd(objective, images, labels, epsilon, steps).adversarial


def _loss(network: CapsNet, images: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """The adaptive attack's loss [b]: zero where a wrong class is predicted and its reconstruction is good."""
    capsules = network.encode(images)  # [b, j, e]
    lengths = torch.linalg.vector_norm(capsules, dim=-1)  # over the capsule's own axis e
    true = labels.unsqueeze(-1)  # [b, 1]
    wrong_length, wrong = lengths.scatter(-1, true, -1.0).max(dim=-1)  # over the classes j but the true one
    errors = squared_errors(network.decode(capsules, wrong), images)  # [b]
    not_fooled = (lengths.gather(-1, true).squeeze(-1) - wrong_length + GAP).relu()
    return not_fooled + (errors / threshold - 1 + ROOM).relu()


def auc(clean: Tensor, suspects: Tensor) -> float | None:
    """Area under the ROC curve: the probability that a suspect's error [n] is above a clean image's [m].

    Ties count half. It is Mann and Whitney's statistic, computed exactly by ranks; None without suspects.
    """
    if not len(suspects):
        return None
    order = clean.sort().values
    below, not_above = (torch.searchsorted(order, suspects, right=ties).double() for ties in (False, True))
    return float((below + not_above).mean() / (2 * len(clean)))
