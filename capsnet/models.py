"""CapsNet, the network of Figures 1 and 2 of Sabour, Frosst and Hinton (2017)."""

from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsnet.checks import (
    Classes,
    Decoder,
    ImageShape,
    Initialisation,
    Iterations,
    Scale,
    Size,
    Slope,
    check_arguments,
    check_parameters,
    renamed,
)
from capsnet.errors import InputError
from capsnet.hub import HubNetwork
from capsnet.layers import ConvDecoder, DenseDecoder, PrimaryCaps, RoutedCaps, StridedConv2d
from capsnet.losses import check_labels, one_hot
from capsnet.ops import Gradient


class CapsNetOutput(NamedTuple):
    """The output of a CapsNet for b images; the class of the longest capsule is the prediction."""

    lengths: Tensor  # [b, j], each in [0, 1)
    capsules: Tensor  # [b, j, e]
    reconstruction: Tensor | None  # [b, c, h, w] in [0, 1], or None without a decoder


class CapsNet(HubNetwork, tags=["capsule-network"]):
    """The capsule network of the paper, for images of any shape and any number of classes.

    The defaults are the paper's for MNIST: 8,215,568 parameters. Sizes that follow from others are computed. Options
    cover what the paper leaves open and what its authors' code does differently: `prior` learns the initial logits,
    `bias` is added in every iteration, `none_of_the_above` adds a logit of 0 for no class, `negative_slope` makes the
    ReLU after conv1 leaky, `shared` uses one set of matrices at every place of the grid, `primary_scale` multiplies the
    primary capsules before the squash, and `initialisation="official"` uses the authors' truncated normals.

    Raises InputError for an argument of the wrong type or out of bounds, an image too small for the kernels, and more
    than 2**31 parameters.
    """

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        classes: Classes = 10,
        iterations: Iterations = 3,
        *,
        gradient: Gradient = "all",
        conv_channels: Size = 256,
        conv_kernel: Size = 9,
        primary_types: Size = 32,
        primary_dim: Size = 8,
        primary_kernel: Size = 9,
        primary_stride: Size = 2,
        primary_scale: Scale = 1.0,
        capsule_dim: Size = 16,
        prior: bool = False,
        bias: bool = False,
        none_of_the_above: Annotated[bool, renamed("none_of_the_above", "leaky")] = False,
        negative_slope: Annotated[Slope, renamed("negative_slope", "slope")] = 0.0,
        shared: bool = False,
        initialisation: Initialisation = "torch",
        decoder: Decoder = "dense",
    ) -> None:
        check_arguments(CapsNet.__init__, locals())
        height, width = _checked_grid(**locals())
        super().__init__()
        image_shape = (image_shape[0], image_shape[1], image_shape[2])  # a tuple, even if a list was given
        self.image_shape, self.classes, self.negative_slope = image_shape, classes, negative_slope
        self.grid = (height, width)  # of the primary capsules of one type
        self.conv1 = StridedConv2d(image_shape[0], conv_channels, conv_kernel)
        self.primary_caps = PrimaryCaps(
            conv_channels, primary_types, primary_dim, primary_kernel, primary_stride, primary_scale
        )
        self.digit_caps = RoutedCaps(
            primary_types * height * width,
            classes,
            primary_dim,
            capsule_dim,
            iterations,
            gradient=gradient,
            places=height * width if shared else 1,
            prior=prior,
            bias=bias,
            none_of_the_above=none_of_the_above,
        )
        self.decoder = _decoder(decoder, classes, capsule_dim, image_shape)
        if initialisation == "official":
            _initialise_as_the_authors(self)

    def encode(self, images: Tensor) -> Tensor:
        """One capsule for each class; InputError for images of another shape, dtype or device than the network's.

        images [b, c, h, w] in [0, 1] → capsules [b, j, e]
        """
        children = self.primary_capsules(images)  # [b, 1152, 8]
        capsules: Tensor = self.digit_caps(children)  # [b, 10, 16]
        return capsules

    def primary_capsules(self, images: Tensor) -> Tensor:
        """The capsules that `digit_caps` routes, ordered by type, then row, then column of `grid`.

        images [b, c, h, w] in [0, 1] → children [b, i, d]
        """
        check_images(images, self.image_shape, self.conv1.weight)
        x = F.leaky_relu(self.conv1(images), self.negative_slope)  # [b, 256, 20, 20]
        children: Tensor = self.primary_caps(x)  # [b, 1152, 8]
        return children

    def decode(self, capsules: Tensor, classes: Tensor) -> Tensor:
        """Reconstruct each image from the capsule of one class, with all other capsules set to zero.

        Raises InputError without a decoder, and for classes that are not whole numbers from 0 to j - 1, one per image.

        capsules [b, j, e], classes [b] → reconstruction [b, c, h, w] in [0, 1]
        """
        decoder = self.check_decoder()
        b, j, _ = capsules.shape
        check_labels(classes, b, j, "classes")
        mask = one_hot(classes, capsules[..., 0])  # [b, j]
        reconstruction: Tensor = decoder(capsules * mask.unsqueeze(-1))
        return reconstruction

    def check_decoder(self) -> nn.Module:
        """Return the decoder; InputError without one."""
        if self.decoder is None:
            raise InputError("this network has no decoder, so it cannot reconstruct: train one with --decoder dense")
        return self.decoder

    def forward(self, images: Tensor, classes: Tensor | None = None) -> CapsNetOutput:
        """Classify and reconstruct the images, from the capsules of `classes` or, if None, from the longest ones.

        Without a decoder, `classes` has no effect.

        images [b, c, h, w], classes [b] → lengths [b, j], capsules [b, j, e], reconstruction [b, c, h, w]
        """
        capsules = self.encode(images)  # [b, j, e]
        lengths = torch.linalg.vector_norm(capsules, dim=-1)  # over the capsule's own axis e
        if self.decoder is None:
            return CapsNetOutput(lengths, capsules, None)
        chosen = lengths.argmax(dim=-1) if classes is None else classes  # over classes j
        return CapsNetOutput(lengths, capsules, self.decode(capsules, chosen))


