"""The squashing nonlinearity: Eq. 1 of Sabour, Frosst and Hinton (2017), v = |s|² / (1 + |s|²) · s / |s|.

In plain PyTorch the squash and its gradient take about a dozen operations each, and each of them is a pass over memory.
For many capsules on a CPU, compiled code (`squash.c`) takes one pass for either.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from capsnet.ops.compiler import address, is_readable, library_for_this_cpu

SOURCE = Path(__file__).with_suffix(".c")
FUNCTIONS = ("squash", "squash_gradient")
MANY = 1 << 16  # from this many numbers on, compiled code saves more time than its call takes
WIDEST = 64  # dimensions of a capsule that compiled code takes
REALS = {
    torch.bfloat16: ("-DREAL=float", "-DBF16"),
    torch.float32: ("-DREAL=float",),
    torch.float64: ("-DREAL=double",),
}


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a tensor's numbers are summed: float64 for float64, else float32, also for half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def squash(s: Tensor) -> Tensor:
    """Shrink each vector to a length below 1 and keep its direction (Eq. 1).

    s [..., e] → v [..., e]
    """
    compiled = s.numel() >= MANY and not torch.compiler.is_compiling() and _is_compiled_for(s)
    if compiled and unpack_dual(s).tangent is None:  # an autograd function would lose the second derivative
        return _compiled_squash(s)
    return plain_squash(s)


def plain_squash(s: Tensor) -> Tensor:
    """Eq. 1 in plain PyTorch; shapes as in `squash`.

    One factor |s| of the equation is cancelled by hand, so that nothing is divided by a length: the result and its
    gradient are exactly zero at a zero vector, with no epsilon.
    """
    dtype = sum_dtype(s)  # the square of a long float16 vector would overflow in float16
    length: Tensor = torch.linalg.vector_norm(s, dim=-1, keepdim=True, dtype=dtype)  # over the capsule's own axis e
    return (s * (length / (1 + length.square()))).to(s.dtype)


def squash_gradient(s: Tensor, grad: Tensor) -> Tensor:
    """The gradient for `s`, where `grad` is the gradient of squash(s); zero where s is zero.

    s [..., e], grad [..., e] → [..., e]
    """
    dtype = sum_dtype(s)
    length: Tensor = torch.linalg.vector_norm(s.to(dtype), dim=-1, keepdim=True)  # over the capsule's own axis e
    shrink = 1 / (1 + length.square())
    along = (s.to(dtype) * grad).sum(dim=-1, keepdim=True) / length.clamp(min=torch.finfo(dtype).tiny)
    return (grad * (length * shrink) + s * (along * (1 - length.square()) * shrink.square())).to(s.dtype)


class CompiledSquash(torch.autograd.Function):
    """`squash` by compiled code, s [..., e] → v [..., e]; the gradient has the strides of s."""

    @staticmethod
    def forward(s: Tensor) -> Tensor:
        """See `squash`."""
        if not _is_compiled_for(s):  # for example with an additional axis of vmap
            return plain_squash(s)
        s = _with_unit_stride(s)
        v = s.new_empty(s.shape)
        _call("squash", s, v)
        return v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Save s for the derivatives."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient for s. The Jacobian is symmetric, so this and `jvp` compute the same product."""
        (s,) = ctx.saved_tensors
        return _compiled_gradient(s, grad) if is_readable(grad) else squash_gradient(s, grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """See `backward`."""
        (s,) = ctx.saved_tensors
        return squash_gradient(s, tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], s: Tensor) -> tuple[Tensor, int]:
        """Squash all examples at once."""
        return _compiled_squash(s.movedim(in_dims[0], 0)), 0


class _CompiledGradient(torch.autograd.Function):
    """`squash_gradient` by compiled code; its own derivatives are in plain PyTorch."""

    @staticmethod
    def forward(s: Tensor, grad: Tensor) -> Tensor:
        if not _is_compiled_for(s):
            return squash_gradient(s, grad)
        s, grad_s = _with_unit_stride(s), _with_unit_stride(torch.empty_like(s))
        _call("squash_gradient", s, _with_unit_stride(grad), grad_s)
        return grad_s

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return torch.func.vjp(squash_gradient, *ctx.saved_tensors)[1](grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return torch.func.jvp(squash_gradient, ctx.saved_tensors, tangents)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *args: Tensor) -> tuple[Tensor, int]:
        rows = [
            t.expand(info.batch_size, *t.shape) if n is None else t.movedim(n, 0)
            for t, n in zip(args, in_dims, strict=True)
        ]
        return _compiled_gradient(*rows), 0


_compiled_squash: Callable[[Tensor], Tensor] = CompiledSquash.apply
_compiled_gradient: Callable[[Tensor, Tensor], Tensor] = _CompiledGradient.apply


def _is_compiled_for(s: Tensor) -> bool:
    """Whether compiled code can squash these capsules [..., e]."""
    fits = s.dtype in REALS and 1 <= s.ndim <= 4 and 1 <= s.shape[-1] <= WIDEST and s.numel() > 0
    return fits and is_readable(s) and _compiled(s.dtype, s.shape[-1]) is not None


def _with_unit_stride(capsules: Tensor) -> Tensor:
    """The same capsules, the numbers of each one after the other in memory."""
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
