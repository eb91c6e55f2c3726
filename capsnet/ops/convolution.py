"""A strided convolution by the fastest method: direct, by Fourier transform, or as one matrix product.

The primary capsules' convolution (9x9, stride 2, 256 → 256 channels) takes 94 % of a CapsNet's arithmetic.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from capsnet.ops.compiler import is_readable
from capsnet.ops.fourier import MOST, fourier_conv2d, is_compiled, product_dtype, sizes
from capsnet.ops.squash import sum_dtype


class Overhead(NamedTuple):
    """The cost of the Fourier transforms, in units of the products of the coefficients."""

    weight: float  # of the weight's transform, as a number of images
    channel: float  # of one channel's transform of the images, for each point along an axis, as a number of channels


# On a CPU, by the dtype of the products and whether gradients are needed. `benchmarks/convolution.py` measures both
# methods for a list of shapes, and a test compares the choice with the measurements.
OVERHEADS = {
    (torch.bfloat16, True): Overhead(45, 4),
    (torch.bfloat16, False): Overhead(85, 12),
    (torch.float32, True): Overhead(45, 5),
    (torch.float32, False): Overhead(60, 12),
}


def strided_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d` without padding, by the fastest method.

    images [b, c, h, w], weight [k, c, y, x], bias [k] → [b, k, (h - y) // stride + 1, (w - x) // stride + 1]
    """
    if _fourier_pays(images, weight, stride):
        return fourier_conv2d(images, weight, bias, stride)
    if images.device.type == "cpu" and images.shape[1] == 1 and images.requires_grad and torch.is_grad_enabled():
        return _unfolded_conv2d(images, weight, bias, stride)
    return F.conv2d(images, weight, bias, stride)


def _unfolded_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The same as one matrix product; its gradient for images of one channel takes a third of conv2d's time."""
    kernel_size, size = weight.shape[2:], images.shape[2:]
    down, across = ((n - k) // stride + 1 for n, k in zip(size, kernel_size, strict=True))
    patches = F.unfold(images.to(sum_dtype(images)), kernel_size, stride=stride).to(images.dtype)  # [b, c·y·x, places]
    result = F.linear(patches.mT, weight.flatten(1), bias)  # [b, places, k]
    return rearrange(result, "b (h w) k -> b k h w", h=down, w=across)


def _fourier_pays(images: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether the Fourier transform saves more multiplications than it costs."""
    overhead = OVERHEADS.get((product_dtype(images), torch.is_grad_enabled()))
    if overhead is None or images.device.type != "cpu" or not len(images):
        return False
    if not (torch.compiler.is_compiling() or is_readable(images)):
        return False
    compiled = is_compiled(images.shape[1], len(weight))
    if not compiled and product_dtype(images) != torch.float32:
        return False  # as matrix products in float32, the transforms take longer than the convolution
    points, _, outputs = sizes(images, weight, stride)
    if min(outputs) <= 0 or max(points) > MOST:
        return False
    direct = outputs[0] * outputs[1] * weight.shape[2] * weight.shape[3]  # multiplications for a pair of channels
    fourier = 3 * points[0] * points[1] / 2 * stride * stride
    channels = 1 / images.shape[1] + 1 / len(weight)
    more = overhead.weight / len(images) + overhead.channel * max(points) * channels
    return direct > 1.1 * fourier * (1 + more * (1 if compiled else 3))
