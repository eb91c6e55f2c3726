"""The implementations of routing that are compared: naive PyTorch, the dispatcher, and each backend by itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.linalg import vector_norm

from capsnet.errors import InputError
from capsnet.ops.dispatch import BackendName, routing_backend
from capsnet.ops.routing import route
from measuring import WrongResult
from naive import naive_route

BACKENDS = [backend for backend in get_args(BackendName) if backend != "reference"]
ROUNDINGS = 64  # an error of up to this many is accepted where naive PyTorch's is nearly zero


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


PAPER = Shape(128, 1152, 10)


class Implementation(NamedTuple):
    """A function from children and weight to parents, and the context of its forward and backward calls."""

    call: Callable[[Tensor, Tensor], Tensor]
    context: Callable[[], AbstractContextManager[None]] = nullcontext


NAIVE = Implementation(naive_route)


def implementations(shape: Shape, device: torch.device) -> dict[str, Implementation]:
    """Return what can route this shape on this device, by name: "naive", "auto" (the dispatcher), and backends."""
    found = {"naive": NAIVE, "auto": Implementation(route)}
    smallest = inputs(shape._replace(b=1, i=1, j=1), torch.float32, device)[:2]
    for backend in BACKENDS:
        try:
            with routing_backend(backend):
                route(*smallest)
        except InputError:
            continue
        found[backend] = Implementation(route, partial(routing_backend, backend))
    return found


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return children, a weight that makes parents of medium length, and the parents' gradient; allocate no more."""
    make = torch.Generator(device).manual_seed(0)
    b, i, j, d, e = shape
    children, weight, grad = (torch.empty(s, dtype=dtype, device=device) for s in ((b, i, d), (i, j, d, e), (b, j, e)))
    for tensor, std in ((children, 1), (weight, (j / (i * d)) ** 0.5), (grad, 1)):
        tensor.normal_(std=std, generator=make)
    return children.requires_grad_(), weight.requires_grad_(), grad


def step(implementation: Implementation, arguments: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return parents, and the gradients for children and weight, through all iterations."""
    children, weight, grad = arguments
    with implementation.context():
        parents = implementation.call(children, weight)
        return parents.detach(), *torch.autograd.grad(parents, (children, weight), grad)


def check(name: str, implementation: Implementation, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Compare an implementation with naive PyTorch in float64, and its error in a dtype with twice naive PyTorch's.

    Of a large shape, only a part is checked. Raises WrongResult.
    """
    part = shape._replace(b=min(shape.b, 8), i=min(shape.i, 500), j=min(shape.j, 50))
    given = inputs(part, dtype, device)
    exact = [t.detach().double() for t in given]
    doubles = exact[0].requires_grad_(), exact[1].requires_grad_(), exact[2]
    right = step(NAIVE, doubles)
    names = ("parents", "gradient for the children", "gradient for the weight")
    for what, found, wanted in zip(names, step(implementation, doubles), right, strict=True):
        if not torch.allclose(found, wanted, rtol=1e-7, atol=1e-9):
            raise WrongResult(
                f"{name} routes {tuple(part)} wrong in float64: {what} off by {_error(found, wanted):.1e}"
            )
    results = zip(names, step(implementation, given), step(NAIVE, given), right, strict=True)
    for what, found, naive, wanted in results:
        allowed = max(2 * _error(naive, wanted), ROUNDINGS * torch.finfo(dtype).eps)
        if not _error(found, wanted) <= allowed:  # also where it is NaN
            raise WrongResult(
                f"{name} routes {tuple(part)} wrong in {dtype}: {what} off by {_error(found, wanted):.1e}, "
                f"where {allowed:.1e} is allowed"
            )


def _error(found: Tensor, right: Tensor) -> float:
    """Return the length of the difference relative to what is right."""
    tiny = torch.finfo(right.dtype).tiny
    return float(vector_norm(found.double() - right) / vector_norm(right).clamp_min(tiny))
