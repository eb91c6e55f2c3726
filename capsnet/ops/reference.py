"""Dynamic routing as printed in the paper: Procedure 1 of Sabour, Frosst and Hinton (2017), line by line."""

from collections.abc import Iterator
from typing import get_args

import torch
from einops import einsum
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops import Gradient
from capsnet.ops.squash import squash


def vote(children: Tensor, weight: Tensor) -> Tensor:
    """Every child's prediction for every parent: û_ij = W_ij u_i (Eq. 2).

    children [b, i, d], weight [i, j, d, e] → votes [b, i, j, e]
    """
    return einsum(children, weight, "b i d, i j d e -> b i j e")


def couple(logits: Tensor, none_of_the_above: bool = False) -> Tensor:
    """The coupling coefficients: a softmax over each child's parents (Eq. 3).

    `none_of_the_above` adds a logit of 0 that belongs to no parent; a child's couplings then sum to less than 1.

    logits [b, i, j] → couplings [b, i, j]
    """
    if not none_of_the_above:
        return logits.softmax(dim=-1)  # over parents j
    extra = logits.new_zeros(*logits.shape[:-1], 1)
    return torch.cat([logits, extra], dim=-1).softmax(dim=-1)[..., :-1]  # over parents j and none of the above


def routing_trace(
    votes: Tensor,
    iterations: int = 3,
    *,
    prior: Tensor | None = None,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "all",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Procedure 1, line by line: the couplings and the parents of every iteration.

    `prior` [i, j] holds the initial logits (None for zeros, as printed). `bias` [j, e] is added to the weighted sum in
    every iteration, as in the authors' code. `none_of_the_above` is that of `couple`. `gradient="last"` treats the
    agreement as a constant, so that gradients flow through the last weighted sum only.

    Raises InputError for fewer than one iteration and for an unknown gradient.

    votes [b, i, j, e] → couplings [b, i, j], parents [b, j, e] of each iteration in turn
    """
    check_routing(iterations, gradient)
    return _iterations(votes, iterations, prior, bias, none_of_the_above, gradient)


def _iterations(
    votes: Tensor,
    iterations: int,
    prior: Tensor | None,
    bias: Tensor | None,
    none_of_the_above: bool,
    gradient: Gradient,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The generator of `routing_trace`, whose arguments have been checked."""
    logits = votes.new_zeros(votes.shape[:3])  # line 2
    if prior is not None:
        logits = logits + prior
    for iteration in range(1, iterations + 1):  # line 3
        couplings = couple(logits, none_of_the_above)  # line 4: each child distributes 1 over its parents
        total = einsum(couplings, votes, "b i j, b i j e -> b j e")  # line 5
        parents = squash(total if bias is None else total + bias)  # line 6
        yield couplings, parents
        if iteration < iterations:
            agreement = einsum(votes, parents, "b i j e, b j e -> b i j")  # line 7
            logits = logits + (agreement.detach() if gradient == "last" else agreement)


def dynamic_routing(
    votes: Tensor,
    iterations: int = 3,
    *,
    prior: Tensor | None = None,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "all",
) -> Tensor:
    """Procedure 1: the parents after `iterations` weighted sums; the options are those of `routing_trace`.

    votes [b, i, j, e] → parents [b, j, e]
    """
    *_, (_, parents) = routing_trace(
        votes, iterations, prior=prior, bias=bias, none_of_the_above=none_of_the_above, gradient=gradient
    )
    return parents


def check_routing(iterations: int, gradient: str) -> None:
    """Raise InputError for fewer than one iteration and for an unknown gradient."""
    if iterations < 1:
        raise InputError(f"routing takes at least one iteration, not {iterations}")
    if gradient not in get_args(Gradient):
        raise InputError(f"gradient is 'all' or 'last', not {gradient!r}")
