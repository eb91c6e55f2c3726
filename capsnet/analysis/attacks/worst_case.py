"""Accuracy under the worst of several attacks, each within a distance of the image.

The worst case is counted image by image: an image counts as right only if every attack on it has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from capsnet.analysis.accuracy import wilson
from capsnet.analysis.attacks.pgd import BATCH, LOSSES, FullGradient, Norm, Objective, check_within, misclassify, pgd
from capsnet.analysis.attacks.square import square_attack
from capsnet.analysis.subject import Network
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.hardware import seeded

EPSILONS = (0.1, 0.15, 0.2, 0.3)
LARGE = 0.5  # within this Linf distance every image can be made a uniform grey, so that no network can be right
DEEPFOOL_SETTINGS: dict[str, Any] = {"steps": 30, "candidates": 3}  # it goes to the nearest of the likeliest classes
SQUARE, DEEPFOOL, TRANSFER = "Square", "DeepFool", "transfer"

Attack = Callable[[Tensor, float], Tensor]
"""Places of m images in a set, int64 [m], and epsilon → bool [m], those that fool the network."""


@dataclass(frozen=True)
class Effort:
    """How many steps, starts and queries an image takes until it fools the network."""

    steps: tuple[int, ...] = (10, 20, 50, 100, 200)  # of PGD, which is run once for each of these numbers
    starts: int = 5  # random starts of PGD
    start_steps: int = 50  # steps from each start but the first
    queries: int = 500  # of the Square attack


@dataclass(frozen=True)
class Ball:
    """How many of n images a network classifies right within one distance, as more attacks are added."""

    epsilon: float
    after: dict[str, int]  # by the last attack added; PGD-10 is PGD of 10 steps, "5 starts" its fifth random start

    @property
    def right(self) -> int:
        """Images on which every attack failed."""
        return list(self.after.values())[-1]


@dataclass(frozen=True)
class WorstCase:
    """How many of n images a network classifies right under all attacks together, by epsilon."""

    network: str
    norm: Norm  # pixels are in [0, 1]
    n: int
    clean: int  # images that are right without an attack
    balls: tuple[Ball, ...]  # ascending by epsilon

    @property
    def epsilons(self) -> list[float]:
        """From 0, which is no attack."""
        return [0.0, *(ball.epsilon for ball in self.balls)]

    @property
    def right(self) -> list[int]:
        """Images that are right, one number for each epsilon."""
        return [self.clean, *(ball.right for ball in self.balls)]

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """95 % interval of each accuracy, by Wilson's score."""
        return [wilson(right, self.n) for right in self.right]


@dataclass(frozen=True)
class Attacks:
    """The worst case of every network, and the settings of the attacks."""

    curves: tuple[WorstCase, ...]
    settings: dict[str, Any]


def measure_attacks(
    networks: dict[str, Network],
    images: ImageSet,
    *,
    epsilons: Sequence[float] = EPSILONS,
    distances: Sequence[float] = (1.0, 2.0, 3.0),
    l2_images: int = 50,
    effort: Effort | None = None,
    seed: int = 0,
) -> Attacks:
    """Attack images within each of epsilons (Linf), and the first l2_images of them within each of distances (L2).

    The attacks on each network are PGD with two losses for each number of steps; PGD from more random starts; the
    Square attack, which uses no gradient (Linf), or DeepFool (L2); and transfer attacks: PGD on the other networks.
    Linf 0.5 is always tried: no network can be right there, so one that seems right has masked its gradients.

    A ball contains every smaller one around the same image, so an image that was fooled within a smaller epsilon counts
    as fooled within a larger one and is not attacked again; one that is misclassified unchanged is fooled at 0.
    Raises InputError without foolbox, for no networks or images, an epsilon outside [0, 1], a negative distance and
    counts below 1.
    """
    effort = effort or Effort()
    _check(networks, images, epsilons, distances, asdict(effort) | {"l2_images": l2_images})
    models = {name: FullGradient(network) for name, network in networks.items()}
    few, curves = images.select(torch.arange(min(l2_images, len(images)))), []
    for name, model in models.items():
        others = [models[other] for other in models if other != name]
        with seeded(seed):
            linf = _Ensemble(model, others, "Linf", images, effort)
            curves.append(linf.worst_case(name, sorted({*epsilons, LARGE} - {0})))
            l2 = _Ensemble(model, others, "L2", few, effort)
            curves.append(l2.worst_case(name, sorted({*distances} - {0})))
    settings = asdict(effort) | {"losses": list(LOSSES), "step_size": "2.5 epsilon / steps"}
    settings |= {"l2_images": len(few), "deepfool": DEEPFOOL_SETTINGS, "seed": seed, "foolbox": version("foolbox")}
    return Attacks(tuple(curves), settings)


