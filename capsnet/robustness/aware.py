"""Attackers who do not know of a detector, and the one who does.

The latter seeks a wrong class that is drawn well, as the reconstructive attack of Qin et al. (2019, arXiv 1907.02957).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.losses import squared_errors
from capsnet.models import CapsNet
from capsnet.robustness.descent import STEP, seeded
from capsnet.robustness.exposed import Exposed, foolbox_model

BATCH = 100
GAP, ROOM = 0.01, 0.01  # how far beyond both aims an attack goes: in length, and as a share of the threshold


def attacks(
    network: CapsNet, images: ImageSet, threshold: float, *, epsilon: float, steps: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Attack images in three ways, none further than epsilon in any pixel: FGSM, PGD and the aware attack.

    FGSM (Goodfellow et al. 2014) takes one step, PGD (Madry et al. 2017) and the aware attack as many as `steps`.
    Raises InputError where foolbox is not installed, and for a network without decoder.

    Yields names and changed images [n, c, h, w] in [0, 1]
    """
    model = foolbox_model(network)
    from foolbox.attacks import LinfFastGradientAttack, LinfProjectedGradientDescentAttack

    pgd = LinfProjectedGradientDescentAttack(rel_stepsize=STEP / steps, steps=steps)
    by_name: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "FGSM": lambda pixels, labels: LinfFastGradientAttack().run(model, pixels, labels, epsilon=epsilon),
        "PGD": lambda pixels, labels: pgd.run(model, pixels, labels, epsilon=epsilon),
        "aware": lambda pixels, labels: aware_attack(
            network, pixels, labels, threshold, epsilon=epsilon, steps=steps, seed=seed
        ),
    }
    pixels, labels = (part.to(model.device).split(BATCH) for part in (images.images / 255, images.labels))
    for name, attack in by_name.items():
        with seeded(seed):  # foolbox draws PGD's start by PyTorch's own generator
            changed = [attack(*batch) for batch in zip(pixels, labels, strict=True)]
        yield name, torch.cat(changed)


def aware_attack(
    network: CapsNet, images: Tensor, labels: Tensor, threshold: float, *, epsilon: float, steps: int, seed: int
) -> Tensor:
    """Change images so that a wrong capsule wins and its drawing's error stays below a threshold.

    Projected descent on max(0, |v_true| - |v_wrong|) + max(0, error/threshold - 1) by the sign of its gradient, v_wrong
    being the longest wrong capsule and error that of its drawing. The start is drawn from the whole ball by seed, a
    step is 2.5 ε / steps long, and an image for which the sum is zero leaves.
    Raises InputError for a network without decoder, an epsilon outside [0, 1] and no step.

    images [b, c, h, w] in [0, 1], labels [b] → changed images [b, c, h, w] in [0, 1], no pixel further than epsilon off
    """
    if not (0 <= epsilon <= 1 and steps >= 1):
        raise InputError(f"an attack takes an epsilon from 0 to 1 and at least one step, not {epsilon:g} and {steps}")
    exposed: CapsNet = Exposed(network).network  # type: ignore[assignment]
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    changed = (images + epsilon * (2 * noise - 1)).clamp(0, 1)
    left = torch.arange(len(images), device=images.device)  # the images that have still to move
    for _ in range(steps):
        pixels = changed[left].requires_grad_()
        loss = _loss(exposed, pixels, labels[left], threshold)
        (gradient,) = torch.autograd.grad(loss.sum(), pixels)
        left, gradient = left[loss > 0], gradient[loss > 0]
        if not len(left):
            break
        moved = changed[left] - STEP * epsilon / steps * gradient.sign()
        changed[left] = moved.clamp(low[left], high[left])
    return changed


def _loss(network: CapsNet, images: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """What an attack still lacks, [b]: zero where a wrong class wins and is drawn well."""
    capsules = network.encode(images)  # [b, j, e]
    lengths = torch.linalg.vector_norm(capsules, dim=-1)  # over the capsule's own axis e
    true = labels.unsqueeze(-1)  # [b, 1]
    wrong_length, wrong = lengths.scatter(-1, true, -1.0).max(dim=-1)  # over the classes j but the true one
    drawing = network.decode(capsules, wrong)  # [b, c, h, w]
    unfooled = (lengths.gather(-1, true).squeeze(-1) - wrong_length + GAP).relu()
    return unfooled + (squared_errors(drawing, images) / threshold - 1 + ROOM).relu()
