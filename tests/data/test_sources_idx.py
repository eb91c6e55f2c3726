"""IDX files are read, gzipped or not, and a bad one is refused with its name."""

import gzip

import pytest
import torch

from capsnet.data.sources import read_idx
from capsnet.errors import InputError

IMAGES = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_a_file_reads_back_as_it_was_written(tmp_path, write_idx, name):
    assert torch.equal(read_idx(write_idx(tmp_path / name, IMAGES), 3), IMAGES)


def test_gzip_is_recognised_by_the_content_not_by_the_name(tmp_path, write_idx):
    path = write_idx(tmp_path / "images.gz", IMAGES).rename(tmp_path / "images")
    assert torch.equal(read_idx(path, 3), IMAGES)


def test_labels_where_images_are_asked_for_are_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "labels", torch.zeros(5, dtype=torch.uint8))
    with pytest.raises(InputError, match="labels is not an IDX file of 3-D bytes: it begins with 00000801"):
        read_idx(path, 3)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<html>")
    with pytest.raises(InputError, match=r"page\.html is not an IDX file"):
        read_idx(path, 3)


def test_a_file_without_content_is_refused(tmp_path):
    (tmp_path / "void").touch()
    with pytest.raises(InputError, match="void is not an IDX file of 1-D bytes: it begins with nothing"):
        read_idx(tmp_path / "void", 1)


def test_a_header_cut_short_is_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "images", IMAGES)
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(InputError, match="images is truncated within its header"):
        read_idx(path, 3)


def test_missing_pixels_are_counted(tmp_path, write_idx):
    path = write_idx(tmp_path / "images", IMAGES)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"images is truncated: 23 bytes where \(2, 3, 4\) takes 24"):
        read_idx(path, 3)


def test_trailing_bytes_are_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "images", IMAGES)
    path.write_bytes(path.read_bytes() + b"xy")
    with pytest.raises(InputError, match=r"images is too long: more than the 24 bytes that \(2, 3, 4\) takes"):
        read_idx(path, 3)


def test_a_file_of_no_images_is_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "images", IMAGES[:0])
    with pytest.raises(InputError, match=r"images is empty: its dimensions are \(0, 3, 4\)"):
        read_idx(path, 3)


def test_a_truncated_gzip_is_refused(tmp_path, write_idx):
    path = write_idx(tmp_path / "images.gz", IMAGES)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"images.gz cannot be read \(.+\): download it again"):
        read_idx(path, 3)


def test_a_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(bytes(1000))[:10] + b"\xff" * 30)
    with pytest.raises(InputError, match=r"images.gz cannot be read"):
        read_idx(path, 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere cannot be read"):
        read_idx(tmp_path / "nowhere", 3)
