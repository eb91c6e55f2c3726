"""Data sets in an .npz file: arrays of images and labels under their names."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capsnet.data.npz import Header, read_headers, read_npz
from capsnet.data.sets import Data, ImageSet
from capsnet.data.splits import split_by_content
from capsnet.errors import InputError

PAIRS = (("images", "labels"), ("test_images", "test_labels"))
KEYS = (*PAIRS[0], *PAIRS[1], "classes")


def read_arrays(path: Path, validation: int | None = None, seed: int = 0) -> Data:
    """Read an .npz file with the arrays `images` and `labels`.

    - images [n, h, w], [n, c, h, w] or [n, h, w, c] with c 1 or 3 (where both fit, channels come first):
      uint8, or floats in [0, 1]
    - labels [n]: whole numbers from 0 to k-1, each used at least once
    - optionally test_images and test_labels; without them about a tenth is held out, by what the images hold
    - optionally classes [k]: the names; without it they are the numbers

    Test and validation images are drawn by `split_by_content` from the bytes of each image.
    Raises InputError for anything else, before it is unpacked where the headers tell; those may promise up to 256 MiB,
    or 20 times the file. No pickle is ever loaded.
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
    arrays = read_npz(path, headers)
    train, *tests = (_image_set(path, arrays, *pair) for pair in pairs)
    classes = _classes(path, train.labels, arrays.get("classes"))
    digests = [hashlib.sha256(image.numpy().data).digest() for image in train.images]
    parts = split_by_content(train, digests, classes, test=not tests, validation=validation, seed=seed)
    return Data(str(path), classes, parts[0], parts[1], *tests or parts[2:])


def _check_pair(path: Path, headers: dict[str, Header], images_key: str, labels_key: str) -> None:
    """Refuse what shapes and types alone tell cannot be used, before it is unpacked."""
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
    """Turn floats in [0, 1] into bytes; bytes stay."""
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    low, high = images.min(), images.max()
    if images.dtype.kind != "f" or not (low >= 0 and high <= 1):  # so put, NaN fails too
        raise InputError(
            f"{path}: {key} are {images.dtype} from {low} to {high}: they must be uint8, or floats in [0, 1]"
        )
    pixels = np.empty(images.shape, np.uint8)
    for image, floats in zip(pixels, images, strict=True):  # one by one, lest all be held as floats once more
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
        raise InputError(f"{path}: classes are bytes that are no UTF-8: save them as text") from error
