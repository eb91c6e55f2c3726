"""Attackers who do not know of a detector, and the one who does.

The latter seeks a wrong class that is drawn well, as the reconstructive attack of Qin et al. (2019, arXiv 1907.02957).
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.hardware import seeded
from capsnet.losses import squared_errors
from capsnet.models import CapsNet
from capsnet.robustness.descent import cross_entropy, descend, misclassify
from capsnet.robustness.exposed import Exposed, foolbox_model

BATCH = 100
GAP, ROOM = 0.01, 0.01  # how far beyond both aims an attack goes: in length, and as a share of the threshold


def attacks(
    network: CapsNet, images: ImageSet, threshold: float, *, epsilon: float, steps: int, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Attack images in three ways, none further than epsilon in any pixel: FGSM, PGD and the aware attack.

    FGSM (Goodfellow et al. 2014) takes one step, PGD on the cross-entropy (Madry et al. 2017), which goes on after it
    has fooled the network, and the aware attack as many as `steps`.
    Raises InputError where foolbox is not installed, and for a network without decoder.

    Yields names and changed images [n, c, h, w] in [0, 1]
    """
    model = foolbox_model(network)
    from foolbox.attacks import LinfFastGradientAttack

    away = misclassify(model, cross_entropy, stops=False)
    by_name: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "FGSM": lambda pixels, labels: LinfFastGradientAttack().run(model, pixels, labels, epsilon=epsilon),
        "PGD": lambda pixels, labels: descend(away, model, pixels, labels, epsilon, steps).adversarial,
        "aware": partial(aware_attack, network, threshold=threshold, epsilon=epsilon, steps=steps, seed=seed),
    }
    pixels, labels = (part.to(model.device).split(BATCH) for part in (images.images / 255, images.labels))
    for name, attack in by_name.items():
        with seeded(seed):
            changed = [attack(*batch) for batch in zip(pixels, labels, strict=True)]
        yield name, torch.cat(changed)


def aware_attack(
    network: CapsNet, images: Tensor, labels: Tensor, threshold: float, *, epsilon: float, steps: int, seed: int
) -> Tensor:
    """Change images so that a wrong capsule wins and its drawing's error stays below a threshold.

    PGD, down max(0, |v_true| - |v_wrong|) + max(0, error/threshold - 1), v_wrong being the longest wrong capsule and
    error that of its drawing. It starts at random, by seed, and an image for which the sum is zero is left as it is.
    Raises InputError for a network without decoder, an epsilon outside [0, 1] and no step.

    images [b, c, h, w] in [0, 1], labels [b] → changed images [b, c, h, w] in [0, 1], no pixel further than epsilon off
    """
    if not (0 <= epsilon <= 1 and steps >= 1):
        raise InputError(f"an attack takes an epsilon from 0 to 1 and at least one step, not {epsilon:g} and {steps}")
    exposed: CapsNet = Exposed(network).network  # type: ignore[assignment]

    def aim(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        lacking = _loss(exposed, pixels, labels, threshold)
        return -lacking, lacking == 0

    with seeded(seed):
        return descend(aim, foolbox_model(network), images, labels, epsilon, steps).adversarial


def _loss(network: CapsNet, images: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """What an attack still lacks, [b]: zero where a wrong class wins and is drawn well."""
    capsules = network.encode(images)  # [b, j, e]
    lengths = torch.linalg.vector_norm(capsules, dim=-1)  # over the capsule's own axis e
    true = labels.unsqueeze(-1)  # [b, 1]
    wrong_length, wrong = lengths.scatter(-1, true, -1.0).max(dim=-1)  # over the classes j but the true one
    drawing = network.decode(capsules, wrong)  # [b, c, h, w]
    unfooled = (lengths.gather(-1, true).squeeze(-1) - wrong_length + GAP).relu()
    return unfooled + (squared_errors(drawing, images) / threshold - 1 + ROOM).relu()
