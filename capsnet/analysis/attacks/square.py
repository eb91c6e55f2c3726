"""Square Attack (Linf), which uses a network's scores only, so that masked gradients do not mislead it.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via random
search" (2020, arXiv 1912.00049), Algorithms 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capsnet.analysis.attacks.pgd import Attempt, Objective, check_within

SHARE = 0.8  # of an image's area that the first squares cover: the paper's for MNIST
HALVED = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the queries after which the area is halved


@torch.no_grad()
def square_attack(objective: Objective, pixels: Tensor, labels: Tensor, epsilon: float, queries: int) -> Attempt:
    """Attack images within epsilon (Linf): change random squares by ±epsilon, and keep what raises the objective.

    It starts from vertical stripes of ±epsilon. Each image takes at most `queries` queries, and none after its success.
    Random numbers are torch's.
    pixels [b, c, h, w] in [0, 1], labels [b]
    """
    b, c, h, w = pixels.shape
    changed = (pixels + epsilon * _signs(pixels, b, c, 1, w)).clamp(0, 1)
    (best, success), taken = objective(changed, labels), torch.ones_like(labels)
    for query in range(1, queries):
        left = (~success).nonzero().flatten()
        if not len(left):
            break
        area = SHARE / 2 ** sum(query > share * queries for share in HALVED)
        window = _windows(len(left), h, w, max(1, round((area * h * w) ** 0.5)), pixels.device)
        tried = (pixels[left] + epsilon * _signs(pixels, len(left), c, 1, 1)).clamp(0, 1)
        tried = torch.where(window, tried, changed[left])
        value, reached = objective(tried, labels[left])
        better = (value > best[left]) | reached
        changed[left[better]], best[left[better]], success[left[better]] = tried[better], value[better], reached[better]
        taken[left] += 1
    check_within(changed, pixels, epsilon)
    return Attempt(changed, success, taken)


def _signs(like: Tensor, *shape: int) -> Tensor:
    """-1 and 1 at random."""
    return 2.0 * torch.randint(2, shape, device=like.device, dtype=like.dtype) - 1


def _windows(b: int, h: int, w: int, side: int, device: torch.device) -> Tensor:
    """A square with sides of `side` pixels at a random place of each image: bool [b, 1, h, w]."""
    rows, columns = (
        (torch.arange(size, device=device) - torch.randint(max(1, size - side + 1), (b, 1), device=device))
        for size in (h, w)
    )  # [b, h] and [b, w]: places counted from the square's corner
    inside = [(places >= 0) & (places < side) for places in (rows, columns)]
    return (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).unsqueeze(1)
