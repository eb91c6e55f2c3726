"""Dynamic routing as one operation, and its gradient as another: Procedure 1 over passes that never keep the votes.

The logits of Procedure 1 only ever grow by û_ij·v_j, so after some iterations they are prior_ij + û_ij·V_j with V_j the
sum of the parents so far. What routing needs of children and weight is then a few passes, which `streaming` has in
plain PyTorch, `native` in C and `kernels` in Triton; all else is of the parents' size [b, j, e]. Backward goes through
the iterations from the last to the first, since V_j of an iteration has a gradient from every later one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from capsnet.ops.paths import choose_path, passes_of
from capsnet.ops.squash import squash, squash_gradient, sum_dtype


def route_forward(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    leaky: bool,
    through: bool,
) -> tuple[Tensor, Tensor]:
    """Route children [b, i, d] by weight [i, j, d, e]: parents [b, j, e] and every iteration's sums [r, b, j, e].

    Without `through` the agreement is a constant for the gradients. Sums and parents are in float32, or in float64 for
    such children.
    """
    passes, sums = _passes(children, weight, prior, leaky), []
    agreed = children.new_zeros((len(children), *weight.shape[1::2]), dtype=sum_dtype(children))  # [b, j, e]
    for iteration in range(iterations):
        even = iteration == 0 and prior is None  # the couplings are the same for all
        total = passes.even_sum() / _shares(weight, leaky) if even else passes.weighted_sum(agreed)
        sums.append((total if bias is None else total + bias).contiguous())
        parents = squash(sums[-1])
        agreed = agreed + parents
    return parents, torch.stack(sums)


# Eager mode calls the functions: an operation's first eager call imports the compiler, which takes seconds.
routed = torch.library.custom_op("capsnet::route", route_forward, mutates_args=())


@routed.register_fake
def _(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    leaky: bool,
    through: bool,
) -> tuple[Tensor, Tensor]:
    shape = (children.shape[0], weight.shape[1], weight.shape[3])
    return tuple(children.new_empty(s, dtype=sum_dtype(children)) for s in (shape, (iterations, *shape)))  # type: ignore[return-value]


def route_backward(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    sums: Tensor,
    grad: Tensor,
    leaky: bool,
    through: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients for children, weight, prior and bias, of parents whose gradient is grad [b, j, e].

    `needs` says which of the four are computed; the others are empty.
    """
    passes, last = _passes(children, weight, prior, leaky), len(sums) - 1
    parents = squash(sums)
    agreed = parents.cumsum(dim=0) - parents  # over iterations: the sum of those before
    to_sums = torch.zeros_like(sums)
    to_agreed = grad.to(sums.dtype)
    for iteration in range(last, -1, -1):
        to_sums[iteration] = squash_gradient(sums[iteration], to_agreed)
        if not through or iteration == 0:
            break
        pulled = passes.pull(agreed[iteration], to_sums[iteration])
        to_agreed = pulled if iteration == last else to_agreed + pulled
    first = last if not through else 0
    even = to_sums[0] / _shares(weight, leaky) if first == 0 and prior is None else None
    some = slice(first + (even is not None), None)
    *needs_pass, needs_bias = needs
    found: list[Tensor | None] = [None] * 3
    if any(needs_pass):
        found = passes.gradients(agreed[some], to_sums[some], even, through, needs_pass)
    to_inputs = (
        sums.new_empty(0) if t is None or like is None else t.to(like.dtype).contiguous()
        for t, like in zip(found, (children, weight, prior), strict=True)
    )
    return *to_inputs, reduce(to_sums, "r b j e -> j e", "sum") if needs_bias else sums.new_empty(0)  # type: ignore[return-value]


routed_backward = torch.library.custom_op("capsnet::route_backward", route_backward, mutates_args=())


@routed_backward.register_fake
def _(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    sums: Tensor,
    grad: Tensor,
    leaky: bool,
    through: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    likes = children, weight, prior, sums[0, 0]
    return tuple(  # type: ignore[return-value]
        like.new_empty(like.shape) if need and like is not None else sums.new_empty(0)
        for like, need in zip(likes, needs, strict=True)
    )


def _passes(children: Tensor, weight: Tensor, prior: Tensor | None, leaky: bool) -> Any:
    """The passes of the path that suits these tensors; of the textbook's, which keeps votes, there are none."""
    path = choose_path(children, weight)
    return passes_of("streaming" if path == "twin" else path)(children, weight, prior, leaky)


def _shares(weight: Tensor, leaky: bool) -> int:
    """Among how many a child shares out 1: the parents, and the orphan."""
    return weight.shape[1] + leaky
