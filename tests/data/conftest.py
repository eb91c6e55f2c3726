"""What several files of these tests write: IDX files."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from capsnet.data.sources import FILES


def _write_idx(path: Path, values: Tensor) -> Path:
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.numpy().tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def write_idx() -> Callable[[Path, Tensor], Path]:
    return _write_idx


@pytest.fixture
def put(write_idx):
    """Write four small files: n training images and 2 test images of 5x5 pixels."""

    def put(folder, n=6, labels=6, test_side=5, gzipped=True):
        shapes = ((n, 5, 5), (labels,), (2, test_side, test_side), (2,))
        for file, shape in zip(FILES, shapes, strict=True):
            path = folder / (file if gzipped else file.removesuffix(".gz"))
            write_idx(path, torch.arange(torch.Size(shape).numel(), dtype=torch.uint8).reshape(shape) % 10)
        return folder

    return put
