"""The two losses of Sabour, Frosst and Hinton (2017): the margin loss (Eq. 4) and the reconstruction loss (4.1)."""

import torch
from einops import reduce
from torch import Tensor

from capsnet.errors import InputError


def margin_loss(
    lengths: Tensor, labels: Tensor, present: float = 0.9, absent: float = 0.1, down_weight: float = 0.5
) -> Tensor:
    """Penalise capsules of present classes that are shorter than `present`, and others that are longer than `absent`.

    L_k = T_k max(0, m⁺ - |v_k|)² + λ (1 - T_k) max(0, |v_k| - m⁻)² (Eq. 4), summed over the classes k and averaged
    over the images. T_k is 1 where class k is present: one class per image with labels [b], any number with multi-hot
    labels [b, j].

    Raises InputError for labels that are neither whole numbers [b] from 0 to j - 1 nor floats or bools [b, j] of 0 and
    1. Numbers are checked only on a CPU, and neither in compiled code nor under vmap.

    lengths [b, j], labels [b] or [b, j] → a scalar
    """
    if lengths.ndim != 2 or not lengths.is_floating_point():
        raise InputError(f"lengths are floats [b, j], not {lengths.dtype} of shape {list(lengths.shape)}")
    truth = _multi_hot(labels, lengths)  # [b, j]
    missing = truth * (present - lengths).relu().square()
    spurious = (1 - truth) * (lengths - absent).relu().square()
    return reduce(missing + down_weight * spurious, "b j -> b", "sum").mean()


def reconstruction_loss(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Squared difference of reconstruction and image, summed over pixels and channels and averaged over images (4.1).

    Raises InputError if the two shapes differ.

    reconstruction [b, c, h, w], image [b, c, h, w], both in [0, 1] → a scalar
    """
    if reconstruction.shape != image.shape:
        raise InputError(
            f"a reconstruction of shape {list(reconstruction.shape)} cannot be compared with images {list(image.shape)}"
        )
    return squared_errors(reconstruction, image).mean()


def squared_errors(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The squared errors of each image's reconstruction, summed over pixels and channels.

    reconstruction [b, c, h, w], image [b, c, h, w], both in [0, 1] → [b]
    """
    return reduce((reconstruction - image).square(), "b c h w -> b", "sum")


def check_labels(labels: Tensor, count: int, classes: int, what: str = "labels") -> None:
    """Raise InputError for labels that are not `count` whole numbers from 0 to `classes` - 1."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{what} are {labels.dtype}: give whole numbers, as {what}.long() does")
    if labels.shape != (count,):
        raise InputError(f"{what} are one number per image, [{count}], not {list(labels.shape)}")
    if _is_readable(labels):
        for extreme in (int(labels.min()), int(labels.max())):
            if not 0 <= extreme < classes:
                raise InputError(f"{what} are classes from 0 to {classes - 1}, not {extreme}")


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """One at each row's label and zero elsewhere, in the dtype of `like`; unlike PyTorch's, it works under vmap.

    labels [b], like [b, j] → [b, j]
    """
    return torch.zeros_like(like).scatter(-1, labels.long().unsqueeze(-1), 1)


def _multi_hot(labels: Tensor, lengths: Tensor) -> Tensor:
    """T_k of Eq. 4, in the dtype of lengths [b, j]: labels [b] or [b, j] → [b, j]."""
    if labels.ndim != 2:
        check_labels(labels, *lengths.shape)
        return one_hot(labels, lengths)
    b, j = lengths.shape
    if labels.shape != lengths.shape or not (labels.is_floating_point() or labels.dtype == torch.bool):
        raise InputError(
            f"labels are whole numbers [{b}], or multi-hot floats or bools [{b}, {j}], "
            f"not {labels.dtype} of shape {list(labels.shape)}"
        )
    if _is_readable(labels):
        others = labels[(labels != 0) & (labels != 1)]
        if others.numel():
            raise InputError(f"multi-hot labels are 0 or 1, not {others[0].item():g}")
    return labels.to(lengths.dtype)


def _is_readable(labels: Tensor) -> bool:
    """Whether there are numbers to check without waiting: on a CPU, and neither in compiled code nor under vmap."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or type(labels) is not Tensor:
        return False
    return labels.numel() > 0 and not torch._C._functorch.is_functorch_wrapped_tensor(labels)