def check_images(images: Tensor, image_shape: tuple[int, ...], weight: Tensor) -> None:
    """Raise InputError for images [b, c, h, w] that a network with this first weight does not take.

    Shape, device and dtype must be the network's. Autocast casts both, so under it bf16, half and float32 may be mixed.
    """
    if images.shape[1:] != image_shape:
        hint = ": give one image as images.unsqueeze(0)" if images.shape == image_shape else ""
        raise InputError(f"this network takes images [b, c, h, w] of {image_shape}, not {list(images.shape)}{hint}")
    if not images.is_floating_point():
        raise InputError(f"images are {images.dtype}: convert them to floats from 0 to 1, as images.float() / 255 does")
    device = weight.device
    if images.device != device:
        raise InputError(f"images are on {images.device} and the network on {device}: move both to one device")
    if images.dtype == weight.dtype:
        return
    cast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    if not cast or torch.float64 in (images.dtype, weight.dtype):
        raise InputError(
            f"images are {images.dtype} and the network's weights {weight.dtype}: give images.to({weight.dtype})"
        )


def _checked_grid(
    image_shape: ImageShape,
    classes: int,
    conv_channels: int,
    conv_kernel: int,
    primary_types: int,
    primary_dim: int,
    primary_kernel: int,
    primary_stride: int,
    capsule_dim: int,
    prior: bool,
    shared: bool,
    decoder: Decoder,
    **_: Any,
) -> tuple[int, int]:
    """Rows and columns of the primary capsules' grid.

    Takes all arguments of CapsNet. Raises InputError for an image that is too small and for too many parameters.
    """
    channels, *size = image_shape
    height, width = (_grid(n, conv_kernel, primary_kernel, primary_stride, image_shape) for n in size)
    capsules = primary_types * height * width
    decoders = {"dense": 1024 * channels, "conv": 8 * classes * capsule_dim, "none": 0}  # weights a pixel, about
    check_parameters(
        conv1=channels * conv_channels * conv_kernel**2,
        primary_caps=conv_channels * primary_types * primary_dim * primary_kernel**2,
        digit_caps=(primary_types if shared else capsules) * classes * primary_dim * capsule_dim,
        prior=capsules * classes if prior else 0,
        decoder=decoders[decoder] * size[0] * size[1],
    )
    return height, width


def _grid(size: int, conv_kernel: int, primary_kernel: int, primary_stride: int, image_shape: ImageShape) -> int:
    """Places along one side of the primary capsules' grid."""
    room = size - conv_kernel + 1 - primary_kernel
    if room < 0:
        raise InputError(
            f"an image of {image_shape[1]}x{image_shape[2]} is too small for kernels of {conv_kernel} and "
            f"{primary_kernel}, which need {conv_kernel + primary_kernel - 1} pixels each way: "
            "choose smaller kernels or larger images"
        )
    return room // primary_stride + 1


def _decoder(name: Decoder, classes: int, capsule_dim: int, image_shape: ImageShape) -> nn.Module | None:
    if name == "none":
        return None
    decoder = DenseDecoder if name == "dense" else ConvDecoder
    return decoder(classes, capsule_dim, image_shape)


def _initialise_as_the_authors(model: CapsNet) -> None:
    """Truncated normals of sigma 0.05 in conv1 and 0.1 elsewhere, all biases 0.1, as in the authors' code."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, 0.1)
        elif name.endswith("weight"):
            sigma = 0.05 if name == "conv1.weight" else 0.1
            nn.init.trunc_normal_(parameter, std=sigma, a=-2 * sigma, b=2 * sigma)
