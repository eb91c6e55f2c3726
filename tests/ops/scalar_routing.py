"""Procedure 1 of Sabour, Frosst and Hinton (2017) with one number at a time, so that no axis can be wrong.

Numbers are tensors without axes, so that gradients flow through them.
"""

import torch
from torch import Tensor


def scalar_vote(child: Tensor, matrix: Tensor) -> list[Tensor]:
    """Eq. 2: û = W u, child [d], matrix [d, e] → a list of e numbers."""
    return [sum(child[d] * matrix[d, e] for d in range(matrix.shape[0])) for e in range(matrix.shape[1])]


def scalar_couplings(logits: list[Tensor], none_of_the_above: bool = False) -> list[Tensor]:
    """Eq. 3: one child's couplings to its parents; the none-of-the-above logit is 0."""
    powers = [logit.exp() for logit in logits]
    total = sum(powers) + (1 if none_of_the_above else 0)
    return [power / total for power in powers]


def scalar_squash(s: list[Tensor]) -> list[Tensor]:
    """Eq. 1, as printed."""
    square = sum(number * number for number in s)
    return [square / (1 + square) * number / square.sqrt() for number in s]


def scalar_routing(
    children: Tensor,
    weight: Tensor,
    iterations: int = 3,
    *,
    prior: Tensor | None = None,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: str = "all",
) -> Tensor:
    """Children [b, i, d], weight [i, j, d, e] → parents [b, j, e], each image on its own."""
    i, j, _, e = weight.shape
    prior = weight.new_zeros(i, j) if prior is None else prior
    bias = weight.new_zeros(j, e) if bias is None else bias
    images = [_route_image(image, weight, iterations, prior, bias, none_of_the_above, gradient) for image in children]
    return torch.stack(images)


def _route_image(
    children: Tensor,
    weight: Tensor,
    iterations: int,
    prior: Tensor,
    bias: Tensor,
    none_of_the_above: bool,
    gradient: str,
) -> Tensor:
    every_i, every_j, every_e = range(weight.shape[0]), range(weight.shape[1]), range(weight.shape[3])
    votes = [[scalar_vote(children[i], weight[i, j]) for j in every_j] for i in every_i]
    logits = [[prior[i, j] for j in every_j] for i in every_i]
    for _ in range(iterations):
        couplings = [scalar_couplings(logits[i], none_of_the_above) for i in every_i]
        parents = []
        for j in every_j:
            s = [sum(couplings[i][j] * votes[i][j][e] for i in every_i) + bias[j, e] for e in every_e]
            parents.append(scalar_squash(s))
        for i in every_i:
            for j in every_j:
                agreement = sum(votes[i][j][e] * parents[j][e] for e in every_e)
                logits[i][j] = logits[i][j] + (agreement.detach() if gradient == "last" else agreement)
    return torch.stack([torch.stack(parent) for parent in parents])
