"""Data sets by name or from your own files, in memory as bytes, and their batches."""

from dataclasses import replace
from pathlib import Path

from capsnet.data.batches import batches, share
from capsnet.data.images import image_paths, image_tensor, read_folder
from capsnet.data.npz import read_npz
from capsnet.data.sets import Data, Fingerprint, ImageSet, PartFingerprint, size_pair
from capsnet.data.sources import NAMES, SOURCES, load_digits, load_source
from capsnet.data.splits import split
from capsnet.errors import InputError
from capsnet.files import reason, usable_path

__all__ = [
    "Data",
    "Fingerprint",
    "ImageSet",
    "PartFingerprint",
    "batches",
    "image_paths",
    "image_tensor",
    "load_data",
    "share",
]


def load_data(
    name: str,
    *,
    data_dir: str | Path | None = None,
    validation: int | None = None,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
) -> Data:
    """Load a data set: train, validation and test, each of images uint8 [n, c, h, w] and labels int64 [n].

    - name: "mnist", "fashion_mnist", "digits" (8x8, no download), or a path: a folder with one sub-folder of images
      for each class (see `read_folder`), or an .npz file (see `read_npz`). A folder called mnist is "./mnist".
    - data_dir: the folder that has the files of mnist and fashion_mnist, or that they are downloaded to; by default
      $CAPSNET_DATA, or else the user's cache
    - validation: how many training images are set aside: by default 5,000 of mnist and fashion_mnist, a tenth of other
      data; a folder may bring its own
    - seed: draws the validation images; the test images do not depend on it
    - image_size: the images' height and width in pixels, if not their own; one number makes them square

    The part that an image of a folder or an .npz file belongs to depends on its content, so that adding or removing
    others does not move it from training to test: see `split_by_content`.

    Raises InputError if the data cannot be found or used.
    """
    size = None if image_size is None else size_pair(image_size)
    try:
        data = _read(name, data_dir, size, validation, seed)
    except OSError as error:  # a folder or a file that may not be read, or a disk error
        at = f" at {error.filename}" if error.filename else ""
        raise InputError(f"{name} cannot be read ({reason(error)}{at})") from error
    return data.resized(size) if size else data


def _read(
    name: str, data_dir: str | Path | None, size: tuple[int, int] | None, validation: int | None, seed: int
) -> Data:
    if name == "digits":
        data = load_digits()
        return _split(data, len(data.train) // 10 if validation is None else validation, seed)
    if name in SOURCES:
        return _split(load_source(name, data_dir), 5000 if validation is None else validation, seed)
    path = usable_path(name)
    if path.is_dir():
        return read_folder(path, size, validation, seed)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path, validation, seed)
    raise InputError(f"no data set {name!r}: give {', '.join(NAMES)}, a folder of images by class, or an .npz file")


def _split(data: Data, validation: int, seed: int) -> Data:
    train, held_out = split(data.train, validation, seed)
    return replace(data, train=train, validation=held_out)
