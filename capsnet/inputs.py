"""What networks and losses ask of the tensors that they are given, refused with the value and the way out."""

import torch
from torch import Tensor

from capsnet.errors import InputError


def check_images(images: Tensor, image_shape: tuple[int, ...], weight: Tensor) -> None:
    """Raise InputError for images [b, c, h, w] that a network with this first weight does not take.

    Their shape, device and dtype must be the network's; under autocast, which casts both, bf16, half and float32 fit
    one another.
    """
    if images.shape[1:] != image_shape:
        hint = ": give one image as images.unsqueeze(0)" if images.shape == image_shape else ""
        raise InputError(f"this network sees images [b, c, h, w] of {image_shape}, not {list(images.shape)}{hint}")
    if not images.is_floating_point():
        raise InputError(f"images are {images.dtype}: bring them to floats from 0 to 1, as images.float() / 255 does")
    device = weight.device
    if images.device != device:
        raise InputError(f"images are on {images.device} and the network on {device}: bring both to one device")
    if images.dtype == weight.dtype:
        return
    cast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    if not cast or torch.float64 in (images.dtype, weight.dtype):
        raise InputError(
            f"images are {images.dtype} and the network's weights {weight.dtype}: give images.to({weight.dtype})"
        )


def check_labels(labels: Tensor, count: int, classes: int, what: str = "labels") -> None:
    """Raise InputError for labels that are not `count` whole numbers from 0 to `classes` - 1.

    The numbers are looked at on a CPU alone, where that waits for nothing, and not in compiled code or under vmap.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{what} are {labels.dtype}: give whole numbers, as {what}.long() does")
    if labels.shape != (count,):
        raise InputError(f"{what} are one number an image, [{count}], not {list(labels.shape)}")
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or type(labels) is not Tensor:
        return
    if labels.numel() and not torch._C._functorch.is_functorch_wrapped_tensor(labels):
        for extreme in (int(labels.min()), int(labels.max())):
            if not 0 <= extreme < classes:
                raise InputError(f"{what} are classes from 0 to {classes - 1}, not {extreme}")


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """One where a row's label is and zero elsewhere, with the dtype of `like`; vmap takes it, unlike PyTorch's own.

    labels [b], like [b, j] → [b, j]
    """
    return torch.zeros_like(like).scatter(-1, labels.long().unsqueeze(-1), 1)
