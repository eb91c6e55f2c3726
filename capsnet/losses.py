"""The two losses of Sabour, Frosst and Hinton (2017): the margin loss (Eq. 4) and the reconstruction loss (4.1)."""

from einops import reduce
from torch import Tensor

from capsnet.errors import InputError
from capsnet.inputs import check_labels, one_hot


def margin_loss(
    lengths: Tensor, labels: Tensor, present: float = 0.9, absent: float = 0.1, down_weight: float = 0.5
) -> Tensor:
    """Ask the true class's capsule to be longer than `present` and every other one to be shorter than `absent`.

    L_k = T_k max(0, m⁺ - |v_k|)² + λ (1 - T_k) max(0, |v_k| - m⁻)² (Eq. 4), summed over the classes k and averaged
    over the images. Raises InputError for labels that are not whole numbers from 0 to j - 1, one an image.

    lengths [b, j], labels [b] → a scalar
    """
    if lengths.ndim != 2 or not lengths.is_floating_point():
        raise InputError(f"lengths are floats [b, j], not {lengths.dtype} of shape {list(lengths.shape)}")
    check_labels(labels, *lengths.shape)
    truth = one_hot(labels, lengths)  # [b, j]
    missing = truth * (present - lengths).relu().square()
    spurious = (1 - truth) * (lengths - absent).relu().square()
    return reduce(missing + down_weight * spurious, "b j -> b", "sum").mean()


def reconstruction_loss(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Squared difference of reconstruction and image, summed over pixels and channels and averaged over images (4.1).

    Raises InputError where the two shapes differ.

    reconstruction [b, c, h, w], image [b, c, h, w], both in [0, 1] → a scalar
    """
    if reconstruction.shape != image.shape:
        raise InputError(
            f"a reconstruction of shape {list(reconstruction.shape)} cannot be compared with images {list(image.shape)}"
        )
    return squared_errors(reconstruction, image).mean()


def squared_errors(reconstruction: Tensor, image: Tensor) -> Tensor:
    """How badly each image is drawn: squared errors, summed over pixels.

    reconstruction [b, c, h, w], image [b, c, h, w], both in [0, 1] → [b]
    """
    return reduce((reconstruction - image).square(), "b c h w -> b", "sum")
