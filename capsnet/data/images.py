"""Image files of any format: one for a network, all in a folder, or a folder of classes as a data set."""

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from capsnet.data.sets import Data, ImageSet, resized
from capsnet.data.splits import split_by_content
from capsnet.errors import InputError
from capsnet.files import check_regular, reading

if TYPE_CHECKING:
    from PIL import Image

FOLDERS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
MAX_PIXELS = 1 << 26  # of an image; decoding and converting it takes up to 18 bytes per pixel, 1.2 GB in all
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
NOT_IMAGES = frozenset({".csv", ".db", ".ini", ".json", ".md", ".txt"})


def image_tensor(
    source: "str | Path | Image.Image", image_shape: tuple[int, int, int], *, invert: bool = False
) -> Tensor:
    """Read one image, from a file or from Pillow, as a network of image_shape (c, h, w) takes it.

    It is converted to grey (c = 1) or colour (c = 3), turned upright by its EXIF data, and resized without keeping its
    aspect ratio. `invert` swaps light and dark. Transparent pixels become black in either case.

    Raises InputError, naming the file, if it cannot be read or has more than 2^26 pixels. The number of pixels is
    checked before decoding, so that reading takes 1.2 GB at most. → uint8 [c, h, w]
    """
    c, h, w = image_shape
    if c not in (1, 3):
        raise InputError(f"an image has 1 channel (grey) or 3 (colour), not the {c} this network takes")
    image = _decoded(source, background=255 if invert else 0)
    pixels = _pixels(image.convert("L" if c == 1 else "RGB"))
    fitted = resized(pixels.unsqueeze(0), (h, w)).squeeze(0)  # [c, h, w]
    return 255 - fitted if invert else fitted


def image_paths(sources: Iterable[str | Path]) -> list[Path]:
    """Replace each folder among these paths by the images in it and in its sub-folders, sorted by path.

    Hidden files and folders, and notes (.txt, .md, ...), are skipped. Raises InputError for a folder without images.
    """
    paths = []
    for source in map(Path, sources):
        if not os.path.isdir(source):
            paths.append(source)
            continue
        with reading(source, "a folder of images"):
            found = sorted(_walk(source))
        if not found:
            raise InputError(f"{source} holds no images: give image files, or a folder with images")
        paths += found
    return paths


def _walk(folder: Path) -> list[Path]:
    """Image files of a folder and its sub-folders."""
    found = _image_files(folder)
    for inner in _folders(folder):
        if not inner.is_symlink():  # a link may lead back here
            found += _walk(inner)
    return found


def read_folder(
    folder: Path, size: tuple[int, int] | None = None, validation: int | None = None, seed: int = 0
) -> Data:
    """Read a folder with one sub-folder of images for each class; the sub-folders' sorted names are the classes.

    If the folder has nothing but train/ and one or both of test/ and validation/ (or val/, or valid/), each of these
    holds the sub-folders of classes. The other parts are selected by `split_by_content` from the bytes of each file.
    Images are grey if all of them are, else colour; with size (h, w) they are resized. Hidden files and notes (.txt,
    .md, ...) are skipped; any other file must be an image as `image_tensor` takes it.

    Raises InputError for an image that cannot be read, an empty class, parts with different classes, two folders of
    validation images, sizes that differ when no size is given, and a number of validation images where a folder has
    them.
    """
    folders = _part_folders(folder)
    if "validation" in folders and validation is not None:
        raise InputError(f"{folder} has validation images of its own: leave --validation out")
    files = {part: _class_files(place) for part, place in folders.items()}
    classes = tuple(files["train"])
    for part, by_class in files.items():
        if odd := set(by_class) ^ set(classes):
            raise InputError(
                f"{folder}: class {min(odd)!r} is not in both train/ and {folders[part].name}/: "
                "give both the same classes"
            )
    entries = [
        (part, label, path)
        for part, by_class in files.items()
        for label, paths in enumerate(by_class.values())
        for path in paths
    ]
    pixels, digests = _read_all([path for _, _, path in entries], size)
    images = ImageSet(pixels, torch.tensor([label for _, label, _ in entries]))
    given = {
        name: images.select(torch.tensor([part == name for part, _, _ in entries]).nonzero().flatten())
        for name in folders
    }
    train, validation_images, test_images = split_by_content(
        given["train"],
        digests[: len(given["train"])],  # the entries of train come first
        classes,
        test="test" not in folders,
        validation=0 if "validation" in folders else validation,
        seed=seed,
    )
    held_out = given.get("validation", validation_images)
    return Data(str(folder), classes, train, held_out, given.get("test", test_images))


