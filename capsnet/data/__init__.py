"""Data sets by name or from your own files, in memory as bytes, and the batches cut from them."""

from dataclasses import replace
from pathlib import Path

from capsnet.data.arrays import read_arrays
from capsnet.data.batches import batches, shifted
from capsnet.data.digits import load_digits
from capsnet.data.images import image_tensor, read_folder
from capsnet.data.resize import size_pair
from capsnet.data.sets import Data, Fingerprint, ImageSet, PartFingerprint, split
from capsnet.data.sources import SOURCES, load_source
from capsnet.errors import InputError

__all__ = [
    "Data",
    "Fingerprint",
    "ImageSet",
    "PartFingerprint",
    "batches",
    "image_tensor",
    "load_data",
    "shifted",
    "split",
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

    - name: "mnist", "fashion_mnist", "digits" (bundled, 8x8), or a path: a folder with one sub-folder of images for
      each class (see `read_folder`), or an .npz file (see `read_arrays`). A folder called mnist is "./mnist".
    - data_dir: where the files of mnist and fashion_mnist are, or are downloaded to; else $CAPSNET_DATA, else the
      user's cache
    - validation: how many training images are set aside, drawn by seed: 5,000 of mnist and fashion_mnist, else a
      tenth, unless told; a folder may bring its own
    - image_size: the images' height and width in pixels, if not their own; a whole number makes them square

    Raises InputError where the data cannot be had or used. The test images never depend on seed.
    """
    size = None if image_size is None else size_pair(image_size)
    data = _read(name, data_dir, size)
    data = data.resized(size) if size else data
    if len(data.validation):
        if validation is not None:
            raise InputError(f"{name} has validation images of its own: leave --validation out")
        return data
    tenth = len(data.train) // 10
    default = 5000 if name in SOURCES else tenth
    train, held_out = split(data.train, default if validation is None else validation, seed)
    return replace(data, train=train, validation=held_out)


def _read(name: str, data_dir: str | Path | None, size: tuple[int, int] | None) -> Data:
    if name == "digits":
        return load_digits()
    if name in SOURCES:
        return load_source(name, data_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        return read_folder(path, size)
    if path.suffix == ".npz" and path.is_file():
        return read_arrays(path)
    known = ", ".join([*SOURCES, "digits"])
    raise InputError(f"no data set {name!r}: give {known}, a folder of images by class, or an .npz file")
