"""The one door to routing: the parents of Procedure 1 of Sabour, Frosst and Hinton (2017), by the fastest path."""

import torch
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.fused import routed
from capsnet.ops.paths import choose_path
from capsnet.ops.reference import Gradient, check_routing, dynamic_routing, vote


def route(
    children: Tensor,
    weight: Tensor,
    iterations: int = 3,
    *,
    prior: Tensor | None = None,
    bias: Tensor | None = None,
    leaky: bool = False,
    gradient: Gradient = "all",
) -> Tensor:
    """The parents that `dynamic_routing(vote(children, weight), ...)` gives, with no votes stored.

    `prior` [i, j], `bias` [j, e], `leaky` and `gradient` are those of `routing_trace`. Under autocast the matrix
    products run in its dtype; the logits and the parents stay in float32. Of few votes the textbook's own path is the
    fastest and is taken. Other paths have no second derivative, and say so when one is asked for.
    Raises InputError for shapes, dtypes and devices that do not fit, iterations below 1 and an unknown gradient.

    children [b, i, d], weight [i, j, d, e] → parents [b, j, e]
    """
    check_routing(iterations, gradient)
    _check(children, weight, prior, bias)
    device = children.device.type
    if not torch.is_autocast_enabled(device) or children.dtype == torch.float64:
        parents = _route(children, weight, iterations, prior, bias, leaky, gradient)
        return parents.to(children.dtype)
    children, weight = (t.to(torch.get_autocast_dtype(device)) for t in (children, weight))
    with torch.autocast(device, enabled=False):
        return _route(children, weight, iterations, prior, bias, leaky, gradient)


def _route(
    children: Tensor,
    weight: Tensor,
    iterations: int,
    prior: Tensor | None,
    bias: Tensor | None,
    leaky: bool,
    gradient: Gradient,
) -> Tensor:
    if not torch.compiler.is_compiling() and choose_path(children, weight) == "twin":
        exact = torch.promote_types(children.dtype, torch.float32)
        votes = vote(children, weight).to(exact)
        return dynamic_routing(votes, iterations, prior=prior, bias=bias, leaky=leaky, gradient=gradient)
    parents, _ = routed(children, weight, prior, bias, iterations, leaky, gradient == "all")
    return parents


def _check(children: Tensor, weight: Tensor, prior: Tensor | None, bias: Tensor | None) -> None:
    if children.ndim != 3 or weight.ndim != 4 or children.shape[1:] != weight.shape[::2]:
        raise InputError(
            f"children [b, i, d] and weight [i, j, d, e] do not fit: {list(children.shape)} and {list(weight.shape)}"
        )
    given = {"weight": weight, "prior": prior, "bias": bias}
    for name, tensor in given.items():
        if tensor is not None and tensor.device != children.device:
            raise InputError(
                f"children are on {children.device} and {name} on {tensor.device}: bring both to one device"
            )
    for name, tensor in {"children": children, **given}.items():
        if tensor is not None and not tensor.is_floating_point():
            raise InputError(f"{name} must be floating-point numbers, not {tensor.dtype}")
    i, j, _, e = weight.shape
    for name, tensor, shape in (("prior [i, j]", prior, (i, j)), ("bias [j, e]", bias, (j, e))):
        if tensor is not None and tensor.shape != shape:
            raise InputError(f"{name} must be {list(shape)} for this weight, not {list(tensor.shape)}")
