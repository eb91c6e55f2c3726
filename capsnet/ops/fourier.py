"""A strided convolution by the discrete Fourier transform, with a fifth of the multiplications.

A convolution with stride s is a sum of s·s ordinary convolutions with kernels s times smaller, one for each phase of
the grid. A convolution of length n is a product of n Fourier coefficients. Those of real numbers come in conjugate
pairs, and the complex product of a pair is computed from three real products, of waves at 0, 60 and 120 degrees. For
the paper's 20x20 grid and 9x9 kernel these are 148 matrix products of [b, 1024] by [1024, 256], in place of 36 · 81 of
[b, 256] by [256, 256]. The three angles add less rounding error than Gauss's three products (4/3 of the variance of the
complex product, in place of 2), so that even in bf16 the error is at most twice that of the direct convolution.

The transforms are sums over one axis after the other, always in float32: in C (`fourier.c`) or, if there is no C
compiler, as one matrix product with six times the arithmetic.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from math import ceil, pi
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from capsnet.ops.compiler import address, aligned, is_readable, library_for_this_cpu

SOURCE = Path(__file__).with_suffix(".c")
FUNCTIONS = ("lanes", "analyze", "synthesize")
MOST = 16  # points along an axis, so that a grid fits the nearest cache

Pair = tuple[int, int]  # of the rows' axis and the columns'


def fourier_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d` without padding, by Fourier transform.

    Under autocast, and for images in bf16, the products are in bf16 and summed in float32; the transforms are always in
    float32. The result has the same dtype as that of conv2d.

    images [b, c, h, w], weight [k, c, y, x], bias [k] → [b, k, (h - y) // stride + 1, (w - x) // stride + 1]
    """
    dtype = product_dtype(images)
    points, taps, outputs = sizes(images, weight, stride)
    forward, kernel, inverse = _waves(points, taps, outputs)
    x = Transform(forward, _size(images), stride, images.dtype, dtype).analyze(images)  # [m, b, phases · c]
    w = Transform(kernel, _size(weight), stride, weight.dtype, dtype).analyze(weight)  # [m, k, phases · c]
    y = Transform(inverse, outputs, 1, dtype, dtype).synthesize(_products(x, w))  # [b, k, h, w]
    return y if bias is None else y + bias.to(dtype)[:, None, None]


