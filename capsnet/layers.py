"""The layers of a capsule network: they own the parameters and call the functions of `ops`."""

from collections.abc import Iterator
from math import ceil
from typing import TypeVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from capsnet.errors import InputError
from capsnet.ops import Gradient
from capsnet.ops.convolution import strided_conv2d
from capsnet.ops.reference import routing_trace, vote
from capsnet.ops.routing import route
from capsnet.ops.squash import squash

Module = TypeVar("Module", bound=nn.Module)


def channels_last(convolutions: Module) -> Module:
    """The same module with its kernels channels-last, so that the numbers of a capsule are contiguous in memory.

    `network.to(memory_format=torch.channels_last)` would also change the layout of the matrices of routing. A clone has
    the layout's strides even with a single channel; PyTorch chooses the layout of the result by them.
    """
    for parameter in convolutions.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=torch.channels_last)
    return convolutions


class StridedConv2d(nn.Conv2d):
    """`nn.Conv2d` without padding, by the fastest method for its input: see `strided_conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images [b, c, h, w] → features [b, k, (h - kernel_size) // stride + 1, (w - kernel_size) // stride + 1]."""
        return strided_conv2d(images, self.weight, self.bias, self.stride[0])


class PrimaryCaps(nn.Module):
    """A convolution whose channels form capsules: `dim` neighbouring channels at one place are one capsule, squashed.

    The channels of capsule type t are t·dim to (t + 1)·dim - 1, and capsules are ordered by type, then row, then
    column. `scale` multiplies the sums before they are squashed; in the authors' code it is 1/32.
    """

    def __init__(
        self, in_channels: int, types: int, dim: int, kernel_size: int, stride: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = StridedConv2d(in_channels, types * dim, kernel_size, stride)
        self.dim, self.scale = dim, scale

    def forward(self, features: Tensor) -> Tensor:
        """Features [b, c, h, w] → children [b, i, d]."""
        x: Tensor = self.conv(features)  # [b, types · dim, h, w]
        capsules = rearrange(x * self.scale, "b (types dim) h w -> b types (h w) dim", dim=self.dim)
        return squash(capsules).flatten(1, 2)  # [b, types · h · w, dim]


class RoutedCaps(nn.Module):
    """Capsules whose input is routed: one matrix W_ij for each pair of child and parent (Section 2).

    With `places` above 1, the places of a capsule type share its matrices; the children must then be ordered by type.
    `prior` makes the initial logits a parameter, and `bias` adds a parameter to each weighted sum. `none_of_the_above`
    adds a logit of 0 for no parent.

    Raises InputError for children that are not a multiple of `places`.
    """

    def __init__(
        self,
        children: int,
        parents: int,
        child_dim: int,
        parent_dim: int,
        iterations: int = 3,
        *,
        gradient: Gradient = "all",
        places: int = 1,
        prior: bool = False,
        bias: bool = False,
        none_of_the_above: bool = False,
    ) -> None:
        super().__init__()
        if places < 1 or children % places:
            raise InputError(f"children must be a multiple of places, and {children} is none of {places}")
        self.weight = nn.Parameter(torch.empty(children // places, parents, child_dim, parent_dim))
        self.prior = nn.Parameter(torch.zeros(children, parents)) if prior else None
        self.bias = nn.Parameter(torch.zeros(parents, parent_dim)) if bias else None
        self.iterations, self.gradient = iterations, gradient
        self.places, self.none_of_the_above = places, none_of_the_above
        nn.init.normal_(self.weight, std=0.1)  # the authors' sigma; the paper does not say

    def matrices(self) -> Tensor:
        """One matrix for each child and parent, [i, j, d, e], repeated where places share them."""
        if self.places == 1:
            return self.weight
        return repeat(self.weight, "types j d e -> (types places) j d e", places=self.places)

    def trace(self, children: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Children [b, i, d] → couplings [b, i, j] and parents [b, j, e] of each iteration in turn."""
        votes = vote(children, self.matrices())  # [b, i, j, e]
        return routing_trace(
            votes,
            self.iterations,
            prior=self.prior,
            bias=self.bias,
            none_of_the_above=self.none_of_the_above,
            gradient=self.gradient,
        )

    def forward(self, children: Tensor) -> Tensor:
        """Children [b, i, d] → parents [b, j, e]."""
        return route(
            children,
            self.matrices(),
            self.iterations,
            prior=self.prior,
            bias=self.bias,
            none_of_the_above=self.none_of_the_above,
            gradient=self.gradient,
        )


class DenseDecoder(nn.Module):
    """The paper's decoder: three dense layers from the capsules, all but one of them zeroed, to pixels (Figure 2).

    `hidden` has the sizes of the first two layers: those of Section 4.1 and Figure 2.
    """

    def __init__(
        self, capsules: int, dim: int, image_shape: tuple[int, int, int], hidden: tuple[int, int] = (512, 1024)
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, height, width = image_shape
        self.layers = nn.Sequential(
            nn.Linear(capsules * dim, hidden[0]),
            nn.ReLU(),
            nn.Linear(*hidden),
            nn.ReLU(),
            nn.Linear(hidden[1], channels * height * width),
            nn.Sigmoid(),
        )

    def forward(self, capsules: Tensor) -> Tensor:
        """Masked capsules [b, j, e] → reconstruction [b, c, h, w] in [0, 1]."""
        pixels: Tensor = self.layers(rearrange(capsules, "b j e -> b (j e)"))
        channels, height, _ = self.image_shape
        return rearrange(pixels, "b (c h w) -> b c h w", c=channels, h=height)


class ConvDecoder(nn.Module):
    """A decoder of transposed convolutions; unlike `DenseDecoder`, it has no dense layer with one output per pixel."""

    def __init__(self, capsules: int, dim: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, self.height, self.width = image_shape
        self.grid = (128, ceil(self.height / 4), ceil(self.width / 4))
        self.seed = nn.Linear(capsules * dim, self.grid[0] * self.grid[1] * self.grid[2])
        self.layers = channels_last(
            nn.Sequential(
                nn.ReLU(),
                nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, channels, 3, padding=1),
                nn.Sigmoid(),
            )
        )

    def forward(self, capsules: Tensor) -> Tensor:
        """Masked capsules [b, j, e] → reconstruction [b, c, h, w] in [0, 1]."""
        x: Tensor = self.seed(rearrange(capsules, "b j e -> b (j e)"))
        x = self.layers(x.unflatten(-1, self.grid))  # [b, 128, ⌈h/4⌉, ⌈w/4⌉] → [b, c, 4⌈h/4⌉, 4⌈w/4⌉]
        return x[:, :, : self.height, : self.width]
