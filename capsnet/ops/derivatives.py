"""What autograd and torch.func make of routing without votes: its gradient, and one row of vmap's after the other.

PyTorch's torch.func sees no gradient of a registered operation, and its forward mode takes it for a constant. So in
eager mode two autograd functions stand before the operations; the compiler sees the operations themselves.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from capsnet.errors import InputError
from capsnet.ops.fused import route_backward, route_forward, routed, routed_backward


def route_without_votes(
    children: Tensor,
    weight: Tensor,
    prior: Tensor | None,
    bias: Tensor | None,
    iterations: int,
    none_of_the_above: bool,
    through: bool,
) -> Tensor:
    """The parents of `routed`, for autograd and torch.func.

    Raises InputError for derivatives in forward mode, and for second derivatives as they are taken.

    children [b, i, d], weight [i, j, d, e] → parents [b, j, e]
    """
    function = _Routing.apply
    if torch.compiler.is_compiling():
        function = routed
        for tensor in (children, weight, prior, bias):
            if tensor is not None and unpack_dual(tensor).tangent is not None:
                _refuse(None)
    parents, _ = function(children, weight, prior, bias, iterations, none_of_the_above, through)
    return parents


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    children, weight, prior, _, _, ctx.none_of_the_above, ctx.through = inputs
    ctx.save_for_backward(children, weight, prior, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros are made for it


def _backward(gradients: Callable[..., Any], ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:  # nothing depends on the parents
        return (None,) * 7
    children, weight, prior, sums = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])  # those of a frozen network's weights are false
    inputs = children, weight, prior, sums, grad, ctx.none_of_the_above, ctx.through, needs
    cast = torch.amp.is_autocast_available(grad.device.type)
    with torch.autocast(grad.device.type, enabled=False) if cast else nullcontext():
        found = gradients(*inputs)
    return *(t if need else None for t, need in zip(found, needs, strict=True)), None, None, None


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """A gradient that has none itself needs nothing."""


def _refuse(ctx: Any, *_: Any) -> NoReturn:
    raise InputError(
        "only the twin's routing has second derivatives and derivatives in forward mode: "
        'call it under `with routing_path("twin")`, of capsnet.ops.paths'
    )


class _Routing(torch.autograd.Function):
    """`route_forward`, with the gradient that is registered for `routed` too."""

    forward = staticmethod(route_forward)
    setup_context = staticmethod(_keep)
    jvp = staticmethod(_refuse)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _backward(_Gradients.apply, ctx, *grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _route_rows(_Routing.apply, info, in_dims, *args)


class _Gradients(torch.autograd.Function):
    """`route_backward`, which has no gradient."""

    forward = staticmethod(route_backward)
    setup_context = staticmethod(_keep_nothing)
    backward = staticmethod(_refuse)
    jvp = staticmethod(_refuse)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _one_by_one(_Gradients.apply, info, in_dims, *args)


def _route_rows(
    function: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], children: Tensor, *others: Any
) -> tuple[Any, Any]:
    """Rows v of images are one batch of images; of several weights, priors or biases each is routed on its own."""
    dim, *other_dims = in_dims
    if dim is None or any(other is not None for other in other_dims):
        return _one_by_one(function, info, in_dims, children, *others)
    parents, sums = function(rearrange(children.movedim(dim, 0), "v b i d -> (v b) i d"), *others)
    parents = rearrange(parents, "(v b) j e -> v b j e", v=info.batch_size)
    return (parents, rearrange(sums, "r (v b) j e -> v r b j e", v=info.batch_size)), (0, 0)


def _one_by_one(
    function: Callable[..., Any], info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[Any, Any]:
    rows = [
        function(*(a.select(dim, v) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)))
        for v in range(info.batch_size)
    ]
    return tuple(torch.stack(row) for row in zip(*rows, strict=True)), (0,) * len(rows[0])


routed.register_autograd(partial(_backward, routed_backward), setup_context=_keep)
routed.register_vmap(partial(_route_rows, routed))
routed_backward.register_autograd(_refuse)
routed_backward.register_vmap(partial(_one_by_one, routed_backward))
