"""Dynamic routing without stored votes, with its gradients: for autograd, torch.func and torch.compile.

The logits of Procedure 1 only ever grow by û_ij·v_j. After some iterations they are prior_ij + û_ij·V_j, where V_j is
the sum of the parents so far. Routing therefore needs only a few passes over children and weight (`passes.py`), and
everything else has the size of the parents, [b, j, e]. The backward pass visits the iterations from the last to the
first, because V_j of an iteration has a gradient from every later one.

torch.func does not see the gradient that is registered for a custom operation, and its forward mode treats the result
as a constant. In eager mode two autograd functions therefore call the code; torch.compile sees the custom operations.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from capsnet.errors import InputError
from capsnet.ops.compiler import is_readable
from capsnet.ops.dispatch import backend_class, choose_backend
from capsnet.ops.passes import Backend, Gradients
from capsnet.ops.squash import sum_dtype

InDims = tuple[int | None, ...]  # vmap's: the mapped axis of each argument, or None


def route_without_votes(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
    through_agreement: bool,
) -> Tensor:
    """The parents of `route_forward`, differentiable by autograd and torch.func.

    Raises InputError for forward-mode derivatives, and for second derivatives when they are computed.

    children [b, i, d], weight [i, j, d, e] → parents [b, j, e]
    """
    function: Callable[..., tuple[Tensor, Tensor]] = _Routing.apply
    if torch.compiler.is_compiling():
        function = route_op
        for tensor in (children, weight, prior, bias):
            if tensor is not None and unpack_dual(tensor).tangent is not None:
                _refuse(None)
    parents, _ = function(children, weight, prior, bias, iterations, none_of_the_above, through_agreement)
    return parents


def route_forward(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
    through_agreement: bool,
) -> tuple[Tensor, Tensor]:
    """Route children [b, i, d] by weight [i, j, d, e]: parents [b, j, e] and the sums [r, b, j, e] of all iterations.

    Without `through_agreement` no gradient flows through the agreement. Sums and parents are in float32, or in float64
    if the children are.
    """
    backend = _backend(children, weight, prior, none_of_the_above)
    shape = (iterations, len(children), weight.shape[1], weight.shape[3])
    sums, parent_sum = children.new_empty(shape, dtype=sum_dtype(children)), None
    for iteration in range(iterations):
        parents, parent_sum = backend.forward_step(iteration, parent_sum, bias, sums)
    return parents, sums


def route_backward(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    sums: Tensor,
    grad: Tensor,
    none_of_the_above: bool,
    through_agreement: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients for children, weight, prior and bias, where grad [b, j, e] is the gradient of the parents.

    `needs` says which of the four are computed; the others are empty tensors.
    """
    backend, last = _backend(children, weight, prior, none_of_the_above), len(sums) - 1
    first, grad_parent_sum = 0 if through_agreement else last, None
    parent_sums, grad_sums = backend.backward_start(sums, grad)
    for iteration in range(last, first, -1):
        grad_parent_sum = backend.backward_step(iteration, parent_sums, grad_parent_sum, sums, grad_sums)
    *needs_input, needs_bias = needs
    found: Gradients = (None, None, None)
    if any(needs_input):
        found = backend.input_gradients(parent_sums, grad_sums, first, through_agreement, needs_input)
    grad_children, grad_weight, grad_prior = (
        sums.new_empty(0) if t is None or like is None else t.to(like.dtype).contiguous()
        for t, like in zip(found, (children, weight, prior), strict=True)
    )
    grad_bias = reduce(grad_sums[first:], "r b j e -> j e", "sum") if needs_bias else sums.new_empty(0)
    return grad_children, grad_weight, grad_prior, grad_bias