class _Ensemble:
    """All attacks on one network in one norm, and the images that it classifies right without them."""

    def __init__(
        self, model: FullGradient, others: list[FullGradient], norm: Norm, images: ImageSet, effort: Effort
    ) -> None:
        self.model, self.others, self.norm, self.effort, self.n = model, others, norm, effort, len(images)
        images = images.to(model.device)
        with torch.no_grad():
            right = [model(x).argmax(dim=-1) == y for x, y in batches(images, BATCH)]  # over classes j
        self.images = images.select(torch.cat(right).nonzero().flatten())
        self.objectives = [misclassify(model, loss) for loss in LOSSES.values()]

    def worst_case(self, name: str, epsilons: list[float]) -> WorstCase:
        """Attack by ascending epsilon the images that have resisted so far."""
        left, attacks, balls = torch.arange(len(self.images), device=self.model.device), self.attacks(), []
        for epsilon in epsilons:
            after = {}
            for called, variants in attacks.items():
                for attack in variants:
                    if len(left):
                        left = torch.cat([part[~attack(part, epsilon)] for part in left.split(BATCH)])
                after[called] = len(left)
            balls.append(Ball(epsilon, after))
        return WorstCase(name, self.norm, self.n, len(self.images), tuple(balls))

    def attacks(self) -> dict[str, list[Attack]]:
        """The attacks in their order, by the names in `Ball.after`."""
        effort = self.effort
        made = {f"PGD-{steps}": self.pgd(steps) for steps in sorted(effort.steps)}
        made |= {f"{start} starts": self.pgd(effort.start_steps) for start in range(2, effort.starts + 1)}
        made |= {SQUARE: [self.square]} if self.norm == "Linf" else {DEEPFOOL: [self.deepfool()]}
        return made | ({TRANSFER: [partial(self.transfer, source) for source in self.others]} if self.others else {})

    def pixels(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Images [m, c, h, w] in [0, 1] and labels [m]."""
        chosen = self.images.select(places)
        return chosen.images.float() / 255, chosen.labels

    def pgd(self, steps: int) -> list[Attack]:
        """PGD with each loss."""

        def attack(objective: Objective, places: Tensor, epsilon: float) -> Tensor:
            return pgd(objective, *self.pixels(places), epsilon, steps, self.norm).success

        return [partial(attack, objective) for objective in self.objectives]

    def square(self, places: Tensor, epsilon: float) -> Tensor:
        """The Square attack."""
        return square_attack(self.objectives[0], *self.pixels(places), epsilon, self.effort.queries).success

    def transfer(self, source: FullGradient, places: Tensor, epsilon: float) -> Tensor:
        """PGD on another network, which continues after its success there, because its images then transfer better."""
        pixels, labels = self.pixels(places)
        objective = misclassify(source, LOSSES["margin"], stops=False)
        adversarial = pgd(objective, pixels, labels, epsilon, self.effort.start_steps, self.norm).adversarial
        with torch.no_grad():
            return self.model(adversarial).argmax(dim=-1) != labels  # over classes j

    def deepfool(self) -> Attack:
        """Run DeepFool once; at each epsilon (L2) look up which of its images are within it."""
        from foolbox import PyTorchModel
        from foolbox.attacks import L2DeepFoolAttack
        from foolbox.criteria import Misclassification

        attack, nearest = L2DeepFoolAttack(**DEEPFOOL_SETTINGS), torch.empty(0, device=self.model.device)
        model = PyTorchModel(self.model, bounds=(0, 1), device=self.model.device)
        everything, size = torch.arange(len(self.images), device=self.model.device), BATCH // 4
        for places in everything.split(size) if len(everything) else ():  # foolbox runs until all of a batch succeed
            pixels, labels = self.pixels(places)
            adversarial = attack.run(model, pixels, Misclassification(labels))
            check_within(adversarial, pixels, 1)
            with torch.no_grad():
                fooled = self.model(adversarial).argmax(dim=-1) != labels  # over classes j
            distance = torch.linalg.vector_norm((adversarial - pixels).flatten(1), dim=-1)  # over c, h, w
            nearest = torch.cat([nearest, distance.where(fooled, torch.inf)])
        return lambda places, epsilon: nearest[places] <= epsilon


def _check(
    networks: dict[str, Network],
    images: ImageSet,
    epsilons: Sequence[float],
    distances: Sequence[float],
    counts: dict[str, Any],
) -> None:
    if find_spec("foolbox") is None:
        raise InputError("DeepFool comes from foolbox, which is not installed: pip install foolbox")
    if not networks or not len(images):
        raise InputError(f"an attack takes networks and images, not {len(networks)} and {len(images)} of them")
    if not epsilons:
        raise InputError("an attack takes at least one epsilon")
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise InputError(f"epsilon is a change of pixels in [0, 1], so it is from 0 to 1, not {epsilon:g}")
    if not all(distance >= 0 for distance in distances):
        raise InputError(f"L2 distances are 0 or more, not {list(distances)}")
    for name, count in (counts | {"steps": min(counts["steps"], default=0)}).items():
        if count < 1:
            raise InputError(f"{name} is at least 1, not {count}")
