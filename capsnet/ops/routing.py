"""The one door to routing: the parents of Procedure 1 of Sabour, Frosst and Hinton (2017), by the fastest path."""

import torch
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.derivatives import route_without_votes
from capsnet.ops.paths import choose_path, is_asked_for
from capsnet.ops.reference import Gradient, check_routing, dynamic_routing, vote
from capsnet.ops.squash import sum_dtype


def route(
    children: Tensor,
    weight: Tensor,
    iterations: int = 3,
    *,
    prior: Tensor | None = None,
    bias: Tensor | None = None,
    none_of_the_above: bool = False,
    gradient: Gradient = "all",
) -> Tensor:
    """The parents that `dynamic_routing(vote(children, weight), ...)` gives, with no votes stored.

    `prior` [i, j], `bias` [j, e], `leaky` and `gradient` are those of `routing_trace`. Children and weight are of one
    dtype, which the parents have too; sums and logits are in float32, or in float64 for such children, and so may
    prior and bias be. Under autocast the matrix products run in its dtype and the parents are in float32, but float64
    stays float64. Of few votes the textbook's own path is the fastest and is taken; only it has second derivatives
    and derivatives in forward mode, and the others say so when one is asked for.
    Raises InputError for shapes, dtypes and devices that do not fit, iterations below 1 and an unknown gradient.

    children [b, i, d], weight [i, j, d, e] → parents [b, j, e]
    """
    check_routing(iterations, gradient)
    _check_shapes(children, weight, prior, bias)
    _check_devices(children, weight=weight, prior=prior, bias=bias)
    device = children.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    cast = cast and torch.float64 not in (children.dtype, weight.dtype)
    _check_dtypes(children, weight, prior, bias, cast)
    if not cast:
        parents = _route(children, weight, iterations, prior, bias, none_of_the_above, gradient)
        return parents.to(children.dtype)
    children, weight = (t.to(torch.get_autocast_dtype(device)) for t in (children, weight))
    with torch.autocast(device, enabled=False):
        return _route(children, weight, iterations, prior, bias, none_of_the_above, gradient)


def _route(
    children: Tensor,
    weight: Tensor,
    iterations: int,
    prior: Tensor | None,
    bias: Tensor | None,
    none_of_the_above: bool,
    gradient: Gradient,
) -> Tensor:
    exact = sum_dtype(children)  # of sums and logits
    prior, bias = (None if t is None else t.to(exact) for t in (prior, bias))
    if is_asked_for("twin") or (not torch.compiler.is_compiling() and choose_path(children, weight) == "twin"):
        votes = vote(children, weight).to(exact)
        return dynamic_routing(
            votes, iterations, prior=prior, bias=bias, none_of_the_above=none_of_the_above, gradient=gradient
        )
    return route_without_votes(children, weight, prior, bias, iterations, none_of_the_above, gradient == "all")


def _check_shapes(children: Tensor, weight: Tensor, prior: Tensor | None, bias: Tensor | None) -> None:
    if children.ndim != 3 or weight.ndim != 4 or children.shape[1:] != weight.shape[::2]:
        raise InputError(
            f"children [b, i, d] and weight [i, j, d, e] do not fit: {list(children.shape)} and {list(weight.shape)}"
        )
    i, j, _, e = weight.shape
    for name, tensor, shape in (("prior [i, j]", prior, (i, j)), ("bias [j, e]", bias, (j, e))):
        if tensor is not None and tensor.shape != shape:
            raise InputError(f"{name} must be {list(shape)} for this weight, not {list(tensor.shape)}")


def _check_devices(children: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != children.device:
            raise InputError(
                f"children are on {children.device} and {name} on {tensor.device}: bring both to one device"
            )


def _check_dtypes(children: Tensor, weight: Tensor, prior: Tensor | None, bias: Tensor | None, cast: bool) -> None:
    """Refuse what is no floating-point number, and what would be rounded though nobody asked for it."""
    for name, tensor in {"children": children, "weight": weight, "prior": prior, "bias": bias}.items():
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(f"{name} must be floating-point numbers, not {tensor.dtype}")
    if children.dtype != weight.dtype and not cast:
        raise InputError(f"children are {children.dtype} and weight {weight.dtype}: bring both to one dtype")
    exact = sum_dtype(children)
    for name, tensor in (("prior", prior), ("bias", bias)):
        if tensor is not None and torch.promote_types(tensor.dtype, exact) != exact:
            raise InputError(f"{name} is {tensor.dtype}, but sums are {exact} for these children: bring it to that")
