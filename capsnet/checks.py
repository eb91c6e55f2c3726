"""What any network asks of its arguments, refused with the value and the way out."""

from collections.abc import Sequence

from capsnet.errors import InputError


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise InputError for a value that is not among the known ones."""
    if value not in known:
        raise InputError(f"{name} is one of {', '.join(known)}, not {value!r}")


def check_sizes(image_shape: Sequence[int], classes: int, **sizes: int) -> None:
    """Raise InputError for an image shape that is not (channels, height, width), a size below 1 or one class."""
    if len(image_shape) != 3:
        raise InputError(f"image_shape is (channels, height, width), not {tuple(image_shape)}")
    sizes |= dict(zip(("channels", "height", "width"), image_shape, strict=True))
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if classes < 2:
        raise InputError(f"a network needs at least two classes, not {classes}")
