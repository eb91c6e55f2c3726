"""What Procedure 1 and its backward ask of a backend: steps, and for most backends these are made of a few passes.

A pass needs children [b, i, d] and weight [i, j, d, e]. What a step does besides is of the parents' size [b, j, e]: it
is here in plain PyTorch, and a backend whose launches cost more than their arithmetic has steps of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from capsnet.ops.squash import squash, squash_gradient

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # for children, weight and prior


class Steps(Protocol):
    """The steps of routing children [b, i, d] by weight [i, j, d, e], with logits that start at prior [i, j].

    Of r iterations, sums [r, b, j, e] are the weighted sums of the votes, with the bias, in float32, or in float64 for
    such children; to_sums [r, b, j, e] are their gradients, and `agreed` is the sum of the parents before an iteration.
    """

    def forward_step(
        self, iteration: int, agreed: Tensor | None, bias: Tensor | None, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        """An iteration's parents [b, j, e], and `agreed` [b, j, e] with them added; its sums are written into `sums`.

        agreed is None for zeros, before the first iteration.
        """

    def backward_start(self, sums: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Agreed [r, b, j, e] of all iterations, and to_sums, of which only that of the last iteration is written.

        grad [b, j, e] is the gradient of the last iteration's parents.
        """

    def backward_step(
        self, iteration: int, agreed: Tensor, to_agreed: Tensor | None, sums: Tensor, to_sums: Tensor
    ) -> Tensor:
        """The gradient of an iteration's `agreed` [b, j, e]; the gradient of the sums before is written into `to_sums`.

        to_agreed is what this returned for the iteration after, None at the last.
        """

    def input_gradients(
        self, agreed: Tensor, to_sums: Tensor, first: int, through: bool, needs: Sequence[bool]
    ) -> Gradients:
        """The gradients for children, weight and prior of the iterations from `first` on.

        Without `through` the agreement is a constant, so that only the prior has a gradient through the couplings.
        `needs` says which of the three are computed; the others are None.
        """


class Passes(ABC):
    """`Steps` made of passes."""

    def __init__(self, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        self.starts_even = prior is None  # the first iteration's couplings are the same for all
        self.shares = weight.shape[1] + leaky  # among how many a child shares out 1: the parents, and the orphan

    @abstractmethod
    def even_sum(self) -> Tensor:
        """Σ_i û_ij [b, j, e]."""

    @abstractmethod
    def weighted_sum(self, agreed: Tensor) -> Tensor:
        """s_j = Σ_i c_ij û_ij [b, j, e], where the logits are prior_ij + û_ij·V_j and V is `agreed` [b, j, e]."""

    @abstractmethod
    def pull(self, agreed: Tensor, grad: Tensor) -> Tensor:
        """The gradient for `agreed` [b, j, e] of a weighted sum whose own gradient is `grad` [b, j, e]."""

    @abstractmethod
    def gradients(
        self, agreed: Tensor, grad: Tensor, even: Tensor | None, through: bool, needs: Sequence[bool]
    ) -> Gradients:
        """The gradients for children, weight and prior of weighted sums whose own gradients are `grad`.

        agreed and grad [t, b, j, e] are those of t iterations; `even` [b, j, e] is that of `even_sum`. `through` and
        `needs` are those of `Steps.input_gradients`.
        """

    def forward_step(
        self, iteration: int, agreed: Tensor | None, bias: Tensor | None, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Steps.forward_step`."""
        if agreed is None and self.starts_even:
            total = self.even_sum() / self.shares
        else:
            total = self.weighted_sum(torch.zeros_like(sums[iteration]) if agreed is None else agreed)
        sums[iteration] = total if bias is None else total + bias
        parents = squash(sums[iteration])
        return parents, parents if agreed is None else agreed + parents

    def backward_start(self, sums: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See `Steps.backward_start`."""
        parents, to_sums = squash(sums), torch.empty_like(sums)
        to_sums[-1] = squash_gradient(sums[-1], grad.to(sums.dtype))
        return parents.cumsum(dim=0) - parents, to_sums  # over iterations

    def backward_step(
        self, iteration: int, agreed: Tensor, to_agreed: Tensor | None, sums: Tensor, to_sums: Tensor
    ) -> Tensor:
        """See `Steps.backward_step`."""
        pulled = self.pull(agreed[iteration], to_sums[iteration])
        to_agreed = pulled if to_agreed is None else to_agreed + pulled
        to_sums[iteration - 1] = squash_gradient(sums[iteration - 1], to_agreed)
        return to_agreed

    def input_gradients(
        self, agreed: Tensor, to_sums: Tensor, first: int, through: bool, needs: Sequence[bool]
    ) -> Gradients:
        """See `Steps.input_gradients`."""
        even = to_sums[0] / self.shares if first == 0 and self.starts_even else None
        some = slice(first + (even is not None), None)
        return self.gradients(agreed[some], to_sums[some], even, through, needs)
