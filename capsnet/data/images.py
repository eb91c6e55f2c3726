"""Image files of any kind: read one for a network, or a folder of them as a data set."""

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from capsnet.data.inputs import check_regular, reading
from capsnet.data.resize import resized
from capsnet.data.sets import Data, ImageSet
from capsnet.data.splits import split_by_content
from capsnet.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "validation", "test")
MAX_PIXELS = 1 << 26  # of an image; decoding and converting it takes up to 18 bytes a pixel, and so 1.2 GB
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
NOT_IMAGES = frozenset({".csv", ".db", ".ini", ".json", ".md", ".txt"})


def image_tensor(
    source: "str | Path | Image.Image", image_shape: tuple[int, int, int], *, invert: bool = False
) -> Tensor:
    """Read one image, from a file or from Pillow, as a network of image_shape (c, h, w) takes it.

    It is made grey (c = 1) or colour (c = 3), turned upright as its EXIF data say, and resized without keeping its
    aspect ratio. invert turns dark on light into light on dark. What is transparent comes out black either way.
    Raises InputError, naming the file, where it cannot be read or has more than 2^26 pixels: this is known before it is
    decoded, and so it takes 1.2 GB at most. → uint8 [c, h, w]
    """
    c, h, w = image_shape
    if c not in (1, 3):
        raise InputError(f"an image has 1 channel (grey) or 3 (colour), not the {c} this network takes")
    image = _decoded(source, background=255 if invert else 0)
    pixels = _pixels(image.convert("L" if c == 1 else "RGB"))
    fitted = resized(pixels.unsqueeze(0), (h, w)).squeeze(0)  # [c, h, w]
    return 255 - fitted if invert else fitted


def read_folder(
    folder: Path, size: tuple[int, int] | None = None, validation: int | None = None, seed: int = 0
) -> Data:
    """Read a folder with one sub-folder of images for each class; the sub-folders' sorted names are the classes.

    Where the folder has exactly the sub-folders train/ and test/, or these and validation/, each of them holds the
    sub-folders of classes. What there is no sub-folder for is drawn by `split_by_content` from the bytes of each file.
    Images are grey if all of them are, else colour; with size (h, w) they are resized. Hidden files and notes (.txt,
    .md, ...) are passed over; any other file must be an image as `image_tensor` takes it.
    Raises InputError for an image that cannot be read, an empty class, sizes that differ when none is given, or a
    number of validation images where there are some already.
    """
    files = {part: _class_files(place) for part, place in _parts(folder).items()}
    if "validation" in files and validation is not None:
        raise InputError(f"{folder} has validation images of its own: leave --validation out")
    classes = tuple(files["train"])
    for part, by_class in files.items():
        if odd := set(by_class) ^ set(classes):
            raise InputError(
                f"{folder}: class {min(odd)!r} is not in both train/ and {part}/: give all the same classes"
            )
    entries = [
        (part, label, path)
        for part, by_class in files.items()
        for label, paths in enumerate(by_class.values())
        for path in paths
    ]
    pixels, digests = _read_all([path for _, _, path in entries], size)
    images = ImageSet(pixels, torch.tensor([label for _, label, _ in entries]))
    of_part = {name: torch.tensor([part == name for part, _, _ in entries]).nonzero().flatten() for name in SPLITS}
    train, *given = (images.select(of_part[name]) for name in SPLITS)
    count = 0 if "validation" in files else validation
    train, *drawn = split_by_content(
        train, digests[: len(train)], classes, test="test" not in files, validation=count, seed=seed
    )
    parts = (own if name in files else new for name, own, new in zip(SPLITS[1:], given, drawn, strict=True))
    return Data(str(folder), classes, train, *parts)


def _parts(folder: Path) -> dict[str, Path]:
    names = {path.name for path in _folders(folder)}
    if names in ({"train", "test"}, set(SPLITS)):
        return {name: folder / name for name in SPLITS if name in names}
    return {"train": folder}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_files(folder: Path) -> dict[str, list[Path]]:
    files = {path.name: _image_files(path) for path in _folders(folder)}
    if len(files) < 2:
        raise InputError(
            f"{folder} has {len(files)} class folders: it takes at least two, each with the class's images"
        )
    if empty := [name for name, paths in files.items() if not paths]:
        raise InputError(f"{folder / empty[0]} holds no images: add some, or remove the folder")
    return files


