"""The IDX format of the MNIST files: a magic number, big-endian dimensions, then bytes; plain or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capsnet.errors import InputError


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of bytes: uint8, of as many dimensions as asked for (3 for images [n, h, w], 1 for labels [n]).

    Raises InputError, naming the file, where it is foreign, truncated, empty or longer than its header says.
    """
    content = _content(path)
    if content[:4] != bytes([0, 0, 8, dimensions]):  # 8: unsigned bytes
        raise InputError(
            f"{path} is no IDX file of {dimensions}-D bytes: it begins with {content[:4].hex() or 'nothing'}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise InputError(f"{path} is cut short within its header: fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected, found = math.prod(shape), len(content) - start
    if not expected:
        raise InputError(f"{path} is empty: its dimensions are {shape}")
    if found != expected:
        fault = "cut short" if found < expected else "too long"
        raise InputError(f"{path} is {fault}: {found} bytes where {shape} takes {expected}: fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again") from error
