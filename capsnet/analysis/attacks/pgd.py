"""Images changed within a ball until an aim is reached: projected gradient descent (PGD), by foolbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 2.5  # of epsilon, over the steps: far enough to cross the ball and turn back
ROUNDING = 1e-5  # by which float32 may leave a ball

Norm = Literal["Linf", "L2"]
"""The largest change of a pixel, or the root of the sum of squared changes."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Scores [b, j] and labels [b] → what an attack raises, [b]."""
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images [b, c, h, w] and labels [b] → what an attack raises, [b], and whether its aim is reached, bool [b]."""


class Attempt(NamedTuple):
    """What an attack made of b images."""

    adversarial: Tensor  # [b, c, h, w]
    done: Tensor  # bool [b]: the aim is reached


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """The largest score of a wrong class minus that of the true one: scores [b, j], labels [b] → [b].

    Unlike the cross-entropy's, its gradient does not vanish where a network is sure.
    """
    true = labels.unsqueeze(-1)  # [b, 1]
    wrong = scores.scatter(-1, true, -torch.inf).amax(dim=-1)  # over classes j but the true one
    return wrong - scores.gather(-1, true).squeeze(-1)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of scores [b, j], taken as logits, and labels [b] → [b]."""
    return F.cross_entropy(scores, labels, reduction="none")


LOSSES: dict[str, Loss] = {"margin": margin, "cross-entropy": cross_entropy}


def misclassify(model: Callable[[Tensor], Tensor], loss: Loss, *, stops: bool = True) -> Objective:
    """The aim that a network gives another class than the label; without `stops` an attack goes on after that.

    model: images [b, c, h, w] → scores [b, j]
    """

    def objective(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = model(pixels)  # [b, j]
        fooled = scores.argmax(dim=-1) != labels  # over classes j
        return loss(scores, labels), fooled & stops

    return objective


class _StopsWhenDone:
    """Makes an attack of foolbox keep an image as soon as its aim is reached, and take no further gradient for it."""

    def __init__(self, objective: Objective, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective = objective

    def get_loss_fn(self, model: Any, labels: Any) -> None:
        """Begin an attack: foolbox asks for the loss once."""
        self.labels = labels.raw
        self.left = torch.arange(len(self.labels), device=self.labels.device)  # the images that have still to move
        self.changed: Tensor | None = None

    def value_and_grad(self, _: None, x: Any) -> tuple[None, Any]:
        """Gradient for the images x [b, c, h, w] that have still to move, and zero for the others."""
        if self.changed is None:
            self.changed = x.raw.clone()
        gradient = torch.zeros_like(x.raw)
        if len(self.left):
            pixels = x.raw[self.left].detach()
            self.changed[self.left] = pixels
            loss, done = self.objective(pixels.requires_grad_(), self.labels[self.left])
            (found,) = torch.autograd.grad(loss.sum(), pixels)
            self.left, found = self.left[~done], found[~done]
            gradient[self.left] = found
        return None, type(x)(gradient)


def descend(
    objective: Objective, model: Any, pixels: Tensor, labels: Tensor, epsilon: float, steps: int, norm: Norm = "Linf"
) -> Attempt:
    """Attack images within epsilon by PGD, each image until the aim is reached.

    It starts at random in the ball, by torch's generator, and takes steps of length 2.5 · epsilon / steps, enough to
    cross the ball and turn back (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018):
    along the sign of the gradient (Linf), or along the gradient (L2).
    model by `foolbox_model`, pixels [b, c, h, w] in [0, 1], labels [b]
    """
    from foolbox.attacks import L2ProjectedGradientDescentAttack, LinfProjectedGradientDescentAttack
    from foolbox.criteria import Misclassification

    by_norm = {"Linf": LinfProjectedGradientDescentAttack, "L2": L2ProjectedGradientDescentAttack}
    kind: Any = type("PGD", (_StopsWhenDone, by_norm[norm]), {})
    attack = kind(objective, steps=steps, rel_stepsize=STEP / steps)
    last = attack.run(model, pixels, Misclassification(labels), epsilon=epsilon)
    adversarial, done = attack.changed, torch.ones_like(labels, dtype=torch.bool)
    if len(attack.left):  # where has the last step led?
        adversarial[attack.left] = last[attack.left]
        with torch.no_grad():
            done[attack.left] = objective(last[attack.left], labels[attack.left])[1]
    check_within(adversarial, pixels, epsilon, norm)
    return Attempt(adversarial, done)


def check_within(adversarial: Tensor, pixels: Tensor, epsilon: float, norm: Norm = "Linf") -> None:
    """Raise RuntimeError for images [b, c, h, w] outside [0, 1] or further than epsilon from pixels."""
    change = (adversarial - pixels).flatten(1)  # [b, c h w]
    length = torch.linalg.vector_norm(change, torch.inf if norm == "Linf" else 2, dim=-1)
    reach, low, high = float(length.max()), float(adversarial.min()), float(adversarial.max())
    if not (reach <= epsilon + ROUNDING and low >= 0 and high <= 1):
        raise RuntimeError(f"an attack within {epsilon:g} went as far as {reach:g}, to pixels from {low:g} to {high:g}")
