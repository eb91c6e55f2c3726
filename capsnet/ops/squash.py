"""The squashing nonlinearity: Eq. 1 of Sabour, Frosst and Hinton (2017), v = |s|² / (1 + |s|²) · s / |s|."""

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

MANY = 1 << 16  # numbers, for which compiled code saves more time than its call takes


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums of a tensor's numbers: float32, in which many of float16 have room, or float64 of float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def squash(s: Tensor) -> Tensor:
    """Shrink each vector to a length below 1 and keep its direction (Eq. 1).

    Many on a CPU are squashed by compiled code, in the same dtypes.

    s [..., e] → v [..., e]
    """
    if s.numel() >= MANY and not torch.compiler.is_compiling():
        from capsnet.ops.fused_squash import FusedSquash, can_fuse

        if can_fuse(s) and unpack_dual(s).tangent is None:  # an autograd function would lose the second derivative
            return FusedSquash.apply(s)
    return plain_squash(s)


def plain_squash(s: Tensor) -> Tensor:
    """Eq. 1 in plain PyTorch; shapes as in `squash`.

    One factor |s| of the equation is cancelled by hand, so that nothing is divided by a length: the result and its
    gradient are exactly zero at a zero vector, with no epsilon.
    """
    exact = sum_dtype(s)  # in which the square of a long float16 vector has room
    length = torch.linalg.vector_norm(s, dim=-1, keepdim=True, dtype=exact)  # over the capsule's own axis e
    return (s * (length / (1 + length.square()))).to(s.dtype)


def squash_gradient(s: Tensor, grad: Tensor) -> Tensor:
    """The gradient for `s` of squash(s), whose own gradient is `grad`; zero where s is.

    s [..., e], grad [..., e] → [..., e]
    """
    exact = sum_dtype(s)
    length = torch.linalg.vector_norm(s.to(exact), dim=-1, keepdim=True)  # over the capsule's own axis e
    shrink = 1 / (1 + length.square())
    along = (s.to(exact) * grad).sum(dim=-1, keepdim=True) / length.clamp(min=torch.finfo(exact).tiny)
    return (grad * (length * shrink) + s * (along * (1 - length.square()) * shrink.square())).to(s.dtype)
