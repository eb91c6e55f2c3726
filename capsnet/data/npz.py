"""Data sets in .npz files, read in bounded memory: sizes are checked before unpacking, and no pickle is ever loaded."""

import hashlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from capsnet.data.sets import Data, ImageSet
from capsnet.data.splits import split_by_content
from capsnet.errors import InputError
from capsnet.files import check_regular, check_unpacked, reading

PAIRS = (("images", "labels"), ("test_images", "test_labels"))
KEYS = (*PAIRS[0], *PAIRS[1], "classes")
ENCRYPTED = 1  # flag of a zip member
HINT = "write it with np.savez"


def read_npz(path: Path, validation: int | None = None, seed: int = 0) -> Data:
    """Read a data set from an .npz file with the arrays `images` and `labels`.

    - images [n, h, w], [n, c, h, w] or [n, h, w, c] with c 1 or 3 (if both fit, channels come first):
      uint8, or floats in [0, 1]
    - labels [n]: whole numbers from 0 to k-1, each used at least once
    - optionally test_images and test_labels; without them, about a tenth of the images is held out
    - optionally classes [k]: the names; without it, they are the numbers

    Test and validation images are selected by `split_by_content` from the bytes of each image.

    Raises InputError for anything else, before unpacking where the headers show it; the arrays may have up to 256 MiB,
    or 20 times the file.
    """
    headers = read_headers(path, KEYS)
    if missing := [key for key in KEYS[:2] if key not in headers]:
        raise InputError(f"{path} has no array {missing[0]!r}: save it with np.savez(path, images=..., labels=...)")
    if ("test_images" in headers) != ("test_labels" in headers):
        raise InputError(f"{path} has only one of the arrays test_images and test_labels: give both or neither")
    pairs = [pair for pair in PAIRS if pair[0] in headers]
    for pair in pairs:
        _check_pair(path, headers, *pair)
    names = headers.get("classes")
    if names and (names.dtype.kind not in "USiu" or len(names.shape) != 1):
        raise InputError(f"{path}: classes are {names.dtype} {names.shape}: they must be names [k], as text")
    arrays = read_arrays(path, headers)
    train, *tests = (_image_set(path, arrays, *pair) for pair in pairs)
    classes = _classes(path, train.labels, arrays.get("classes"))
    digests = [hashlib.sha256(image.numpy().data).digest() for image in train.images]
    parts = split_by_content(train, digests, classes, test=not tests, validation=validation, seed=seed)
    return Data(str(path), classes, parts[0], parts[1], *tests or parts[2:])


class Header(NamedTuple):
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes that the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_headers(path: Path, names: Collection[str] | None = None, hint: str = HINT) -> dict[str, Header]:
    """Read the headers of an .npz file's arrays, or of those with these names; unpack nothing else.

    Raises InputError, ending in `hint`, for a file that is not an .npz; for an array whose header is damaged or does
    not fit its size in the archive, or that holds anything but numbers or text (records, Python objects); and for one
    that is encrypted or compressed otherwise than by deflate.
    """
    check_regular(path)
    with reading(path, ".npz", hint), path.open("rb") as file, ZipFile(file) as archive:
        found = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
        return {name: _header(archive, name) for name in found if names is None or name in names}


def read_arrays(path: Path, headers: Mapping[str, Header], hint: str = HINT) -> dict[str, np.ndarray]:
    """Read the arrays that have these headers.

    Raises InputError if they would unpack to more than 256 MiB and 20 times the file, before unpacking anything, and
    for damaged content.
    """
    check_unpacked(path, sum(header.size for header in headers.values()), "save it by np.savez, uncompressed")
    with reading(path, ".npz", hint), path.open("rb") as file, ZipFile(file) as archive:
        return {name: _array(archive, name) for name in headers}


def _header(archive: ZipFile, name: str) -> Header:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.flag_bits & ENCRYPTED:
        raise ValueError(f"{name} is encrypted or compressed in an unusual way")
    with archive.open(info) as member:
        header = _parsed(name, member)
        if member.tell() + header.size != info.file_size:
            raise ValueError(f"{name} has {info.file_size} bytes, which do not fit {header.shape} of {header.dtype}")
    return header


def _parsed(name: str, member: IO[bytes]) -> Header:
    if npy.read_magic(member) != (1, 0):  # other versions have headers of any size, for records
        raise ValueError(f"{name} is not an array of numbers or text")
    shape, _, dtype = npy.read_array_header_1_0(member)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    if dtype.kind not in "biufSU" or not dtype.itemsize:
        raise ValueError(f"{name} is of {dtype}, but should be numbers or text")
    if any(size < 0 for size in shape):
        raise ValueError(f"{name} has the impossible shape {shape}")
    return Header(shape, dtype)


def _array(archive: ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return npy.read_array(member, allow_pickle=False)


def _check_pair(path: Path, headers: dict[str, Header], images_key: str, labels_key: str) -> None:
    """Raise InputError for shapes and types that cannot be used."""
    images, labels = headers[images_key], headers[labels_key]
    if len(labels.shape) != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: {labels_key} are {labels.dtype} {labels.shape}: they must be whole numbers [n]")
    if 0 in images.shape or images.shape[:1] != labels.shape:
        raise InputError(
            f"{path}: {images_key} {images.shape} and {labels_key} {labels.shape} must match, and not be empty"
        )
    if images.dtype.kind not in "biuf":
        raise InputError(f"{path}: {images_key} are {images.dtype}: they must be uint8, or floats in [0, 1]")


def _image_set(path: Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> ImageSet:
    images, labels = arrays[images_key], arrays[labels_key]
    if labels.max() > np.iinfo(np.int64).max:
        raise InputError(f"{path}: {labels_key} run up to {labels.max()}: they must run from 0 to k-1")
    pixels = _bytes(path, images_key, _channels_first(path, images_key, images))
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _channels_first(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """Bring images to [n, c, h, w]."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    raise InputError(
        f"{path}: {key} are {images.shape}: they must be [n, h, w], or [n, c, h, w] or [n, h, w, c] with c 1 or 3"
    )


def _bytes(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1] to bytes; bytes stay."""
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    low, high = images.min(), images.max()
    if images.dtype.kind != "f" or not (low >= 0 and high <= 1):  # in this form, NaN fails too
        raise InputError(
            f"{path}: {key} are {images.dtype} from {low} to {high}: they must be uint8, or floats in [0, 1]"
        )
    pixels = np.empty(images.shape, np.uint8)
    for image, floats in zip(pixels, images, strict=True):  # one by one, to save memory
        image[...] = np.round(floats * 255)
    return pixels


def _classes(path: Path, labels: Tensor, names: np.ndarray | None) -> tuple[str, ...]:
    used = labels.unique().tolist()
    k = len(used) if names is None else names.size
    if used != list(range(k)):
        found = ", ".join(str(label) for label in used[:10]) + (", ..." if len(used) > 10 else "")
        raise InputError(f"{path}: labels must run from 0 to {k - 1}, each used at least once, not {found}")
    if names is None:
        return tuple(str(number) for number in range(k))
    try:
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: classes are bytes that are not UTF-8: save them as text") from error
