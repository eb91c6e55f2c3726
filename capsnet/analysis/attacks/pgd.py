"""Projected gradient descent (PGD) on the full gradient of a network.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (2018).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsnet.analysis.subject import Network
from capsnet.errors import InputError
from capsnet.models import CapsNet

BATCH = 100  # images that are attacked together
TRAVEL = 2.5  # length of all steps together, in epsilons: enough to cross the ball and turn back
ROUNDING = 1e-5  # float32 may leave a ball by this much

Norm = Literal["Linf", "L2"]
"""The largest change of a pixel, or the root of the sum of squared changes."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Scores [b, j] and labels [b] → the value that an attack increases, [b]."""
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images [b, c, h, w], labels [b] → the value that an attack increases, [b], and whether it has succeeded, bool [b]."""
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Images [m, c, h, w], their gradients and their places in the batch, int64 [m] → the images one step further."""


class FullGradient(nn.Module):
    """The scores of a copy of a network, with the full gradient for its images and none for its weights.

    A CapsNet trained with gradients through its last routing iteration only would hide most of its gradient from an
    attack, and so seem robust. Here gradients pass through all iterations.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        if isinstance(self.network, CapsNet):
            self.network.digit_caps.gradient = "all"
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.network.parameters()).device

    def forward(self, images: Tensor) -> Tensor:
        """Images [b, c, h, w] in [0, 1] → capsule lengths or a baseline's logits [b, j].

        Raises InputError for images of another shape than the network's.
        """
        if isinstance(self.network, CapsNet):
            return torch.linalg.vector_norm(self.network.encode(images), dim=-1)  # over the capsule's own axis e
        return self.network(images)


class Attempt(NamedTuple):
    """The outcome of an attack on b images."""

    adversarial: Tensor  # [b, c, h, w]
    success: Tensor  # bool [b]
    steps: Tensor  # int64 [b]: gradient steps, or queries, until success; all of them for a failure


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """The largest score of a wrong class minus that of the true class: scores [b, j], labels [b] → [b].

    Unlike the cross-entropy's, its gradient does not vanish where the network is confident.
    """
    true = labels.unsqueeze(-1)  # [b, 1]
    wrong = scores.scatter(-1, true, -torch.inf).amax(dim=-1)  # over classes j but the true one
    return wrong - scores.gather(-1, true).squeeze(-1)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of scores [b, j], taken as logits, and labels [b] → [b]."""
    return F.cross_entropy(scores, labels, reduction="none")


LOSSES: dict[str, Loss] = {"margin": margin, "cross-entropy": cross_entropy}


def misclassify(model: Callable[[Tensor], Tensor], loss: Loss, *, stops: bool = True) -> Objective:
    """The objective that a network predicts another class than the label; without `stops` an attack then continues.

    model: images [b, c, h, w] → scores [b, j]
    """

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = model(images)  # [b, j]
        fooled = scores.argmax(dim=-1) != labels  # over classes j
        return loss(scores, labels), fooled & stops

    return objective


def ascend(objective: Objective, start: Tensor, labels: Tensor, step: Step, steps: int) -> Attempt:
    """Move images along the gradient of an objective, each until it succeeds: start [b, c, h, w], labels [b]."""
    adversarial, taken = start.clone(), torch.full_like(labels, steps)
    left = torch.arange(len(labels), device=labels.device)  # places of the images that have not succeeded
    for k in range(steps):
        images = adversarial[left].requires_grad_()
        value, success = objective(images, labels[left])
        (gradient,) = torch.autograd.grad(value.sum(), images)
        taken[left[success]] = k
        left, images, gradient = left[~success], images.detach()[~success], gradient[~success]
        if not len(left):
            break
        adversarial[left] = step(images, gradient, left)
    success = torch.ones_like(labels, dtype=torch.bool)
    if len(left):
        with torch.no_grad():
            success[left] = objective(adversarial[left], labels[left])[1]
    return Attempt(adversarial, success, taken)


def pgd(
    objective: Objective,
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    norm: Norm = "Linf",
    *,
    random_start: bool = True,
) -> Attempt:
    """Attack images within epsilon by PGD, each until it succeeds.

    It starts at a random point of the ball, by torch's generator, or at the image itself, and takes steps of length
    2.5 · epsilon / steps: along the sign of the gradient (Linf) or along the gradient (L2). One Linf step from the
    image itself is FGSM (Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2014).
    Raises InputError for a negative epsilon and no steps.
    pixels [b, c, h, w] in [0, 1], labels [b]
    """
    if not (epsilon >= 0 and steps >= 1):
        raise InputError(f"an attack takes an epsilon of 0 or more and at least one step, not {epsilon:g} and {steps}")
    size = TRAVEL / steps * epsilon

    def step(images: Tensor, gradient: Tensor, places: Tensor) -> Tensor:
        centre = pixels[places]
        if norm == "Linf":
            change = (images + size * gradient.sign() - centre).clamp(-epsilon, epsilon)
        else:
            change = images + size * unit(gradient) - centre
            length = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)  # over c, h, w
            change = change * (epsilon / length.clamp(min=1e-12)).clamp(max=1)
        return (centre + change).clamp(0, 1)

    start = (pixels + _random_change(pixels, epsilon, norm)).clamp(0, 1) if random_start else pixels
    attempt = ascend(objective, start, labels, step, steps)
    check_within(attempt.adversarial, pixels, epsilon, norm)
    return attempt


def unit(gradient: Tensor) -> Tensor:
    """Each image's gradient [b, c, h, w] divided by its length; zero stays zero."""
    return F.normalize(gradient.flatten(1), dim=-1).view_as(gradient)


def _random_change(pixels: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """A change of each image [b, c, h, w], drawn uniformly from the ball of radius epsilon."""
    if norm == "Linf":
        return torch.rand_like(pixels) * (2 * epsilon) - epsilon
    b, n = pixels.flatten(1).shape
    sphere = F.normalize(torch.randn(b, n + 2, dtype=pixels.dtype, device=pixels.device), dim=-1)
    return epsilon * sphere[:, :n].view_as(pixels)  # n of a sphere's n + 2 coordinates are uniform in a ball


def check_within(adversarial: Tensor, pixels: Tensor, epsilon: float, norm: Norm = "Linf") -> None:
    """Raise RuntimeError for images [b, c, h, w] outside [0, 1] or further than epsilon from pixels."""
    change = (adversarial - pixels).flatten(1)  # [b, c h w]
    length = torch.linalg.vector_norm(change, torch.inf if norm == "Linf" else 2, dim=-1)
    reach, low, high = float(length.max()), float(adversarial.min()), float(adversarial.max())
    if not (reach <= epsilon + ROUNDING and low >= 0 and high <= 1):
        raise RuntimeError(f"an attack within {epsilon:g} went as far as {reach:g}, to pixels from {low:g} to {high:g}")
