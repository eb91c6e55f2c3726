"""Signs that attacks fail because a network's gradient leads them astray, and not because the network holds.

A gradient that is hidden, not removed, makes a network look robust; it betrays itself in that other attacks do better
than those by gradient (Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.robustness.attacks import BATCH, Networks, check_attack, check_counts, select_right
from capsnet.robustness.descent import NEVER, STEP, check_within, descend, seeded
from capsnet.robustness.exposed import foolbox_model

SLACK = 0.05  # share of the images: what is still called no difference
ITERATIONS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # where the accuracy is told: at 0 of the random start alone


@dataclass(frozen=True)
class Check:
    """One check of one network: accuracies, and whether they are as they are without masking."""

    network: str
    name: str
    rule: str
    n: int
    accuracies: dict[str, float]
    """Share of the n images still classified right, by what the check varies."""
    passed: bool

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        told = ", ".join(f"{name}: {100 * accuracy:.0f} %" for name, accuracy in self.accuracies.items())
        sign = "no sign of masking" if self.passed else "a sign of masking"
        return f"{self.network}, {self.name}: {sign} (n = {self.n}; {told})"


@dataclass(frozen=True)
class Probe:
    """What the checks are made with; ε is the largest change of a pixel (Linf), pixels in [0, 1]."""

    epsilon: float = 0.1
    large: float = 0.5
    """An ε within which every image can be made an even grey, so that no network can be right."""
    steps: int = 20
    """Iterations of PGD."""
    starts: int = 3
    """Random starts of PGD."""
    few: int = 10
    """Images for the search without gradients, which asks the network a thousand times for each."""
    search_steps: int = 5
    """Steps of that search."""
    seed: int = 0


@dataclass(frozen=True)
class Masking:
    """Every check of every network, and what the checks were made with."""

    checks: tuple[Check, ...]
    probe: Probe


def measure_masking(networks: Networks, images: ImageSet, probe: Probe | None = None) -> Masking:
    """Check networks for masked gradients, by PGD on images and by what should do no better than it.

    Raises InputError for no networks or images, an epsilon outside [0, 1], counts below 1, and for images that a
    network all takes for the same class.
    """
    probe = probe or Probe()
    check_attack(networks, images, (probe.epsilon, probe.large))
    check_counts(steps=probe.steps, starts=probe.starts, few=probe.few, search_steps=probe.search_steps)
    seen = images.to(next(parameter.device for network in networks.values() for parameter in network.parameters()))
    models = {name: foolbox_model(network) for name, network in networks.items()}
    checks = []
    for name, model in models.items():
        others = {other: models[other] for other in models if other != name}
        with seeded(probe.seed):
            checks += [
                _more_iterations(name, model, seen, probe),
                _more_starts(name, model, seen, probe),
                *_transfer(name, model, others, seen, probe),
                _without_gradients(name, model, seen, probe),
                _large_epsilon(name, model, seen, probe),
            ]
    return Masking(tuple(checks), probe)


def _more_iterations(name: str, model: Any, images: ImageSet, probe: Probe) -> Check:
    rule = f"more iterations fool more, until all are fooled; the last half of them at most {100 * SLACK:g} % more"
    fooled_after = _fooled_after(model, images, probe.epsilon, probe.steps)
    told = {k for k in ITERATIONS if k < probe.steps} | {probe.steps // 2, probe.steps}
    left = {k: int((fooled_after > k).sum()) / len(images) for k in sorted(told)}
    last = left[probe.steps]
    passed = (last < left[0] or not last) and left[probe.steps // 2] - last <= SLACK
    return Check(name, "PGD iterations", rule, len(images), {str(k): share for k, share in left.items()}, passed)


def _more_starts(name: str, model: Any, images: ImageSet, probe: Probe) -> Check:
    rule = f"{probe.starts} random starts fool at most {100 * SLACK:g} % more than one"
    resisting, left = select_right(model, images), []
    for _ in range(probe.starts):
        fooled = _fooled_after(model, resisting, probe.epsilon, probe.steps) < NEVER
        resisting = resisting.select((~fooled).nonzero().flatten())
        left.append(len(resisting) / len(images))
    accuracies = {str(k): share for k, share in enumerate(left, start=1)}
    return Check(name, "random starts of PGD", rule, len(images), accuracies, left[0] - left[-1] <= SLACK)


def _transfer(name: str, model: Any, others: dict[str, Any], images: ImageSet, probe: Probe) -> list[Check]:
    """Try images made on other networks, by PGD that does not stop at the first success: these transfer better."""
    if not others:
        return []
    from foolbox.attacks import LinfProjectedGradientDescentAttack
    from foolbox.criteria import Misclassification

    rule = "images made for another network fool no more than its own"
    attack = LinfProjectedGradientDescentAttack(steps=probe.steps, rel_stepsize=STEP / probe.steps)
    own = _fooled_after(model, images, probe.epsilon, probe.steps) == NEVER
    accuracies = {"its own": float(own.double().mean())}
    for other, source in others.items():
        right = 0
        for pixels, labels in batches(images, BATCH):
            made = attack.run(source, pixels, Misclassification(labels), epsilon=probe.epsilon)
            check_within(made, pixels, probe.epsilon)
            right += int((_answers(model, made) == labels).sum())
        accuracies[other] = right / len(images)
    passed = all(accuracy >= accuracies["its own"] for accuracy in accuracies.values())
    return [Check(name, "images made for", rule, len(images), accuracies, passed)]


def _without_gradients(name: str, model: Any, images: ImageSet, probe: Probe) -> Check:
    """Compare with HopSkipJump, which asks for classes only, from images of another class towards the attacked one."""
    from foolbox.attacks import HopSkipJumpAttack
    from foolbox.criteria import Misclassification

    rule = "a search without gradients fools no more than PGD"
    few = images.select(torch.arange(min(probe.few, len(images))))
    answers = torch.cat([_answers(model, pixels) for pixels, _ in batches(images, BATCH)])
    pixels, labels = images.images.float() / 255, few.labels
    others = answers[None] != labels[:, None]  # [few, n]
    if not bool(others.any(dim=-1).all()):  # over the n images
        raise InputError(f"{name} takes all {len(images)} images for one class: check it on images of several classes")
    starts = pixels[others.float().argmax(dim=-1)]  # the first of another class
    attack = HopSkipJumpAttack(steps=probe.search_steps, constraint="linf")
    found = attack.run(model, pixels[: len(few)], Misclassification(labels), starting_points=starts)
    check_within(found, pixels[: len(few)], 1)
    reach = (found - pixels[: len(few)]).flatten(1).abs().amax(dim=-1)  # over c, h, w
    searched = float((reach > probe.epsilon).double().mean())
    own = float((_fooled_after(model, few, probe.epsilon, probe.steps) == NEVER).double().mean())
    return Check(name, "no gradients", rule, len(few), {"PGD": own, "HopSkipJump": searched}, searched >= own)


def _large_epsilon(name: str, model: Any, images: ImageSet, probe: Probe) -> Check:
    rule = f"a large epsilon leaves at most {100 * SLACK:g} %"
    left = float((_fooled_after(model, images, probe.large, probe.steps) == NEVER).double().mean())
    return Check(name, "large epsilon", rule, len(images), {f"{probe.large:g}": left}, left <= SLACK)


def _fooled_after(model: Any, images: ImageSet, epsilon: float, steps: int) -> Tensor:
    """Iterations of PGD until each image fooled the network, int64 [n]; -1 for one misclassified as it is, or NEVER."""
    taken = [images.labels[:0]]
    for pixels, labels in batches(images, BATCH):
        attempt = descend(model, pixels, labels, epsilon, steps=steps)
        taken.append(attempt.steps.where(_answers(model, pixels) == labels, -1))
    return torch.cat(taken)


def _answers(model: Any, pixels: Tensor) -> Tensor:
    """Classes of images [b, c, h, w] → int64 [b]."""
    with torch.no_grad():
        return model(pixels).argmax(dim=-1)  # over classes j
