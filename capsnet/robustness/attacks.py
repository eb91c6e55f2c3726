"""Accuracy under attack: what share of the images a network still gets right when each may be changed a little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.robustness.descent import check_within, descend, seeded
from capsnet.robustness.exposed import foolbox_model
from capsnet.robustness.intervals import wilson

Networks = dict[str, CapsNet | ConvBaseline]
BATCH = 100
EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.3)
DEEPFOOL: dict[str, Any] = {"steps": 30, "candidates": 3}  # turns to the nearest of the likeliest classes


@dataclass(frozen=True)
class Curve:
    """How many of n images a network gets right under one attack, by how far the attack may go."""

    network: str
    attack: str
    norm: str
    """Linf: the largest change of a pixel; L2: the root of the sum of squared changes; pixels are in [0, 1]."""
    n: int
    epsilons: tuple[float, ...]
    """Ascending from 0, which is no attack."""
    right: tuple[int, ...]

    @property
    def accuracies(self) -> list[float]:
        """Share of the n images that is still classified right, one for each epsilon."""
        return [right / self.n for right in self.right]

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """95 % interval of each accuracy, by Wilson's score."""
        return [wilson(right, self.n) for right in self.right]


@dataclass(frozen=True)
class Attacks:
    """Every network under every attack, and what the attacks depend on."""

    curves: tuple[Curve, ...]
    settings: dict[str, Any]


def measure_attacks(
    networks: Networks,
    images: ImageSet,
    *,
    epsilons: Sequence[float] = EPSILONS,
    distances: Sequence[float] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
    bim_steps: int = 5,
    pgd_steps: int = 15,
    deepfool_images: int = 200,
    seed: int = 0,
) -> Attacks:
    """Attack images by FGSM, BIM and PGD within each of epsilons (Linf), and the first few by DeepFool (L2).

    A ball contains every smaller one around the same image, so what was fooled within a smaller epsilon counts as
    fooled within a larger one and is not attacked again; what is misclassified unchanged is fooled at 0. DeepFool looks
    for the nearest change that fools, however far; `distances` are those that its curve is read at.
    Raises InputError for no networks or images, an epsilon outside [0, 1], a negative distance and counts below 1.
    """
    check_attack(networks, images, epsilons)
    if not all(distance >= 0 for distance in distances):
        raise InputError(f"an L2 distance is 0 or more, which not all of {list(distances)} are")
    counts = {"bim_steps": bim_steps, "pgd_steps": pgd_steps, "deepfool_images": deepfool_images}
    check_counts(**counts)
    curves = []
    for name, network in networks.items():
        seen, model = images.to(next(network.parameters()).device), foolbox_model(network)
        for attack, steps in (("FGSM", 1), ("BIM", bim_steps), ("PGD", pgd_steps)):
            with seeded(seed):
                curves.append(_within(name, model, seen, sorted({0.0, *epsilons}), attack, steps))
        few = seen.select(torch.arange(min(deepfool_images, len(seen))))
        curves.append(_deepfool(name, model, few, sorted({0.0, *distances})))
    used = counts | {"step_size": "2.5 epsilon / steps", "deepfool": DEEPFOOL, "seed": seed}
    return Attacks(tuple(curves), used | {"foolbox": version("foolbox")})


def _within(name: str, model: Any, images: ImageSet, epsilons: list[float], attack: str, steps: int) -> Curve:
    """Attack by ascending epsilon what has resisted so far."""
    resisting = select_right(model, images)
    right = [len(resisting)]
    for epsilon in epsilons[1:]:
        kept = [~descend(model, *part, epsilon, attack, steps).fooled for part in batches(resisting, BATCH)]
        if kept:
            resisting = resisting.select(torch.cat(kept).nonzero().flatten())
        right.append(len(resisting))
    return Curve(name, attack, "Linf", len(images), tuple(epsilons), tuple(right))


def select_right(model: Any, images: ImageSet) -> ImageSet:
    """The images that the network classifies right as they are, in order; model by `foolbox_model`."""
    with torch.no_grad():
        right = [model(pixels).argmax(dim=-1) == labels for pixels, labels in batches(images, BATCH)]  # over classes j
    return images.select(torch.cat(right).nonzero().flatten())


def _deepfool(name: str, model: Any, images: ImageSet, distances: list[float]) -> Curve:
    """Read off how many images were not fooled within each of the distances (L2)."""
    from foolbox.attacks import L2DeepFoolAttack
    from foolbox.criteria import Misclassification

    attack, nearest = L2DeepFoolAttack(**DEEPFOOL), []
    for pixels, labels in batches(images, BATCH // 4):  # small, as foolbox goes on until the last image is fooled
        adversarial = attack.run(model, pixels, Misclassification(labels))
        check_within(adversarial, pixels, 1)
        with torch.no_grad():
            fooled = model(adversarial).argmax(dim=-1) != labels  # over classes j
        distance = torch.linalg.vector_norm((adversarial - pixels).flatten(1), dim=-1)  # over an image's c, h, w
        nearest.append(distance.where(fooled, torch.inf))
    right = [int((torch.cat(nearest) > distance).sum()) for distance in distances]
    return Curve(name, "DeepFool", "L2", len(images), tuple(distances), tuple(right))


def check_attack(networks: Networks, images: ImageSet, epsilons: Sequence[float]) -> None:
    """Raise InputError for nothing to attack, or an epsilon (Linf) that pixels in [0, 1] cannot be changed by."""
    if not networks or not len(images):
        raise InputError(f"an attack takes networks and images, not {len(networks)} and {len(images)} of them")
    if not epsilons:
        raise InputError("an attack takes at least one epsilon")
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise InputError(f"epsilon is a change of pixels in [0, 1], so it is from 0 to 1, not {epsilon:g}")


def check_counts(**counts: int) -> None:
    """Raise InputError for a number of steps or images below 1."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is at least 1, not {count}")
