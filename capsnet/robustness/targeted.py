"""Images made to be taken for a class of the attacker's choice, by gradient ascent on that class's score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.robustness.exposed import Exposed

MOST_CLASSES = 10
BATCH = 100


@dataclass(frozen=True)
class Targeted:
    """What became of p attacks: every source image towards every class but its own, by source, then by target."""

    classes: int
    """The first so many classes of the network are sources and targets."""
    originals: Tensor
    """[p, c, h, w] in [0, 1]: the source image of each attack."""
    adversarial: Tensor
    """[p, c, h, w] in [0, 1]: what was made of it."""
    sources: Tensor
    """int64 [p]: the true class, which the network gave to the original."""
    targets: Tensor
    """int64 [p]: the class that it was to give."""
    success: Tensor
    """bool [p]: it did."""
    steps: Tensor
    """int64 [p]: steps until success, or all of them."""

    @property
    def l2(self) -> Tensor:
        """Root of the summed squared changes of an image, [p]."""
        return torch.linalg.vector_norm((self.adversarial - self.originals).flatten(1), dim=-1)  # over c, h, w

    @property
    def linf(self) -> Tensor:
        """Largest change of a pixel, [p]."""
        return (self.adversarial - self.originals).flatten(1).abs().amax(dim=-1)  # over c, h, w

    def by_pair(self, measured: Tensor, counted: Tensor) -> list[list[float | None]]:
        """Means of a measurement [p] by source (row) and target (column), of the attacks that are counted, bool [p].

        None where there are none.
        """
        table: list[list[float | None]] = [[None] * self.classes for _ in range(self.classes)]
        for source in range(self.classes):
            for target in range(self.classes):
                here = measured[(self.sources == source) & (self.targets == target) & counted]
                table[source][target] = float(here.double().mean()) if len(here) else None
        return table


def attack_targets(
    network: CapsNet | ConvBaseline, images: ImageSet, *, per_class: int = 1, steps: int = 100, step_size: float = 0.2
) -> Targeted:
    """Attack the first images of each class that the network classifies right, towards every other class.

    A step goes uphill on the score of the target, a capsule's length or a baseline's logit, by step_size (L2), where
    pixels can still move within [0, 1]; an attack ends when the target's score is the highest, or after so many steps.
    The gradient's direction alone is used, because its size differs by orders of magnitude between networks. Beyond ten
    classes the first ten are attacked.
    Raises InputError for counts below 1, a step that is none, and a set without an image classified right.
    """
    if per_class < 1 or steps < 1 or not step_size > 0:
        raise InputError(
            f"an attack takes at least 1 image per class and 1 step, each of more than 0, "
            f"not {per_class}, {steps} and {step_size:g}"
        )
    classes = min(MOST_CLASSES, network.classes)
    model = Exposed(network).eval()
    sources = _first_right(model, images.to(next(network.parameters()).device), classes, per_class)
    pairs = [(k, target) for k in range(len(sources)) for target in range(classes) if target != sources.labels[k]]
    places, targets = torch.tensor(pairs, device=sources.labels.device).unbind(dim=-1)  # [p] each
    attacked = sources.select(places)
    originals = attacked.images.float() / 255
    adversarial, taken = _ascend(model, originals, targets, steps, step_size)
    with torch.no_grad():
        success = model(adversarial).argmax(dim=-1) == targets  # over classes j
    told = (originals, adversarial, attacked.labels, targets, success, taken)
    return Targeted(classes, *(tensor.cpu() for tensor in told))


def _first_right(model: Exposed, images: ImageSet, classes: int, per_class: int) -> ImageSet:
    """The first images of each class that are classified right, by class; few need to be looked at."""
    found: list[list[int]] = [[] for _ in range(classes)]
    start = 0
    for pixels, labels in batches(images, BATCH):
        with torch.no_grad():
            right = model(pixels).argmax(dim=-1) == labels  # over classes j
        for k, kept in enumerate(found):
            kept += (start + (right & (labels == k)).nonzero().flatten()).tolist()
        start += len(labels)
        if all(len(kept) >= per_class for kept in found):
            break
    if not any(found):
        raise InputError(f"none of the {len(images)} images is classified right, so there is nothing to attack")
    return images.select(torch.tensor([place for kept in found for place in kept[:per_class]]))


def _ascend(model: Exposed, originals: Tensor, targets: Tensor, steps: int, size: float) -> tuple[Tensor, Tensor]:
    """Go uphill on the targets' scores: originals [p, c, h, w], targets [p] → adversarial images, steps taken [p].

    An attack that has succeeded leaves the batch.
    """
    adversarial, taken = originals.clone(), torch.full_like(targets, steps)
    going = torch.arange(len(targets), device=targets.device)
    for step in range(steps):
        pixels = adversarial[going].requires_grad_()
        scores = model(pixels)  # [p, j]
        reached = scores.argmax(dim=-1) == targets[going]  # over classes j
        (slope,) = torch.autograd.grad(scores.gather(-1, targets[going, None]).sum(), pixels)
        taken[going[reached]] = step
        going, pixels, slope = going[~reached], pixels.detach()[~reached], slope[~reached]
        if not len(going):
            break
        blocked = ((pixels <= 0) & (slope < 0)) | ((pixels >= 1) & (slope > 0))  # most of a black background is
        uphill = F.normalize(slope.masked_fill(blocked, 0).flatten(1), dim=-1).view_as(slope)  # over c, h, w
        adversarial[going] = (pixels + size * uphill).clamp(0, 1)
    return adversarial, taken
