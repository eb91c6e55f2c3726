""".npz files, read in bounded memory: sizes are compared before anything is unpacked, and no pickle is ever loaded."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
from numpy.lib import format as npy

from capsnet.data.inputs import check_regular, check_unpacked, reading

ENCRYPTED = 1  # flag of a zip member
WAY_OUT = "write it with np.savez"


class Header(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_headers(path: Path, names: Collection[str] | None = None, way_out: str = WAY_OUT) -> dict[str, Header]:
    """Read the headers of all arrays of an .npz file, or of those of these names that it has; unpack nothing else.

    Raises InputError, ending in `way_out`, for a file that is no .npz, an array whose header is damaged or does not
    promise as many bytes as the archive, one of other than numbers or text (records, Python objects), and one that is
    encrypted or compressed otherwise than by deflate.
    """
    check_regular(path)
    with reading(path, ".npz", way_out), path.open("rb") as file, ZipFile(file) as archive:
        found = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
        return {name: _header(archive, name) for name in found if names is None or name in names}


def read_npz(path: Path, headers: Mapping[str, Header], way_out: str = WAY_OUT) -> dict[str, np.ndarray]:
    """Read the arrays that have these headers.

    Raises InputError where they would unpack to more than 256 MiB and 20 times the file, before anything is unpacked,
    and for damaged content.
    """
    check_unpacked(path, sum(_size(header) for header in headers.values()), "save it by np.savez, uncompressed")
    with reading(path, ".npz", way_out), path.open("rb") as file, ZipFile(file) as archive:
        return {name: _array(archive, name) for name in headers}


def _size(header: Header) -> int:
    return math.prod(header.shape) * header.dtype.itemsize


def _header(archive: ZipFile, name: str) -> Header:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.flag_bits & ENCRYPTED:
        raise ValueError(f"{name} is encrypted or compressed in an unusual way")
    with archive.open(info) as member:
        header = _parsed(name, member)
        if member.tell() + _size(header) != info.file_size:
            raise ValueError(f"{name} has {info.file_size} bytes, which {header.shape} of {header.dtype} does not take")
    return header


def _parsed(name: str, member: IO[bytes]) -> Header:
    if npy.read_magic(member) != (1, 0):  # others have headers of any size, for records
        raise ValueError(f"{name} is no array of numbers or text")
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