def sizes(images: Tensor, weight: Tensor, stride: int) -> tuple[Pair, Pair, Pair]:
    """The points of the transform, the taps of a phase's kernel, and the outputs, along both axes."""
    outputs = [(n - k) // stride + 1 for n, k in zip(_size(images), _size(weight), strict=True)]
    taps = [ceil(k / stride) for k in _size(weight)]
    points = [p + t - 1 for p, t in zip(outputs, taps, strict=True)]
    return (points[0], points[1]), (taps[0], taps[1]), (outputs[0], outputs[1])


def product_dtype(images: Tensor) -> torch.dtype:
    """The dtype in which `conv2d` multiplies: autocast's, except for float64, or that of the images."""
    device = images.device.type
    casts = torch.is_autocast_enabled(device) and images.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else images.dtype


def is_compiled(*channels: int) -> bool:
    """Whether `fourier.c` can transform images with these numbers of channels on this CPU."""
    if torch.compiler.is_compiling():
        return False
    library = _library()
    return library is not None and not any(n % library.lanes() for n in channels)


def _size(images: Tensor) -> Pair:
    return images.shape[-2], images.shape[-1]


class _Products(torch.autograd.Function):
    """Products x wᵀ [m, b, k] of x [m, b, c] and w [m, k, c]; each gradient has the strides of its tensor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(x, w.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        to_x, to_w = ctx.needs_input_grad
        return torch.bmm(grad, w) if to_x else None, torch.bmm(grad.mT, x) if to_w else None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_w: Tensor | None) -> Tensor:
        x, w = ctx.saved_tensors
        products = [torch.bmm(of_x, w.mT)] if of_x is not None else []
        products += [torch.bmm(x, of_w.mT)] if of_w is not None else []
        return torch.stack(products).sum(dim=0)


class Waves:
    """A linear map from the places of a grid to its coefficients: the matrix mix · (down ⊗ across).

    down [n, rows] and across [n, columns] are cosines and sines along an axis; mix [m, n · n] is sparse.
    """

    def __init__(self, down: Tensor, across: Tensor, mix: Tensor) -> None:
        self.down, self.across, self.mix = down, across, mix
        self.matrix = mix @ torch.kron(down, across)
        """The map as one matrix [m, rows · columns] in float64."""
        self.analysis = down.float().contiguous(), across.float().contiguous(), *_compressed(mix)
        """The arguments of `analyze` in `fourier.c`: down, across and mix in compressed rows."""
        self.synthesis = down.T.float().contiguous(), across.T.float().contiguous(), *_compressed(mix.T)
        """Those of `synthesize`, for the transposed map."""


@dataclass(frozen=True, eq=False)
class Transform:
    """A map of `Waves`, applied to every phase of images of one size, and its transpose, which is its gradient.

    images [b, c, h, w] ↔ coefficients [m, b, phases · c], each in its dtype
    """

    waves: Waves
    size: Pair
    stride: int
    images: torch.dtype
    coefficients: torch.dtype

    def analyze(self, images: Tensor) -> Tensor:
        """The coefficients of images."""
        return self.apply(images, True)

    def synthesize(self, coefficients: Tensor) -> Tensor:
        """The transposed map of coefficients."""
        return self.apply(coefficients, False)

    def apply(self, given: Tensor, analyzes: bool) -> Tensor:
        """One of the two, differentiable by autograd and torch.func; torch.compile sees matrix products."""
        if torch.compiler.is_compiling():
            return self.plain(given, analyzes)
        return _apply(given, self, analyzes)

    def compute(self, given: Tensor, analyzes: bool) -> Tensor:
        """One of the two, in C if possible."""
        return self.native(given, analyzes) if self.is_native(given, analyzes) else self.plain(given, analyzes)

    def plain(self, given: Tensor, analyzes: bool) -> Tensor:
        """One of the two as a matrix product, in float32 under autocast too."""
        with torch.autocast(given.device.type, enabled=False):
            return self._plain(given, analyzes)

    def _plain(self, given: Tensor, analyzes: bool) -> Tensor:
        s, (rows, columns) = self.stride, (self.waves.down.shape[1], self.waves.across.shape[1])
        matrix = self.waves.matrix.to(given.device, torch.promote_types(given.dtype, torch.float32))
        (h, w), here = self.size, given.to(matrix)
        if analyzes:
            places = F.pad(here, (0, s * columns - w, 0, s * rows - h))  # a negative pad trims
            places = rearrange(places, "b c (y s) (x t) -> (y x) (b s t c)", s=s, t=s)
            coefficients = rearrange(matrix @ places, "m (b n) -> m b n", n=s * s * given.shape[1])
            return coefficients.to(self.coefficients)
        places = matrix.T @ rearrange(here, "m b n -> m (b n)")
        images = rearrange(places, "(y x) (b s t c) -> b c (y s) (x t)", y=rows, s=s, t=s, c=given.shape[2] // (s * s))
        return F.pad(images, (0, w - s * columns, 0, h - s * rows)).to(self.images)

    def is_native(self, given: Tensor, analyzes: bool) -> bool:
        """Whether `fourier.c` can transform this tensor."""
        channels = given.shape[1] if analyzes else given.shape[2] // self.stride**2
        dtypes = self.images, self.coefficients
        known = dtypes in ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16))
        small = max(*self.waves.down.shape, *self.waves.across.shape) <= MOST
        return bool(given.numel()) and known and small and is_readable(given) and is_compiled(channels)

    def native(self, given: Tensor, analyzes: bool) -> Tensor:
        """One of the two by `fourier.c`."""
        library, (h, w), s = _library(), self.size, self.stride
        assert library is not None  # as `is_native` has found
        m = len(self.waves.mix)
        (rows, down), (columns, across) = (reversed(t.shape) for t in (self.waves.down, self.waves.across))
        if analyzes:
            b, channels = given.shape[:2]
            given = aligned(rearrange(given, "b c h w -> b h w c"))
            result = given.new_empty(m, b, s * s * channels, dtype=self.coefficients)
        else:
            b, channels, given = given.shape[1], given.shape[2] // (s * s), aligned(given)
            make = given.new_empty if s * rows >= h and s * columns >= w else given.new_zeros
            result = make(b, h, w, channels, dtype=self.images)
        workers = min(torch.get_num_threads(), b * s * s)
        bf16 = (dtype == torch.bfloat16 for dtype in (self.images, self.coefficients))
        shape = _Shape(b, h, w, channels, s, down, across, rows, columns, m, workers, *bf16)
        tables = self.waves.analysis if analyzes else self.waves.synthesis
        scratch = given.new_empty(workers, m, channels * s * s, dtype=torch.float32)
        function = library.analyze if analyzes else library.synthesize
        function(ctypes.byref(shape), *(address(t) for t in (given, result, *tables, scratch)))
        return result if analyzes else rearrange(result, "b h w c -> b c h w")


class _Shape(ctypes.Structure):
    """The struct `shape` of `fourier.c`."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in (
            *("images", "height", "width", "channels", "stride", "down", "across", "rows", "columns", "coefficients"),
            *("workers", "bf16_images", "bf16_coefficients"),
        )
    ]


