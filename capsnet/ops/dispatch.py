"""The choice of the routing backend: the fastest that hardware and shapes allow, or the one that a caller forces."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.compiler import is_readable
from capsnet.ops.passes import Backend

BackendName = Literal["reference", "streaming", "native", "triton"]
# Numbers of the votes, b · i · j · e, up to which storing the votes on a CPU is faster than recomputing them:
FEW_VOTES = 1 << 20  # in plain PyTorch
FEW_VOTES_COMPILED = 1 << 16  # in compiled code with full vectors of images
LANES = 16  # images in the widest vector register
FEW_IMAGES = 4  # these fill few lanes of a vector, and their votes are small compared with the weight
FEW_CHILDREN = 4  # these are too few to divide among threads, and their votes are small compared with the parents
_forced: BackendName | None = None  # for the whole process, since the backward pass of a device has its own thread


@contextmanager
def routing_backend(name: BackendName) -> Iterator[None]:
    """Force one backend of `route`, in tests and benchmarks: reference, streaming, native or triton.

    Raises InputError for an unknown name. `route` raises it, with the reason, if the backend cannot run.
    """
    if name not in get_args(BackendName):
        raise InputError(f"a routing backend is one of {', '.join(get_args(BackendName))}, not {name!r}")
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def choose_backend(children: Tensor, weight: Tensor) -> BackendName:
    """The backend for children [b, i, d] and weight [i, j, d, e].

    Raises InputError if the forced backend cannot run.
    """
    if _forced is not None:
        if reason := _unavailable(_forced, children, weight):
            raise InputError(f"the {_forced} backend of routing cannot run: {reason}")
        return _forced
    if not _unavailable("triton", children, weight):
        return "triton"
    votes = len(children) * weight.numel() // max(1, weight.shape[2])
    if votes <= FEW_VOTES_COMPILED or len(children) <= FEW_IMAGES or len(weight) <= FEW_CHILDREN:
        return "reference"
    if votes <= FEW_VOTES and len(children) < LANES:
        return "reference"
    if not _unavailable("native", children, weight):
        return "native"
    return "reference" if votes <= FEW_VOTES else "streaming"


def stores_votes(children: Tensor, weight: Tensor) -> bool:
    """Whether to route by the reference. Under torch.compile only if forced: compiled code chooses when it runs."""
    if torch.compiler.is_compiling():
        return _forced == "reference"
    return choose_backend(children, weight) == "reference"


def choose_without_votes(children: Tensor, weight: Tensor) -> BackendName:
    """The backend where votes are not stored: streaming replaces the reference, and native where C cannot read."""
    name = choose_backend(children, weight)
    unreadable = name == "native" and not (is_readable(children) and is_readable(weight))
    return "streaming" if name == "reference" or unreadable else name


def backend_class(name: BackendName) -> type[Backend]:
    """The class of a backend other than the reference, imported when it is first used."""
    if name == "triton":
        from capsnet.ops.triton import Triton

        return Triton
    if name == "native":
        from capsnet.ops.native import Native

        return Native
    from capsnet.ops.streaming import Streaming

    return Streaming


def _unavailable(name: BackendName, children: Tensor, weight: Tensor) -> str:
    """Why a backend cannot run; an empty string if it can."""
    if name == "triton":
        return _triton_unavailable(children, weight)
    if name == "native":
        from capsnet.ops.native import unavailable

        return unavailable(children, weight)
    return ""


def _triton_unavailable(children: Tensor, weight: Tensor) -> str:
    if children.device.type != "cuda":
        return f"it needs a CUDA device, and the children are on {children.device.type}"
    try:
        from capsnet.ops.triton import fits
    except ImportError:
        return "triton is not installed"
    return "" if fits(weight) else f"matrices of {weight.shape[2]} x {weight.shape[3]} do not fit a multiprocessor"