def _part_folders(folder: Path) -> dict[str, Path]:
    """The folder of each part that has one; the folder itself as train where it has no parts."""
    names = [path.name for path in _folders(folder)]
    if "train" not in names or len(names) < 2 or not FOLDERS.keys() >= set(names):
        return {"train": folder}
    held_out = [name for name in names if FOLDERS[name] == "validation"]
    if len(held_out) > 1:
        raise InputError(f"{folder} has {' and '.join(f'{name}/' for name in held_out)}: keep one of them")
    return {FOLDERS[name]: folder / name for name in sorted(names, key=[*FOLDERS].index)}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_files(folder: Path) -> dict[str, list[Path]]:
    files = {path.name: _files_of_class(path) for path in _folders(folder)}
    if len(files) < 2:
        raise InputError(
            f"{folder} has {len(files)} class folders: it takes at least two, each with the class's images"
        )
    if empty := [name for name, paths in files.items() if not paths]:
        raise InputError(f"{folder / empty[0]} holds no images: add some, or remove the folder")
    return files


def _files_of_class(folder: Path) -> list[Path]:
    if inner := _folders(folder):
        raise InputError(
            f"{inner[0]} is a folder within the class {folder.name!r}: put images directly into a class's folder"
        )
    return _image_files(folder)


def _image_files(folder: Path) -> list[Path]:
    """Everything in a folder but folders, hidden files and notes."""
    visible = (path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    return sorted(path for path in visible if path.suffix.lower() not in NOT_IMAGES)


def _read_all(paths: list[Path], size: tuple[int, int] | None) -> tuple[Tensor, list[bytes]]:
    """Read files → images of one shape [n, c, h, w], and the digest of each file."""
    images: list[Tensor] = []
    digests: list[bytes] = []
    faults: list[str] = []
    first_of_size: dict[tuple[int, ...], Path] = {}
    for path in paths:
        try:
            pixels = _grey_if_possible(_pixels(_decoded(path)))
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
        raise InputError(f"images of {len(first_of_size)} sizes, {found}: give them one size with --image-size")
    channels = max(image.shape[1] for image in images)
    return torch.cat([image.expand(-1, channels, -1, -1) for image in images]), digests


def _decoded(source: "str | Path | Image.Image", background: int = 0) -> "Image.Image":
    """Decode an image upright and without transparency → Pillow's mode L or RGB."""
    from PIL import Image

    if isinstance(source, Image.Image):
        with reading(getattr(source, "filename", "") or "the image", "an image"):
            _check_decodable(source)
            return _flattened(source.copy(), background)
    with reading(source, "an image"):
        check_regular(Path(source))
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # about an image inside a file, as in an icon
        with Image.open(source) as image:
            _check_decodable(image)
            return _flattened(image, background)


def _check_decodable(image: "Image.Image") -> None:
    """Raise ValueError for an image that its header shows to be too large or a program."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF, whose tiles may be larger than the image
    tile = tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)
    for what, (width, height) in (("", image.size), (" a tile", tile)):
        if not 0 < width * height <= MAX_PIXELS:
            raise ValueError(f"its {width} x {height} pixels{what} are not from 1 to {MAX_PIXELS}")
    if image.format == "EPS":
        raise ValueError("EPS is a program, which would be run")


def _flattened(image: "Image.Image", background: int) -> "Image.Image":
    """Turn an image upright, in place, and convert it to mode L or RGB."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_bytes(image)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (background, background, background, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_bytes(image: "Image.Image") -> "Image.Image":
    """Scale grey values from 16 bits to 8."""
    from PIL import Image

    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise InputError(f"pixels of mode {image.mode} have no known range: save it with 8 or 16 bits")
    scaled = levels.astype(np.uint32)
    scaled += 128  # half of 257, to round to the nearest
    scaled //= 257
    return Image.fromarray(scaled.astype(np.uint8))


def _pixels(image: "Image.Image") -> Tensor:
    """Convert an image of mode L or RGB to uint8 [c, h, w]."""
    levels = torch.from_numpy(np.array(image))  # [h, w] or [h, w, c]
    return levels.unsqueeze(0) if levels.ndim == 2 else levels.permute(2, 0, 1).contiguous()


def _grey_if_possible(pixels: Tensor) -> Tensor:
    """Return one channel of a colour image whose channels are equal. [c, h, w] → [1, h, w] or unchanged."""
    return pixels[:1] if (pixels == pixels[:1]).all() else pixels
