"""The squash of many capsules on a processor: one pass over memory, and one for the gradient, compiled from `squash.c`.

In plain PyTorch either is about a dozen operations, each a pass over memory.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capsnet.ops.compiler import address, is_readable, library_for_this_cpu
from capsnet.ops.squash import plain_squash, squash_gradient

SOURCE = Path(__file__).with_suffix(".c").with_stem("squash")
FUNCTIONS = ("squash", "squash_gradient")
WIDEST = 64  # numbers of a capsule
REALS = {
    torch.bfloat16: ("-DREAL=float", "-DBF16"),
    torch.float32: ("-DREAL=float",),
    torch.float64: ("-DREAL=double",),
}


def can_fuse(s: Tensor) -> bool:
    """Whether compiled code can squash these capsules [..., e]."""
    fits = s.dtype in REALS and 1 <= s.ndim <= 4 and 1 <= s.shape[-1] <= WIDEST and s.numel() > 0
    return fits and is_readable(s) and _compiled(s.dtype, s.shape[-1]) is not None


class FusedSquash(torch.autograd.Function):
    """Squash capsules [..., e]; the gradient lies in memory as they do."""

    @staticmethod
    def forward(s: Tensor) -> Tensor:
        """See `squash`."""
        if not can_fuse(s):  # as with an axis of vmap in addition
            return plain_squash(s)
        s = _with_neighbours(s)
        v = s.new_empty(s.shape)
        _call("squash", s, v)
        return v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep what the derivative is taken at."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The derivative's matrix is symmetric, so that this and `jvp` are one."""
        (s,) = ctx.saved_tensors
        return _Gradient.apply(s, grad) if is_readable(grad) else squash_gradient(s, grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """See `backward`."""
        (s,) = ctx.saved_tensors
        return squash_gradient(s, tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], s: Tensor) -> tuple[Tensor, int]:
        """Every row is squashed as any other."""
        return FusedSquash.apply(s.movedim(in_dims[0], 0)), 0


class _Gradient(torch.autograd.Function):
    """`squash_gradient`, whose own derivatives are plain PyTorch's."""

    @staticmethod
    def forward(s: Tensor, grad: Tensor) -> Tensor:
        if not can_fuse(s):
            return squash_gradient(s, grad)
        s, to_s = _with_neighbours(s), _with_neighbours(torch.empty_like(s))
        _call("squash_gradient", s, _with_neighbours(grad), to_s)
        return to_s

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.vjp(squash_gradient, *ctx.saved_tensors)[1](grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return torch.func.jvp(squash_gradient, ctx.saved_tensors, tangents)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *args: Tensor) -> tuple[Tensor, int]:
        rows = [
            t.expand(info.batch_size, *t.shape) if n is None else t.movedim(n, 0)
            for t, n in zip(args, in_dims, strict=True)
        ]
        return _Gradient.apply(*rows), 0


def _with_neighbours(capsules: Tensor) -> Tensor:
    """The same, with a capsule's numbers one after the other in memory."""
    capsules = capsules.resolve_neg()
    return capsules if capsules.stride(-1) == 1 or capsules.shape[-1] == 1 else capsules.contiguous()


def _call(name: str, *tensors: Tensor) -> None:
    s = tensors[0]
    library = _compiled(s.dtype, s.shape[-1])
    sizes = _three(s.shape[:-1], 1)
    arguments = [given for t in tensors for given in (address(t), _three(t.stride()[:-1], 0))]
    workers = ctypes.c_long(min(torch.get_num_threads(), sizes[0]))
    getattr(library, name)(sizes, workers, *arguments)


def _three(numbers: tuple[int, ...], missing: int) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * 3)(*numbers, *(missing,) * (3 - len(numbers)))


@cache
def _compiled(dtype: torch.dtype, e: int) -> ctypes.CDLL | None:
    return library_for_this_cpu(SOURCE, (*REALS[dtype], f"-DD={e}"), FUNCTIONS, "the squash")
