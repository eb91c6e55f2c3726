"""Which path routing takes: the fastest that the hardware and the shapes allow, or one that a test asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

from torch import Tensor

from capsnet.errors import InputError

RoutingPath = Literal["twin", "streaming", "native", "triton"]
FEW = 1 << 15  # votes, numbers of them, that are so few that keeping them costs less than not to
_asked: ContextVar[RoutingPath | None] = ContextVar("_asked", default=None)


@contextmanager
def routing_path(path: RoutingPath) -> Iterator[None]:
    """Have `route` take one path, in tests and benchmarks: the textbook's twin, streaming, native or triton.

    Raises InputError for an unknown path, and `route` raises it where the path cannot run, with the reason.
    """
    if path not in get_args(RoutingPath):
        raise InputError(f"a routing path is one of {', '.join(get_args(RoutingPath))}, not {path!r}")
    token = _asked.set(path)
    try:
        yield
    finally:
        _asked.reset(token)


def choose_path(children: Tensor, weight: Tensor) -> RoutingPath:
    """The path of these children [b, i, d] and this weight [i, j, d, e].

    Raises InputError where the path that was asked for cannot run.
    """
    if (asked := _asked.get()) is not None:
        if lacking := _lacking(asked, children, weight):
            raise InputError(f"routing by {asked} cannot run: {lacking}")
        return asked
    if len(children) * weight.numel() // max(1, weight.shape[2]) <= FEW:
        return "twin"
    return next(path for path in ("triton", "native", "streaming") if not _lacking(path, children, weight))


def passes_of(path: RoutingPath) -> type[Any]:
    """The class of the passes of a path that is not the twin."""
    if path == "triton":
        from capsnet.ops import kernels as module
    elif path == "native":
        from capsnet.ops import native as module  # type: ignore[no-redef]
    else:
        from capsnet.ops import streaming as module  # type: ignore[no-redef]
    return module.Passes


def _lacking(path: RoutingPath, children: Tensor, weight: Tensor) -> str:
    """What keeps a path from running, in words; nothing where it can."""
    if path == "triton":
        return _lacking_triton(children, weight)
    if path == "native":
        from capsnet.ops.native import lacking

        return lacking(children, weight)
    return ""


def _lacking_triton(children: Tensor, weight: Tensor) -> str:
    if children.device.type != "cuda":
        return f"it takes a CUDA device, and the children are on {children.device.type}"
    try:
        from capsnet.ops.kernels import has_room
    except ImportError:
        return "triton is not installed"
    return "" if has_room(weight) else f"matrices of {weight.shape[2]} x {weight.shape[3]} have no room on a chip"