def _image_files(folder: Path) -> list[Path]:
    if inner := _folders(folder):
        raise InputError(
            f"{inner[0]} is a folder within the class {folder.name!r}: images lie right in a class's folder"
        )
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in visible if path.suffix.lower() not in NOT_IMAGES)


def _read_all(paths: list[Path], size: tuple[int, int] | None) -> tuple[Tensor, list[bytes]]:
    """Read files as images of one shape [n, c, h, w], and the digest of each file."""
    images: list[Tensor] = []
    digests: list[bytes] = []
    faults: list[str] = []
    first_of_size: dict[tuple[int, ...], Path] = {}
    for path in paths:
        try:
            pixels = _without_needless_colour(_pixels(_decoded(path)))
            with reading(path, "an image"), path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        except InputError as fault:
            faults.append(str(fault))
            continue
        images.append(resized(pixels.unsqueeze(0), size) if size else pixels.unsqueeze(0))
        first_of_size.setdefault(tuple(images[-1].shape[2:]), path)
    if faults:
        raise InputError(f"{len(faults)} unusable files: {'; '.join(faults[:5])}: repair or remove them")
    if len(first_of_size) > 1:
        found = ", ".join(f"{h}x{w} ({path})" for (h, w), path in list(first_of_size.items())[:5])  # height x width
        raise InputError(f"images of {len(first_of_size)} sizes, {found}: bring them to one with --image-size")
    channels = max(image.shape[1] for image in images)
    return torch.cat([image.expand(-1, channels, -1, -1) for image in images]), digests


def _decoded(source: "str | Path | Image.Image", background: int = 0) -> "Image.Image":
    """Decode an image, upright and without transparency, in Pillow's mode L or RGB."""
    from PIL import Image

    if isinstance(source, Image.Image):
        with reading(getattr(source, "filename", "") or "the image", "an image"):
            _check_decodable(source)
            return _flattened(source.copy(), background)
    with reading(source, "an image"):
        check_regular(Path(source))
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # of an image within the image, as in an icon
        with Image.open(source) as image:
            _check_decodable(image)
            return _flattened(image, background)


def _check_decodable(image: "Image.Image") -> None:
    """Refuse what its header alone tells is not to be decoded."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF, whose tiles may be larger than the image
    tile = tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)
    for what, (width, height) in (("", image.size), (" a tile", tile)):
        if not 0 < width * height <= MAX_PIXELS:
            raise ValueError(f"its {width} x {height} pixels{what} are not from 1 to {MAX_PIXELS}")
    if image.format == "EPS":
        raise ValueError("EPS is a program, which would be run")


def _flattened(image: "Image.Image", background: int) -> "Image.Image":
    """Turn an image that may be changed upright, and bring it to mode L or RGB."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_bytes(image)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (background, background, background, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_bytes(image: "Image.Image") -> "Image.Image":
    """Scale grey values of 16 bits to 8."""
    from PIL import Image

    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise InputError(f"pixels of mode {image.mode} have no known range: save it with 8 or 16 bits")
    scaled = levels.astype(np.uint32)
    scaled += 128  # half of 257, to round to the nearest
    scaled //= 257
    return Image.fromarray(scaled.astype(np.uint8))


def _pixels(image: "Image.Image") -> Tensor:
    """Turn an image of mode L or RGB into uint8 [c, h, w]."""
    levels = torch.from_numpy(np.array(image))  # [h, w] or [h, w, c]
    return levels.unsqueeze(0) if levels.ndim == 2 else levels.permute(2, 0, 1).contiguous()


def _without_needless_colour(pixels: Tensor) -> Tensor:
    """Reduce a colour image whose channels are all the same to one of them. [c, h, w] → [1, h, w] or as it was."""
    return pixels[:1] if (pixels == pixels[:1]).all() else pixels
