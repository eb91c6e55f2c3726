"""A strided convolution by the discrete Fourier transform, for processors without a fast bf16 product.

The primary capsules' convolution (9x9, stride 2, 256 → 256 channels) is 94 % of a CapsNet's arithmetic. A stride of s
splits it into s·s ordinary convolutions with kernels s times smaller, one a phase of the grid. A convolution of length
n is a product of n Fourier coefficients, and those of real numbers come in conjugate pairs, each pair a complex product
that Gauss makes of three real ones. For the paper's 20x20 grid that is 148 matrix products of [b, 1024] with
[1024, 256] in place of the 36 · 81 of [b, 256] with [256, 256]: a fifth of the multiplications. The transform is
orthogonal, so unlike Winograd's it costs no accuracy: tests hold it to at most twice the direct sum's float32 error.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import ceil, pi
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FEW, FEW_WITH_GRADIENT = 28, 16  # images, of which the transform of the weight alone costs more than another way


def strided_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d` without padding, by Fourier transform or as one matrix product where that is faster.

    images [b, c, h, w], weight [k, c, y, x], bias [k] → [b, k, (h - y) // stride + 1, (w - x) // stride + 1]
    """
    if _direct_is_slow(images, weight, stride):
        if len(images) >= (FEW_WITH_GRADIENT if torch.is_grad_enabled() else FEW):
            return fourier_conv2d(images, weight, bias, stride)
        if not torch.is_grad_enabled() and weight.is_contiguous(memory_format=torch.channels_last):
            return _unfolded_conv2d(images, weight, bias, stride)
    return F.conv2d(images, weight, bias, stride)


def fourier_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """The same as `strided_conv2d`, always by Fourier transform; shapes as there."""
    k, channels = len(weight), stride * stride * weight.shape[1]
    points, taps, outputs = _sizes(images, weight, stride)
    size = [stride * n for n in points]
    if images.shape[2:] != torch.Size(size):  # a pad by nothing would copy
        images = F.pad(images, (0, size[1] - images.shape[3], 0, size[0] - images.shape[2]))  # a negative pad trims
    images = rearrange(images, "b c h w -> b h w c")  # a view, where the memory is channels-last
    x = rearrange(images, "b (h s) (w t) c -> (h w) (b s t c)", s=stride, t=stride)
    w = rearrange(weight, "k c y x -> k y x c")  # a view too
    w = F.pad(w, (0, 0, 0, stride * taps[1] - w.shape[2], 0, stride * taps[0] - w.shape[1]))
    w = rearrange(w, "k (y s) (x t) c -> (y x) (k s t c)", s=stride, t=stride)
    forward, kernel, inverse = (m.to(images) for m in _transforms(points, taps))
    x = rearrange(forward @ x, "m (b c) -> m b c", c=channels)  # [m, b, phases · c]
    w = rearrange(kernel @ w, "m (k c) -> m k c", k=k)  # [m, k, phases · c]
    y = inverse @ _Products.apply(x, w).flatten(1)  # [places, b · k]
    y = rearrange(y, "(h w) (b k) -> b k h w", h=outputs[0], k=k)
    return y if bias is None else y + bias[:, None, None]


class _Products(torch.autograd.Function):
    """Products x wᵀ [m, b, k] of x [m, b, c] and w [m, k, c], each with a gradient that lies in memory as it does."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(x, w.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        to_x, to_w = ctx.needs_input_grad
        return torch.bmm(grad, w) if to_x else None, torch.bmm(grad.mT, x) if to_w else None


def _unfolded_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The same as one product with the weight as it lies in memory, channels last; shapes as in `strided_conv2d`."""
    places = rearrange(images, "b c h w -> b h w c")
    for axis, size in ((1, weight.shape[2]), (2, weight.shape[3])):
        places = places.unfold(axis, size, stride)  # [b, h, w, c, y, x] in the end
    patches = rearrange(places, "b h w c y x -> b h w (y x c)")
    result = F.linear(patches, rearrange(weight, "k c y x -> k (y x c)"), bias)
    return rearrange(result, "b h w k -> b k h w")


def _direct_is_slow(images: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether there is a faster way than PyTorch's: for a processor, float32, a large kernel and many channels."""
    if images.device.type != "cpu" or images.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    (points, _, outputs), (k, c, y, x) = _sizes(images, weight, stride), weight.shape
    direct = outputs[0] * outputs[1] * y * x
    products = 3 * points[0] * points[1] // 2 * stride * stride
    return min(outputs) > 0 and min(k, c) >= 64 and max(points) <= 16 and direct >= 2 * products


def _sizes(images: Tensor, weight: Tensor, stride: int) -> tuple[tuple[int, int], ...]:
    """Points of the transform, taps of a phase's kernel and outputs, each (down, across)."""
    outputs = [(n - k) // stride + 1 for n, k in zip(images.shape[2:], weight.shape[2:], strict=True)]
    taps = [ceil(k / stride) for k in weight.shape[2:]]
    points = [p + t - 1 for p, t in zip(outputs, taps, strict=True)]
    return (points[0], points[1]), (taps[0], taps[1]), (outputs[0], outputs[1])


def _transforms(points: tuple[int, int], taps: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """See `_matrices`, a constant to torch.compile."""
    return _matrices(points, taps)


# What torch.compiler.assume_constant_result does, less the seconds that its import of the compiler takes.
_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _matrices(points: tuple[int, int], taps: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices with correlation(x, w) = inverse @ ((forward @ x) * (kernel @ w)), in float64.

    A frequency that is its own conjugate takes one row; of each other pair one is taken, and its complex product
    (a + ib)(c + id) from Gauss's three: c(a + b), a(d - c) and b(c + d), whose real part is the first less the
    third and whose imaginary part is the first plus the second.

    forward [m, points], kernel [m, taps], inverse [outputs, m]
    """
    outputs = [n - t + 1 for n, t in zip(points, taps, strict=True)]
    rows: tuple[list[Tensor], ...] = ([], [], [])
    for frequency in product(range(points[0]), range(points[1])):
        mirror = tuple(-f % n for f, n in zip(frequency, points, strict=True))
        if mirror < frequency:
            continue
        wave = [_wave(frequency, points, size) for size in (points, taps, outputs)]  # (cos, sin) at every place
        (a, b), (c, d), (cos, sin) = (wave[0][0], -wave[0][1]), wave[1], wave[2]
        if mirror == frequency:
            new = [a], [c], [cos]
        else:
            new = [a + b, a, b], [c, d - c, c + d], [2 * (cos - sin), -2 * sin, -2 * cos]
        for matrix, more in zip(rows, new, strict=True):
            matrix.extend(more)
    forward, kernel, inverse = (torch.stack(matrix) for matrix in rows)
    return forward, kernel, inverse.T / (points[0] * points[1])


def _wave(frequency: tuple[int, ...], points: tuple[int, int], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cosine and sine of one frequency at the places of a [size] grid, row by row."""
    down, across = (torch.arange(n, dtype=torch.float64) for n in size)
    turns = (down * (frequency[0] / points[0]))[:, None] + across * (frequency[1] / points[1])
    angle = (2 * pi * turns).flatten()
    return angle.cos(), angle.sin()
