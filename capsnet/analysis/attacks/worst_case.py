"""Accuracy under attack: what share of the images a network still gets right when each may be changed a little.

The worst case over all attacks is counted, image by image: an image is right only if every attack on it has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.hardware import seeded
from capsnet.models import CapsNet
from capsnet.robustness.descent import LOSSES, Norm, Objective, check_within, descend, margin, misclassify
from capsnet.robustness.exposed import foolbox_model
from capsnet.robustness.intervals import wilson
from capsnet.robustness.square import square_attack

Networks = dict[str, CapsNet | ConvBaseline]
BATCH = 100
EPSILONS = (0.1, 0.15, 0.2, 0.3)
LARGE = 0.5  # within this Linf distance every image can be made an even grey, so that no network can be right
DEEPFOOL_SETTINGS: dict[str, Any] = {"steps": 30, "candidates": 3}  # turns to the nearest of the likeliest classes
SQUARE, DEEPFOOL, TRANSFER = "Square", "DeepFool", "transfer"

Attack = Callable[[Tensor, float], Tensor]
"""Places of m images in a set, int64 [m], and epsilon → bool [m], those that fool the network."""


@dataclass(frozen=True)
class Effort:
    """What is spent on an image until it fools the network; further attacks are spared it then."""

    steps: tuple[int, ...] = (10, 20, 50, 100, 200)
    """Gradient steps: an attack for each of these numbers, ascending, which sets the size of its steps."""
    starts: int = 5
    """Random starts of PGD."""
    start_steps: int = 50
    """Steps from each start but the first."""
    queries: int = 500
    """Images that the Square attack shows the network at most."""


@dataclass(frozen=True)
class Ball:
    """How many of n images a network still gets right within one distance, as more attacks are added."""

    epsilon: float
    after: dict[str, int]
    """By the last attack added, in order. PGD-10 is PGD of 10 steps, "5 starts" its fifth random start."""

    @property
    def right(self) -> int:
        """Images that every attack failed on."""
        return list(self.after.values())[-1]


@dataclass(frozen=True)
class WorstCase:
    """How many of n images a network gets right under all attacks together, by how far they may go."""

    network: str
    norm: Norm
    """Pixels are in [0, 1]."""
    n: int
    clean: int
    """Images that are right unchanged."""
    balls: tuple[Ball, ...]
    """Ascending by epsilon."""

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
    """Every network under every attack, and what the attacks depend on."""

    curves: tuple[WorstCase, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def measure_attacks(
    networks: Networks,
    images: ImageSet,
    *,
    epsilons: Sequence[float] = EPSILONS,
    distances: Sequence[float] = (1.0, 2.0, 3.0),
    l2_images: int = 50,
    effort: Effort | None = None,
    seed: int = 0,
) -> Attacks:
    """Attack images within each of epsilons (Linf), and the first few within each of distances (L2).

    PGD is run with two losses for each number of steps, then from more random starts, then on the other networks, whose
    images are tried on this one. Linf: the Square attack, which takes no gradient; 0.5 is always tried, since a network
    that is right there has defeated the attacks and not the attacker. L2: what DeepFool finds within the distance.

    A ball contains every smaller one around the same image, so what was fooled within a smaller epsilon counts as
    fooled within a larger one and is not attacked again; what is misclassified unchanged is fooled at 0.
    Raises InputError for no networks or images, an epsilon outside [0, 1], a negative distance and counts below 1.
    """
    effort = effort or Effort()
    _check(networks, images, epsilons, distances, asdict(effort) | {"l2_images": l2_images})
    models = {name: foolbox_model(network) for name, network in networks.items()}
    few, curves = images.select(torch.arange(min(l2_images, len(images)))), []
    for name, model in models.items():
        others = [models[other] for other in models if other != name]
        with seeded(seed):
            attacked = _Attacked(model, others, "Linf", images, effort)
            curves.append(attacked.worst_case(name, sorted({*epsilons, LARGE} - {0})))
            attacked = _Attacked(model, others, "L2", few, effort)
            curves.append(attacked.worst_case(name, sorted({*distances} - {0})))
    used = asdict(effort) | {"losses": list(LOSSES), "step_size": "2.5 epsilon / steps"}
    used |= {"l2_images": len(few), "deepfool": DEEPFOOL_SETTINGS, "seed": seed, "foolbox": version("foolbox")}
    return Attacks(tuple(curves), used)


class _Attacked:
    """A network under attack: the images that it classifies right as they are, and what is tried on them."""

    def __init__(self, model: Any, others: list[Any], norm: Norm, images: ImageSet, effort: Effort) -> None:
        self.model, self.others, self.norm, self.effort, self.n = model, others, norm, effort, len(images)
        images = images.to(model.device)
        with torch.no_grad():
            right = [model(x).argmax(dim=-1) == y for x, y in batches(images, BATCH)]  # over classes j
        self.images = images.select(torch.cat(right).nonzero().flatten())
        self.aims = [misclassify(model, loss) for loss in LOSSES.values()]

    def worst_case(self, name: str, epsilons: list[float]) -> WorstCase:
        """Attack by ascending epsilon what has resisted so far."""
        left, ensemble, balls = torch.arange(len(self.images), device=self.model.device), self.ensemble(), []
        for epsilon in epsilons:
            after = {}
            for called, attacks in ensemble.items():
                for attack in attacks:
                    if len(left):
                        left = torch.cat([part[~attack(part, epsilon)] for part in left.split(BATCH)])
                after[called] = len(left)
            balls.append(Ball(epsilon, after))
        return WorstCase(name, self.norm, self.n, len(self.images), tuple(balls))

    def ensemble(self) -> dict[str, list[Attack]]:
        """The attacks in turn, by the names that `Ball.after` has."""
        effort = self.effort
        made = {f"PGD-{steps}": self.pgd(steps) for steps in sorted(effort.steps)}
        made |= {f"{start} starts": self.pgd(effort.start_steps) for start in range(2, effort.starts + 1)}
        made |= {SQUARE: [self.square]} if self.norm == "Linf" else {DEEPFOOL: [self.deepfool()]}
        return made | ({TRANSFER: [self.transfer(source) for source in self.others]} if self.others else {})

    def pixels(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Images [m, c, h, w] in [0, 1] and labels [m]."""
        chosen = self.images.select(places)
        return chosen.images.float() / 255, chosen.labels

    def pgd(self, steps: int) -> list[Attack]:
        """PGD with each loss."""

        def attack(places: Tensor, epsilon: float, aim: Objective) -> Tensor:
            return descend(aim, self.model, *self.pixels(places), epsilon, steps, self.norm).done

        return [partial(attack, aim=aim) for aim in self.aims]

    def square(self, places: Tensor, epsilon: float) -> Tensor:
        """Search without gradients."""
        return square_attack(self.aims[0], *self.pixels(places), epsilon, self.effort.queries).done

    def transfer(self, source: Any) -> Attack:
        """Images made for another network, by PGD that goes on after its success: these transfer better."""
        aim = misclassify(source, margin, stops=False)

        def attack(places: Tensor, epsilon: float) -> Tensor:
            pixels, labels = self.pixels(places)
            made = descend(aim, source, pixels, labels, epsilon, self.effort.start_steps, self.norm).adversarial
            with torch.no_grad():
                return self.model(made).argmax(dim=-1) != labels  # over classes j

        return attack

    def deepfool(self) -> Attack:
        """Look up whether DeepFool's image fools the network and is within epsilon (L2) of the original."""
        from foolbox.attacks import L2DeepFoolAttack
        from foolbox.criteria import Misclassification

        attack, nearest = L2DeepFoolAttack(**DEEPFOOL_SETTINGS), torch.empty(0, device=self.model.device)
        size = BATCH // 4  # small, as foolbox goes on until the last image of a batch is fooled
        for start in range(0, len(self.images), size):
            places = torch.arange(start, min(start + size, len(self.images)), device=self.model.device)
            pixels, labels = self.pixels(places)
            adversarial = attack.run(self.model, pixels, Misclassification(labels))
            check_within(adversarial, pixels, 1)
            with torch.no_grad():
                fooled = self.model(adversarial).argmax(dim=-1) != labels  # over classes j
            distance = torch.linalg.vector_norm((adversarial - pixels).flatten(1), dim=-1)  # over c, h, w
            nearest = torch.cat([nearest, distance.where(fooled, torch.inf)])
        return lambda places, epsilon: nearest[places] <= epsilon


def _check(
    networks: Networks,
    images: ImageSet,
    epsilons: Sequence[float],
    distances: Sequence[float],
    counts: dict[str, Any],
) -> None:
    if not networks or not len(images):
        raise InputError(f"an attack takes networks and images, not {len(networks)} and {len(images)} of them")
    if not epsilons:
        raise InputError("an attack takes at least one epsilon")
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise InputError(f"epsilon is a change of pixels in [0, 1], so it is from 0 to 1, not {epsilon:g}")
    if not all(distance >= 0 for distance in distances):
        raise InputError(f"an L2 distance is 0 or more, which not all of {list(distances)} are")
    for name, count in (counts | {"steps": min(counts["steps"], default=0)}).items():
        if count < 1:
            raise InputError(f"{name} is at least 1, not {count}")
