"""A strided convolution by the discrete Fourier transform, for processors without a fast bf16 product.

The primary capsules' convolution (9x9, stride 2, 256 → 256 channels) is 94 % of a CapsNet's arithmetic. A stride of s
splits it into s·s ordinary convolutions with kernels s times smaller, one a phase of the grid. A convolution of length
n is a product of n Fourier coefficients, and those of real numbers come in conjugate pairs, each pair a complex product
that Gauss makes of three real ones. For the paper's 20x20 grid that is 148 matrix products of [b, 1024] with
[1024, 256] in place of the 36 · 81 of [b, 256] with [256, 256]: a fifth of the multiplications. The transform is
orthogonal, so unlike Winograd's it costs no accuracy: tests hold it to at most twice the direct sum's float32 error.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from capsnet.ops.fourier import fourier_conv2d, sizes

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
    if images.device.type != "cpu" or images.dtype not in (torch.float32, torch.bfloat16):
        return False
    (points, _, outputs), (k, c, y, x) = sizes(images, weight, stride), weight.shape
    direct = outputs[0] * outputs[1] * y * x
    products = 3 * points[0] * points[1] // 2 * stride * stride
    return min(outputs) > 0 and min(k, c) >= 64 and max(points) <= 16 and direct >= 2 * products