def _backend(children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> Backend:
    """The backend for these tensors. The reference stores the votes, so streaming replaces it."""
    name = choose_backend(children, weight)
    if name == "reference" or (name == "native" and not (is_readable(children) and is_readable(weight))):
        name = "streaming"
    return backend_class(name)(children, weight, prior, none_of_the_above)


# Eager mode calls the functions: an operation's first eager call imports the compiler, which takes seconds.
route_op = torch.library.custom_op("capsnet::route", route_forward, mutates_args=())
route_backward_op = torch.library.custom_op("capsnet::route_backward", route_backward, mutates_args=())


@route_op.register_fake
def _(children: Tensor, weight: Tensor, prior: Tensor | None, bias: Tensor | None, iterations: int, *_: bool) -> Any:
    shape = (children.shape[0], weight.shape[1], weight.shape[3])
    return tuple(children.new_empty(s, dtype=sum_dtype(children)) for s in (shape, (iterations, *shape)))


@route_backward_op.register_fake
def _(children: Tensor, weight: Tensor, prior: Tensor | None, sums: Tensor, *others: Any) -> Any:
    likes, needs = (children, weight, prior, sums[0, 0]), others[-1]
    return tuple(
        like.new_empty(like.shape) if need and like is not None else sums.new_empty(0)
        for like, need in zip(likes, needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    children, weight, prior, _, _, ctx.none_of_the_above, ctx.through_agreement = inputs
    ctx.save_for_backward(children, weight, prior, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros are made for it


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """`route_backward` has no derivative, so nothing is saved."""


def _backward(gradients: Callable[..., Any], ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:  # nothing depends on the parents
        return (None,) * 7
    children, weight, prior, sums = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])  # false for the weights of a frozen network
    inputs = children, weight, prior, sums, grad, ctx.none_of_the_above, ctx.through_agreement, needs
    has_autocast = torch.amp.is_autocast_available(grad.device.type)
    with torch.autocast(grad.device.type, enabled=False) if has_autocast else nullcontext():
        found = gradients(*inputs)
    return *(t if need else None for t, need in zip(found, needs, strict=True)), None, None, None


def _refuse(ctx: Any, *_: Any) -> NoReturn:
    raise InputError(
        "only the reference backend has second derivatives and forward-mode derivatives: "
        'route under `with routing_backend("reference")`, of capsnet.ops.dispatch'
    )


class _Routing(torch.autograd.Function):
    """`route_forward`, with the gradient that is registered for `route_op` too."""

    forward = staticmethod(route_forward)
    setup_context = staticmethod(_save)
    jvp = staticmethod(_refuse)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _backward(_Gradients.apply, ctx, *grads)

    @staticmethod
    def vmap(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
        return _map_routing(_Routing.apply, info, in_dims, *args)


class _Gradients(torch.autograd.Function):
    """`route_backward`, which has no gradient of its own."""

    forward = staticmethod(route_backward)
    setup_context = staticmethod(_save_nothing)
    backward = staticmethod(_refuse)
    jvp = staticmethod(_refuse)

    @staticmethod
    def vmap(info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
        return _map_one_by_one(_Gradients.apply, info, in_dims, *args)


def _map_routing(
    function: Callable[..., Any], info: Any, in_dims: InDims, children: Tensor, *others: Any
) -> tuple[Any, Any]:
    """Route mapped children as one batch; with a mapped weight, prior or bias, route each example on its own."""
    dim, *other_dims = in_dims
    if dim is None or any(other is not None for other in other_dims):
        return _map_one_by_one(function, info, in_dims, children, *others)
    parents, sums = function(rearrange(children.movedim(dim, 0), "v b i d -> (v b) i d"), *others)
    parents = rearrange(parents, "(v b) j e -> v b j e", v=info.batch_size)
    return (parents, rearrange(sums, "r (v b) j e -> v r b j e", v=info.batch_size)), (0, 0)


def _map_one_by_one(function: Callable[..., Any], info: Any, in_dims: InDims, *args: Any) -> tuple[Any, Any]:
    rows = [
        function(*(a.select(dim, v) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)))
        for v in range(info.batch_size)
    ]
    return tuple(torch.stack(row) for row in zip(*rows, strict=True)), (0,) * len(rows[0])


route_op.register_autograd(partial(_backward, route_backward_op), setup_context=_save)
route_op.register_vmap(partial(_map_routing, route_op))
route_backward_op.register_autograd(_refuse)
route_backward_op.register_vmap(partial(_map_one_by_one, route_backward_op))