class _Linear(torch.autograd.Function):
    """A transform or its transpose; the gradient of one is the other."""

    @staticmethod
    def forward(given: Tensor, transform: Transform, analyzes: bool) -> Tensor:
        return transform.compute(given, analyzes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Transform, bool], output: Tensor) -> None:
        _, ctx.transform, ctx.analyzes = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transform.apply(grad, not ctx.analyzes), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return ctx.transform.apply(tangent, ctx.analyzes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], given: Tensor, *others: Any) -> tuple[Tensor, int]:
        from_axis, to_axis = (0, 1) if others[1] else (1, 0)  # of the images
        many = given.movedim(in_dims[0], from_axis).flatten(from_axis, from_axis + 1)
        return _apply(many, *others).unflatten(to_axis, (info.batch_size, -1)), to_axis


_products: Callable[[Tensor, Tensor], Tensor] = _Products.apply
_apply: Callable[[Tensor, Transform, bool], Tensor] = _Linear.apply


@cache
def _library() -> ctypes.CDLL | None:
    return library_for_this_cpu(SOURCE, (), FUNCTIONS, "the convolution's transforms")


def _waves(points: Pair, taps: Pair, outputs: Pair) -> tuple[Waves, Waves, Waves]:
    """See `_find_waves`; torch.compile treats the result as a constant."""
    return _find_waves(points, taps, outputs)


# As torch.compiler.assume_constant_result does, but without importing the compiler, which takes seconds.
vars(_waves)["_dynamo_marked_constant"] = True


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _find_waves(points: Pair, taps: Pair, outputs: Pair) -> tuple[Waves, Waves, Waves]:
    """Maps with correlation(x, w) = inverseᵀ @ ((forward @ x) * (kernel @ w)), in float64.

    A frequency that is its own conjugate takes one row. Each pair of conjugate frequencies takes three, for the complex
    product (a + ib)(c + id) = re + i im of one of them: q(t) = (a cos t + b sin t)(c cos t + d sin t) is
    (ac + bd + re cos 2t + im sin 2t) / 2, so re and im are 4/3 of the sums of q cos 2t and q sin 2t over the angles t.
    """
    with torch.device("cpu"), _disable_current_modes():  # the cached maps are also for callers that are not traced
        return _build_waves(points, taps, outputs)


def _build_waves(points: Pair, taps: Pair, outputs: Pair) -> tuple[Waves, Waves, Waves]:
    rows: tuple[list[Tensor], ...] = ([], [], [])
    for frequency in product(range(points[0]), range(points[1])):
        mirror = tuple(-f % n for f, n in zip(frequency, points, strict=True))
        if mirror < frequency:
            continue
        angle = _angle(frequency, points)
        turns, scale = ((0.0,), 1.0) if mirror == frequency else ((0.0, pi / 3, 2 * pi / 3), 8 / 3)
        for t in turns:
            new = (angle + t).cos(), (angle - t).cos(), scale * (angle + 2 * t).cos()
            for matrix, row in zip(rows, new, strict=True):
                matrix.append(row)
    down, across = (_axis(n) for n in points)
    both = torch.kron(down, across)
    maps = []
    for matrix, (height, width) in zip(rows, (points, taps, outputs), strict=True):
        mix = torch.linalg.solve(both, torch.stack(matrix), left=False)
        scale = 1 if matrix is not rows[2] else 1 / (points[0] * points[1])
        maps.append(Waves(down[:, :height], across[:, :width], scale * mix.where(mix.abs() > 1e-9, 0)))
    return maps[0], maps[1], maps[2]


def _angle(frequency: Sequence[int], points: Pair) -> Tensor:
    """The phase angle of a wave of one frequency at every point of a grid, row by row."""
    down, across = (torch.arange(n, dtype=torch.float64) * f / n for n, f in zip(points, frequency, strict=True))
    return 2 * pi * (down[:, None] + across).flatten()


def _axis(points: int) -> Tensor:
    """The cosines and sines of all frequencies along an axis [points, points]; its rows are orthogonal."""
    angles = torch.outer(torch.arange(points), torch.arange(points)).double() * (2 * pi / points)
    return torch.cat([angles.cos()[: points // 2 + 1], angles.sin()[1 : (points + 1) // 2]])


def _compressed(mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows: where each row starts (int32), and the columns (int32) and values (float32) of the nonzeros."""
    nonzero = mix.nonzero()  # row by row
    starts = F.pad((mix != 0).sum(dim=1).cumsum(dim=0), (1, 0))
    return starts.int(), nonzero[:, 1].int().contiguous(), mix[tuple(nonzero.T)].float()
