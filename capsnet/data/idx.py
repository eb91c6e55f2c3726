"""The IDX format of the MNIST files: a magic number, big-endian dimensions, then bytes; plain or gzipped."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from capsnet.data.inputs import check_regular, check_unpacked, reason
from capsnet.errors import InputError


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of bytes: uint8, of as many dimensions as asked for (3 for images [n, h, w], 1 for labels [n]).

    Raises InputError, naming the file, where it is foreign, truncated, empty or longer than its header says, or where
    its header promises more than 256 MiB and 20 times the file: no more than the header is unpacked then.
    """
    check_regular(path)
    try:
        with _unpacking(path) as file:
            shape = _shape(path, file.read(4 + 4 * dimensions), dimensions)
            expected = math.prod(shape)
            check_unpacked(path, expected, "gunzip it")
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): fetch it again") from error
    if len(content) < expected:
        raise InputError(f"{path} is cut short: {len(content)} bytes where {shape} takes {expected}: fetch it again")
    if len(content) > expected:
        raise InputError(f"{path} is too long: more than the {expected} bytes that {shape} takes: fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape).copy())


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    if header[:4] != bytes([0, 0, 8, dimensions]):  # 8: unsigned bytes
        found = header[:4].hex() or "nothing"
        raise InputError(f"{path} is no IDX file of {dimensions}-D bytes: it begins with {found}")
    if len(header) < 4 + 4 * dimensions:
        raise InputError(f"{path} is cut short within its header: fetch it again")
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
