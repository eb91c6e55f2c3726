"""Dynamic routing: the parents of Procedure 1 of Sabour, Frosst and Hinton (2017), by the fastest backend.

The softmax over the parents is in `reference.py` with the paper's other lines, and in each of the fast backends, of
which `dispatch.py` chooses one.
"""

import torch
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops import Gradient
from capsnet.ops.autograd import route_without_votes
from capsnet.ops.dispatch import stores_votes
from capsnet.ops.reference import check_routing, dynamic_routing, vote
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
    """The parents of `dynamic_routing(vote(children, weight), ...)`, without storing the votes.

    `prior` [i, j], `bias` [j, e], `none_of_the_above` and `gradient` are those of `routing_trace`. Children and weight
    have one dtype, which the parents have too. Sums and logits are in float32, or in float64 if the children are, and
    prior and bias may be in that dtype. Under autocast the matrix products run in its dtype and the parents are in
    float32, but float64 stays float64. For few votes the reference is the fastest backend. Only the reference has
    second derivatives and forward-mode derivatives; the others raise InputError when one is computed.

    Raises InputError for shapes, dtypes and devices that do not match, no iteration, and an unknown gradient.

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
    dtype = sum_dtype(children)  # of sums and logits
    prior, bias = (None if t is None else t.to(dtype) for t in (prior, bias))
    if stores_votes(children, weight):
        votes = vote(children, weight).to(dtype)
        return dynamic_routing(
            votes, iterations, prior=prior, bias=bias, none_of_the_above=none_of_the_above, gradient=gradient
        )
    return route_without_votes(children, weight, prior, bias, iterations, none_of_the_above, gradient == "all")


def _check_shapes(children: Tensor, weight: Tensor, prior: Tensor | None, bias: Tensor | None) -> None:
    if children.ndim != 3 or weight.ndim != 4 or children.shape[1:] != weight.shape[::2]:
        raise InputError(
            f"children [b, i, d] and weight [i, j, d, e] do not match: {list(children.shape)} and {list(weight.shape)}"
        )
    i, j, _, e = weight.shape
    for name, tensor, shape in (("prior [i, j]", prior, (i, j)), ("bias [j, e]", bias, (j, e))):
        if tensor is not None and tensor.shape != shape:
            raise InputError(f"{name} must be {list(shape)} for this weight, not {list(tensor.shape)}")


def _check_devices(children: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != children.device:
            raise InputError(
                f"children are on {children.device} and {name} on {tensor.device}: move both to one device"
            )


def _check_dtypes(children: Tensor, weight: Tensor, prior: Tensor | None, bias: Tensor | None, cast: bool) -> None:
    """Raise InputError for tensors that are not floating-point, and for those that would be rounded silently."""
    for name, tensor in {"children": children, "weight": weight, "prior": prior, "bias": bias}.items():
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(f"{name} must be floating-point numbers, not {tensor.dtype}")
    if children.dtype != weight.dtype and not cast:
        raise InputError(f"children are {children.dtype} and weight {weight.dtype}: convert both to one dtype")
    sums = sum_dtype(children)
    for name, tensor in (("prior", prior), ("bias", bias)):
        if tensor is not None and torch.promote_types(tensor.dtype, sums) != sums:
            raise InputError(f"{name} is {tensor.dtype}, but sums are {sums} for these children: convert it to {sums}")
