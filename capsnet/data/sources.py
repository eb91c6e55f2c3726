"""Data sets with a name: MNIST and Fashion-MNIST in IDX files, found on disk or downloaded, and scikit-learn's digits.

An IDX file has a magic number, big-endian dimensions and then bytes; it may be gzipped.
"""

import gzip
import hashlib
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from capsnet.data.sets import Data, ImageSet
from capsnet.data.splits import hold_out
from capsnet.errors import InputError
from capsnet.files import cache_folder, check_regular, check_unpacked, reason, usable_path

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@dataclass(frozen=True)
class Source:
    """A data set in four IDX files.

    sha256 has the checksum of each of FILES. test_labels_sha256 is that of the test labels alone, one byte each: it
    distinguishes the two sets, whose files have the same names.
    """

    classes: tuple[str, ...]
    mirrors: tuple[str, ...]
    sha256: tuple[str, ...]
    test_labels_sha256: str


# Checksums of files whose MD5 sums are the published ones
# (MNIST f68b3c2d, d53e105e, 9fb629c4, ec29112d; Fashion-MNIST 8d4fb7e6, 25c81989, bef4ecab, bb300cfd).
SOURCES = {
    "mnist": Source(
        classes=tuple(str(digit) for digit in range(10)),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256=(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        test_labels_sha256="ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
    "fashion_mnist": Source(
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        test_labels_sha256="3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
}
NAMES = (*SOURCES, "digits")


def load_source(name: str, data_dir: str | Path | None = None) -> Data:
    """Load one of SOURCES from its four files: images [n, 1, h, w]; the validation set is empty.

    The files are searched for in data_dir, else in $CAPSNET_DATA, else in the user's cache; there in a folder named
    like the set or at the top, gzipped or not. A file that is found is used as it is, so that you can replace the data
    by your own. A missing file is downloaded to <folder>/<name>/ from the first mirror that answers.

    Raises InputError if a file is neither found nor downloaded, or the files do not belong together.
    """
    folder = data_folder(data_dir)
    missing = [file for file in FILES if _found(folder, name, file) is None]
    paths = [_found(folder, name, file) or _download(folder, name, file, missing) for file in FILES]
    train_images, train_labels, test_images, test_labels = paths
    train, test = _read(train_images, train_labels), _read(test_images, test_labels)
    _check_is(name, test, folder)
    return Data(name, SOURCES[name].classes, train, train.select(torch.arange(0)), test)


def load_digits(per_class: int = 36, seed: int = 0) -> Data:
    """Load the 1,797 handwritten digits of scikit-learn, which need no download; the validation set is empty.

    36 images of each digit, drawn by seed 0, are the test set of 360. Images [n, 1, 8, 8].
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    levels = torch.from_numpy(bunch.images)  # [n, 8, 8], 0 to 16
    images = (levels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)  # [n, 1, 8, 8]
    labels = torch.from_numpy(bunch.target).long()
    train, test = hold_out(ImageSet(images, labels), [per_class] * 10, seed)
    return Data("digits", tuple(str(digit) for digit in range(10)), train, train.select(torch.arange(0)), test)


def data_folder(data_dir: str | Path | None = None) -> Path:
    """Return the folder where files are searched for and downloaded to: data_dir, else $CAPSNET_DATA, else the cache.

    Raises InputError for a path that cannot be a folder.
    """
    chosen = os.environ.get("CAPSNET_DATA") or None if data_dir is None else data_dir
    if chosen is None:
        try:
            return cache_folder()
        except RuntimeError as error:
            raise InputError("there is no home folder to keep data in: choose a folder with --data-dir") from error
    folder = usable_path(chosen)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the data")
    return folder


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of bytes with this number of dimensions (3 for images [n, h, w], 1 for labels [n]) → uint8.

    Raises InputError, naming the file, if it is in another format, truncated, empty or longer than its header says,
    or if its header announces more than 256 MiB and 20 times the file: then nothing but the header is unpacked.
    """
    check_regular(path)
    try:
        with _unpacking(path) as file:
            shape = _shape(path, file.read(4 + 4 * dimensions), dimensions)
            expected = math.prod(shape)
            check_unpacked(path, expected, "gunzip it")
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): download it again") from error
    if len(content) < expected:
        raise InputError(f"{path} is truncated: {len(content)} bytes where {shape} takes {expected}: download it again")
    if len(content) > expected:
        raise InputError(f"{path} is too long: more than the {expected} bytes that {shape} takes: download it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    if header[:4] != bytes([0, 0, 8, dimensions]):  # 8: unsigned bytes
        found = header[:4].hex() or "nothing"
        raise InputError(f"{path} is not an IDX file of {dimensions}-D bytes: it begins with {found}")
    if len(header) < 4 + 4 * dimensions:
        raise InputError(f"{path} is truncated within its header: download it again")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape:
        raise InputError(f"{path} is empty: its dimensions are {shape}")
    return shape


@contextmanager
def _unpacking(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not gzipped:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def _found(folder: Path, name: str, file: str) -> Path | None:
    candidates = (place / form for place in (folder / name, folder) for form in (file, file.removesuffix(".gz")))
    return next((path for path in candidates if path.is_file()), None)


def _read(images_path: Path, labels_path: Path) -> ImageSet:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} has {len(images)} images but {labels_path} {len(labels)} labels: put a matching pair there"
        )
    return ImageSet(images.unsqueeze(1), labels.long())  # [n, 1, h, w]


def _check_is(name: str, test: ImageSet, folder: Path) -> None:
    found = hashlib.sha256(test.labels.byte().numpy().tobytes()).hexdigest()
    for other, source in SOURCES.items():
        if other != name and found == source.test_labels_sha256:
            raise InputError(
                f"the files for {name} in {folder} are those of {other}: keep each set in {folder}/<name>/"
            )


def _download(folder: Path, name: str, file: str, missing: list[str]) -> Path:
    import pooch

    source, failures = SOURCES[name], []
    checksum = source.sha256[FILES.index(file)]
    downloader = pooch.HTTPDownloader(timeout=10)  # seconds without an answer
    for mirror in source.mirrors:
        logging.getLogger(__name__).info("downloading %s to %s", mirror + file, folder / name)
        try:
            with _silent(pooch.get_logger()):  # we log the download ourselves
                return Path(
                    pooch.retrieve(mirror + file, f"sha256:{checksum}", file, folder / name, downloader=downloader)
                )
        except (OSError, ValueError) as error:  # pooch raises ValueError for a wrong checksum
            failures.append(f"{mirror}: {_failure(error)}")
    raise InputError(
        f"{name}: {', '.join(missing)} not in {folder / name} or {folder}, and the download failed "
        f"({'; '.join(failures)}): put the files there, or give their folder with --data-dir"
    )


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Have a library's logger show only warnings for a while."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _failure(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    return type(error).__name__ if isinstance(error, OSError) else "wrong checksum"
