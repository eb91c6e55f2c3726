"""Which path routing takes: the fastest that the hardware and the shapes allow, or one that a test asks for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.passes import Steps

RoutingPath = Literal["twin", "streaming", "native", "triton"]
FEW_VOTES = 1 << 20  # numbers of them that a processor keeps in less time than it makes them again
FEW_VOTES_COMPILED = 1 << 16  # the same where compiled code makes them again, of images that fill a vector's lanes
LANES = 16  # images side by side in the widest vectors
FEW_IMAGES = 4  # which would fill few lanes of a vector, and whose votes take little beside the weight
FEW_CHILDREN = 4  # which would be too few to share out among threads, and whose votes take little beside the parents
_asked: RoutingPath | None = None  # of the whole process, since a device's backward pass has a thread of its own


@contextmanager
def routing_path(path: RoutingPath) -> Iterator[None]:
    """Have `route` take one path, in tests and benchmarks: the textbook's twin, streaming, native or triton.

    Raises InputError for an unknown path, and `route` raises it where the path cannot run, with the reason.
    """
    if path not in get_args(RoutingPath):
        raise InputError(f"a routing path is one of {', '.join(get_args(RoutingPath))}, not {path!r}")
    global _asked
    before, _asked = _asked, path
    try:
        yield
    finally:
        _asked = before


def is_asked_for(path: RoutingPath) -> bool:
    """Whether a test or benchmark wants this path."""
    return _asked == path


def choose_path(children: Tensor, weight: Tensor) -> RoutingPath:
    """The path of these children [b, i, d] and this weight [i, j, d, e].

    Raises InputError where the path that was asked for cannot run.
    """
    if _asked is not None:
        if lacking := _lacking(_asked, children, weight):
            raise InputError(f"routing by {_asked} cannot run: {lacking}")
        return _asked
    if not _lacking("triton", children, weight):
        return "triton"
    votes = len(children) * weight.numel() // max(1, weight.shape[2])
    if votes <= FEW_VOTES_COMPILED or len(children) <= FEW_IMAGES or len(weight) <= FEW_CHILDREN:
        return "twin"
    if votes <= FEW_VOTES and len(children) < LANES:
        return "twin"
    if not _lacking("native", children, weight):
        return "native"
    return "twin" if votes <= FEW_VOTES else "streaming"


def passes_of(path: RoutingPath) -> Callable[..., Steps]:
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
