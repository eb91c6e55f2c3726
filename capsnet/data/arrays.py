"""Data sets in an .npz file: arrays of images and labels under their names."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capsnet.data.sets import Data, ImageSet, hold_out_tenth
from capsnet.errors import InputError

KEYS = ("images", "labels", "test_images", "test_labels", "classes")


def read_arrays(path: Path) -> Data:
    """Read an .npz file with the arrays `images` and `labels`; the validation set is empty.

    - images [n, h, w], [n, c, h, w] or [n, h, w, c] with c 1 or 3 (where both fit, channels come first):
      uint8, or floats in [0, 1]
    - labels [n]: whole numbers from 0 to k-1, each used at least once
    - optionally test_images and test_labels; without them a tenth of each class, always the same, is held out
    - optionally classes [k]: the names; without it they are the numbers

    Raises InputError for anything else. No pickle is ever loaded.
    """
    arrays = _load(path)
    if missing := [key for key in KEYS[:2] if key not in arrays]:
        raise InputError(f"{path} has no array {missing[0]!r}: save it with np.savez(path, images=..., labels=...)")
    train = _image_set(path, arrays, "images", "labels")
    classes = _classes(path, train.labels, arrays.get("classes"))
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise InputError(f"{path} has only one of the arrays test_images and test_labels: give both or neither")
    if "test_images" in arrays:
        test = _image_set(path, arrays, "test_images", "test_labels")
    else:
        train, test = hold_out_tenth(train, classes)
    return Data(str(path), classes, train, train.select(torch.arange(0)), test)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in KEYS if key in archive}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz ({error}): write it with np.savez") from error


def _image_set(path: Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str) -> ImageSet:
    images, labels = arrays[images_key], arrays[labels_key]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: {labels_key} are {labels.dtype} {labels.shape}: they must be whole numbers [n]")
    if images.size == 0 or images.shape[:1] != labels.shape:
        raise InputError(
            f"{path}: {images_key} {images.shape} and {labels_key} {labels.shape} must match, and not be empty"
        )
    pixels = _channels_first(path, images_key, images)
    return ImageSet(torch.from_numpy(_bytes(path, images_key, pixels)), torch.from_numpy(labels.astype(np.int64)))


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
    return np.ascontiguousarray(np.round(images * 255).astype(np.uint8))


def _classes(path: Path, labels: Tensor, names: np.ndarray | None) -> tuple[str, ...]:
    used = labels.unique().tolist()
    k = len(used) if names is None else names.size
    if used != list(range(k)):
        found = ", ".join(str(label) for label in used[:10]) + (", ..." if len(used) > 10 else "")
        raise InputError(f"{path}: labels must run from 0 to {k - 1}, each used at least once, not {found}")
    return tuple(str(name) for name in (range(k) if names is None else names.flatten()))
