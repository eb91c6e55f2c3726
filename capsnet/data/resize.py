"""One way to resize images, whatever they were read from: bilinear, without aliasing."""

from torch import Tensor
from torch.nn.functional import interpolate

from capsnet.errors import InputError


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images to size (h, w); the aspect ratio is not kept. uint8 [n, c, h', w'] → uint8 [n, c, h, w]."""
    if len(images) == 0:
        return images.new_empty(*images.shape[:2], *size)
    return interpolate(images, size, mode="bilinear", antialias=True)


def size_pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (h, w): a whole number is the side of a square. Raises InputError below one pixel."""
    h, w = (image_size, image_size) if isinstance(image_size, int) else image_size
    if h < 1 or w < 1:
        raise InputError(f"images of {h}x{w} pixels are impossible: give --image-size at least 1")
    return h, w
