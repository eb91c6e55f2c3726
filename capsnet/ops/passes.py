"""The interface between Procedure 1 and its backends: steps, which most backends make of a few passes.

A pass reads children [b, i, d] and weight [i, j, d, e]. The rest of a step has the size of the parents, [b, j, e], and
is here in plain PyTorch. A backend whose launches cost more than their arithmetic has steps of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from capsnet.ops.squash import squash, squash_gradient

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # for children, weight and prior


class Backend(Protocol):
    """The steps of routing children [b, i, d] by weight [i, j, d, e], with logits that start at prior [i, j].

    For r iterations, sums [r, b, j, e] are the weighted sums of the votes, with the bias, in float32, or in float64 if
    the children are; grad_sums [r, b, j, e] are their gradients. The parent sum of an iteration is the sum of the
    parents of all iterations before it.
    """

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None: ...

    def forward_step(
        self, iteration: int, parent_sum: Tensor | None, bias: Tensor | None, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return an iteration's parents [b, j, e] and the next parent sum [b, j, e]; writes its part of `sums`.

        parent_sum is None before the first iteration, for zeros.
        """
        ...

    def backward_start(self, sums: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parent sums [r, b, j, e] of all iterations, and grad_sums with only the last iteration written.

        grad [b, j, e] is the gradient of the last iteration's parents.
        """
        ...

    def backward_step(
        self, iteration: int, parent_sums: Tensor, grad_parent_sum: Tensor | None, sums: Tensor, grad_sums: Tensor
    ) -> Tensor:
        """Return the gradient [b, j, e] of an iteration's parent sum; writes the grad_sums of the previous iteration.

        grad_parent_sum is what this returned for the next iteration, or None for the last.
        """
        ...

    def input_gradients(
        self, parent_sums: Tensor, grad_sums: Tensor, first: int, through_agreement: bool, needs: Sequence[bool]
    ) -> Gradients:
        """Return the gradients for children, weight and prior of the iterations from `first` on.

        Without `through_agreement` the agreement is a constant, and only the prior has a gradient through the
        couplings. `needs` says which of the three are computed; the others are None.
        """
        ...


class Passes(ABC):
    """A `Backend` whose steps are made of passes."""

    def __init__(self, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        self.starts_uniform = prior is None  # all couplings of the first iteration are equal
        self.softmax_size = weight.shape[1] + none_of_the_above  # logits of a child: of parents and none of the above

    @abstractmethod
    def uniform_sum(self) -> Tensor:
        """Σ_i û_ij [b, j, e]."""

    @abstractmethod
    def weighted_sum(self, parent_sum: Tensor) -> Tensor:
        """s_j = Σ_i c_ij û_ij [b, j, e] with logits prior_ij + û_ij·V_j, where V is parent_sum [b, j, e]."""

    @abstractmethod
    def agreement_gradient(self, parent_sum: Tensor, grad: Tensor) -> Tensor:
        """The gradient for parent_sum [b, j, e] of a weighted sum whose own gradient is grad [b, j, e]."""

    @abstractmethod
    def gradients(
        self,
        parent_sums: Tensor,
        grad: Tensor,
        grad_uniform: Tensor | None,
        through_agreement: bool,
        needs: Sequence[bool],
    ) -> Gradients:
        """The gradients for children, weight and prior of weighted sums whose own gradients are `grad`.

        parent_sums and grad [t, b, j, e] are those of t iterations; grad_uniform [b, j, e] is the gradient of
        `uniform_sum`. `through_agreement` and `needs` are those of `Backend.input_gradients`.
        """

    def forward_step(
        self, iteration: int, parent_sum: Tensor | None, bias: Tensor | None, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.forward_step`."""
        if parent_sum is None and self.starts_uniform:
            total = self.uniform_sum() / self.softmax_size
        else:
            total = self.weighted_sum(torch.zeros_like(sums[iteration]) if parent_sum is None else parent_sum)
        sums[iteration] = total if bias is None else total + bias
        parents = squash(sums[iteration])
        return parents, parents if parent_sum is None else parent_sum + parents

    def backward_start(self, sums: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend.backward_start`."""
        parents, grad_sums = squash(sums), torch.empty_like(sums)
        grad_sums[-1] = squash_gradient(sums[-1], grad.to(sums.dtype))
        return parents.cumsum(dim=0) - parents, grad_sums  # over iterations

    def backward_step(
        self, iteration: int, parent_sums: Tensor, grad_parent_sum: Tensor | None, sums: Tensor, grad_sums: Tensor
    ) -> Tensor:
        """See `Backend.backward_step`."""
        gradient = self.agreement_gradient(parent_sums[iteration], grad_sums[iteration])
        total = gradient if grad_parent_sum is None else grad_parent_sum + gradient
        grad_sums[iteration - 1] = squash_gradient(sums[iteration - 1], total)
        return total

    def input_gradients(
        self, parent_sums: Tensor, grad_sums: Tensor, first: int, through_agreement: bool, needs: Sequence[bool]
    ) -> Gradients:
        """See `Backend.input_gradients`."""
        grad_uniform = grad_sums[0] / self.softmax_size if first == 0 and self.starts_uniform else None
        rest = slice(first + (grad_uniform is not None), None)
        return self.gradients(parent_sums[rest], grad_sums[rest], grad_uniform, through_agreement, needs)
