"""Dynamic routing as one operation, and its gradient as another: Procedure 1 over passes that never keep the votes.

The logits of Procedure 1 only ever grow by û_ij·v_j, so after some iterations they are prior_ij + û_ij·V_j with V_j the
sum of the parents so far. What routing needs of children and weight is then a few passes (`passes.py`), which
`streaming` has in plain PyTorch, `native` in C and `kernels` in Triton; all else is of the parents' size [b, j, e].
Backward goes through the iterations from the last to the first, since V_j of an iteration has a gradient from every
later one.
"""

from collections.abc import Sequence

import torch
from einops import reduce
from torch import Tensor

from capsnet.ops.compiler import is_readable
from capsnet.ops.passes import Gradients, Steps
from capsnet.ops.paths import choose_path, passes_of
from capsnet.ops.squash import sum_dtype


def route_forward(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
    through: bool,
) -> tuple[Tensor, Tensor]:
    """Route children [b, i, d] by weight [i, j, d, e]: parents [b, j, e] and every iteration's sums [r, b, j, e].

    Without `through` the agreement is a constant for the gradients. Sums and parents are in float32, or in float64 for
    such children.
    """
    passes = _passes(children, weight, prior, none_of_the_above)
    shape = (iterations, len(children), weight.shape[1], weight.shape[3])
    sums, agreed = children.new_empty(shape, dtype=sum_dtype(children)), None
    for iteration in range(iterations):
        parents, agreed = passes.forward_step(iteration, agreed, bias, sums)
    return parents, sums


# Eager mode calls the functions: an operation's first eager call imports the compiler, which takes seconds.
routed = torch.library.custom_op("capsnet::route", route_forward, mutates_args=())


@routed.register_fake
def _(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
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
    none_of_the_above: bool,
    through: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients for children, weight, prior and bias, of parents whose gradient is grad [b, j, e].

    `needs` says which of the four are computed; the others are empty.
    """
    passes, last = _passes(children, weight, prior, none_of_the_above), len(sums) - 1
    first, to_agreed = 0 if through else last, None
    agreed, to_sums = passes.backward_start(sums, grad)
    for iteration in range(last, first, -1):
        to_agreed = passes.backward_step(iteration, agreed, to_agreed, sums, to_sums)
    *needs_pass, needs_bias = needs
    found: Gradients = (None, None, None)
    if any(needs_pass):
        found = passes.input_gradients(agreed, to_sums, first, through, needs_pass)
    to_inputs = (
        sums.new_empty(0) if t is None or like is None else t.to(like.dtype).contiguous()
        for t, like in zip(found, (children, weight, prior), strict=True)
    )
    to_bias = reduce(to_sums[first:], "r b j e -> j e", "sum") if needs_bias else sums.new_empty(0)
    return *to_inputs, to_bias  # type: ignore[return-value]


routed_backward = torch.library.custom_op("capsnet::route_backward", route_backward, mutates_args=())


@routed_backward.register_fake
def _(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    sums: Tensor,
    grad: Tensor,
    none_of_the_above: bool,
    through: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    likes = children, weight, prior, sums[0, 0]
    return tuple(  # type: ignore[return-value]
        like.new_empty(like.shape) if need and like is not None else sums.new_empty(0)
        for like, need in zip(likes, needs, strict=True)
    )


def _passes(children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> Steps:
    """The passes of the path that suits these tensors; of the textbook's, which keeps votes, there are none."""
    path = choose_path(children, weight)
    plain = path == "twin" or (path == "native" and not (is_readable(children) and is_readable(weight)))
    return passes_of("streaming" if plain else path)(children, weight, prior, none_of_the_above)
