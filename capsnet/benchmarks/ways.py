"""The ways to route that are compared: the textbook with its votes stored, the door, and each path by itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.linalg import vector_norm

from capsnet.benchmarks.measuring import WrongResult
from capsnet.errors import InputError
from capsnet.ops.dispatch import BackendName, routing_backend
from capsnet.ops.reference import dynamic_routing, vote
from capsnet.ops.routing import route
from capsnet.ops.squash import sum_dtype

PATHS = [path for path in get_args(BackendName) if path != "reference"]
FEW = 64  # roundings that no result is blamed for, where the textbook's error is next to nothing


class Shape(NamedTuple):
    """Images, children, parents and their dimensions."""

    b: int
    i: int
    j: int
    d: int = 8
    e: int = 16

    @property
    def votes(self) -> int:
        """Numbers in all votes."""
        return self.b * self.i * self.j * self.e

    @property
    def weights(self) -> int:
        """Numbers in all matrices."""
        return self.i * self.j * self.d * self.e


class Way(NamedTuple):
    """A function from children and weight to parents, and what to stand in while it and its backward are called."""

    call: Callable[[Tensor, Tensor], Tensor]
    taking: Callable[[], AbstractContextManager[None]] = nullcontext


def textbook(children: Tensor, weight: Tensor) -> Tensor:
    """Procedure 1 with all votes in memory: children [b, i, d], weight [i, j, d, e] → parents [b, j, e]."""
    return dynamic_routing(vote(children, weight).to(sum_dtype(children))).to(children.dtype)


def ways(shape: Shape, device: torch.device) -> dict[str, Way]:
    """What can route this shape here, by name; the paths that cannot are left out."""
    found = {"textbook": Way(textbook), "door": Way(route)}
    least = inputs(shape._replace(b=1, i=1, j=1), torch.float32, device)[:2]
    for path in PATHS:
        try:
            with routing_backend(path):
                route(*least)
        except InputError:
            continue
        found[path] = Way(route, partial(routing_backend, path))
    return found


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Children, a weight that makes parents of middling length, and the parents' gradient; nothing else is made."""
    make = torch.Generator(device).manual_seed(0)
    b, i, j, d, e = shape
    children, weight, grad = (torch.empty(s, dtype=dtype, device=device) for s in ((b, i, d), (i, j, d, e), (b, j, e)))
    for tensor, spread in ((children, 1), (weight, (j / (i * d)) ** 0.5), (grad, 1)):
        tensor.normal_(std=spread, generator=make)
    return children.requires_grad_(), weight.requires_grad_(), grad


def step(way: Way, arguments: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Parents, and the gradients for children and weight, through all iterations."""
    children, weight, grad = arguments
    with way.taking():
        parents = way.call(children, weight)
        return parents.detach(), *torch.autograd.grad(parents, (children, weight), grad)


def check(name: str, way: Way, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Hold a way to the textbook in float64, and its error in a dtype to twice the textbook's there.

    Of a large shape a part stands for the whole.
    Raises WrongResult.
    """
    part = shape._replace(b=min(shape.b, 8), i=min(shape.i, 500), j=min(shape.j, 50))
    given = inputs(part, dtype, device)
    exact = [t.detach().double() for t in given]
    doubles = exact[0].requires_grad_(), exact[1].requires_grad_(), exact[2]
    right = step(Way(textbook), doubles)
    kinds = ("parents", "gradient for the children", "gradient for the weight")
    for kind, found, wanted in zip(kinds, step(way, doubles), right, strict=True):
        if not torch.allclose(found, wanted, rtol=1e-7, atol=1e-9):
            raise WrongResult(
                f"{name} routes {tuple(part)} wrong in float64: {kind} off by {_error(found, wanted):.1e}"
            )
    for kind, found, twin, wanted in zip(kinds, step(way, given), step(Way(textbook), given), right, strict=True):
        allowed = max(2 * _error(twin, wanted), FEW * torch.finfo(dtype).eps)
        if not _error(found, wanted) <= allowed:  # as NaN is not
            raise WrongResult(
                f"{name} routes {tuple(part)} wrong in {dtype}: {kind} off by {_error(found, wanted):.1e}, "
                f"where {allowed:.1e} is allowed"
            )


def _error(found: Tensor, right: Tensor) -> float:
    """The length of the difference, as a share of what is right."""
    tiny = torch.finfo(right.dtype).tiny
    return float(vector_norm(found.double() - right) / vector_norm(right).clamp_min(tiny))
