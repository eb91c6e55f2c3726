"""Images changed within a ball until a network takes them for something else: FGSM, BIM and PGD, by foolbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = 10**9  # steps: more than any attack takes
STEP = 2.5  # of epsilon, over the steps: far enough to cross the ball and turn back
ROUNDING = 1e-5  # by which float32 may leave a ball


class Attempt(NamedTuple):
    """What an attack made of b images."""

    adversarial: Tensor  # [b, c, h, w]
    steps: Tensor  # int64 [b]: gradient steps until the network was fooled, or NEVER

    @property
    def fooled(self) -> Tensor:
        """Bool [b]."""
        return self.steps < NEVER


class StopsWhenFooled:
    """Makes an attack of foolbox leave alone what is already misclassified, by giving it a gradient of zero there.

    The attack is no weaker for it, since an image that fools the network stays as it is, and costs one gradient for
    each step of an image that still resists.
    """

    def get_loss_fn(self, model: Any, labels: Any) -> None:
        """Begin an attack: foolbox asks for the loss once."""
        self.model, self.labels = model, labels.raw
        self.fooled_after = torch.full_like(self.labels, NEVER)
        self.step = 0

    def value_and_grad(self, _: None, x: Any) -> tuple[None, Any]:
        """Gradient of the cross-entropy, foolbox's own loss, for the images x [b, c, h, w] that still resist."""
        gradient = torch.zeros_like(x.raw)
        resisting = self.resisting()
        if len(resisting):
            pixels = x.raw[resisting].detach().requires_grad_()
            scores = self.model(pixels)  # [b, j]
            loss = F.cross_entropy(scores, self.labels[resisting], reduction="sum")
            (slope,) = torch.autograd.grad(loss, pixels)
            right = self.note(resisting, scores)
            gradient[resisting[right]] = slope[right]
        self.step += 1
        return None, type(x)(gradient)

    def resisting(self) -> Tensor:
        """Places of the images that are not fooled yet, int64 [m]."""
        return (self.fooled_after == NEVER).nonzero().flatten()

    def note(self, places: Tensor, scores: Tensor) -> Tensor:
        """Keep which images are fooled by now; places [b], scores [b, j] → bool [b], those that are not."""
        right = scores.argmax(dim=-1) == self.labels[places]  # over classes j
        self.fooled_after[places[~right]] = self.step
        return right


def descend(
    model: Any, pixels: Tensor, labels: Tensor, epsilon: float, attack: str = "PGD", steps: int = 15
) -> Attempt:
    """Attack images within epsilon (Linf) by FGSM, BIM or PGD, each image until it fools the network.

    BIM and PGD take steps of 2.5 · epsilon / steps, enough to cross the ball and turn (Madry et al., "Towards Deep
    Learning Models Resistant to Adversarial Attacks", 2018); PGD starts at random, by torch's generator.
    model by `foolbox_model`, pixels [b, c, h, w] in [0, 1], labels [b]
    """
    from foolbox import attacks
    from foolbox.criteria import Misclassification

    kinds: dict[str, Any] = {
        "FGSM": attacks.LinfFastGradientAttack,
        "BIM": attacks.LinfBasicIterativeAttack,
        "PGD": attacks.LinfProjectedGradientDescentAttack,
    }
    kind: Any = type(attack, (StopsWhenFooled, kinds[attack]), {})
    attacker = kind() if attack == "FGSM" else kind(steps=steps, rel_stepsize=STEP / steps)
    adversarial = attacker.run(model, pixels, Misclassification(labels), epsilon=epsilon)
    check_within(adversarial, pixels, epsilon)
    resisting = attacker.resisting()
    if len(resisting):  # where has the last step led?
        with torch.no_grad():
            attacker.note(resisting, model(adversarial[resisting]))
    return Attempt(adversarial, attacker.fooled_after)


def check_within(adversarial: Tensor, pixels: Tensor, epsilon: float) -> None:
    """Raise RuntimeError for images [b, c, h, w] outside [0, 1] or further than epsilon (Linf) from pixels."""
    reach, low, high = float((adversarial - pixels).abs().max()), float(adversarial.min()), float(adversarial.max())
    if not (reach <= epsilon + ROUNDING and low >= 0 and high <= 1):
        raise RuntimeError(f"an attack within {epsilon:g} went as far as {reach:g}, to pixels from {low:g} to {high:g}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random numbers by a seed of their own, and leave torch's generators as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
