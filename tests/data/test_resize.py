"""Resizing keeps bytes bytes and constants constant."""

import pytest
import torch

from capsnet.data.resize import resized, size_pair
from capsnet.errors import InputError


@pytest.mark.parametrize("size", [(4, 9), (28, 28), (40, 30)])
def test_a_constant_image_stays_constant(size):
    image = torch.tensor([0, 77, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 28, 28)
    expected = image[..., :1, :1].expand(1, 3, *size)
    assert torch.equal(resized(image, size), expected)


def test_a_size_that_fits_changes_nothing():
    images = torch.randint(0, 256, (5, 3, 8, 9), dtype=torch.uint8)
    assert torch.equal(resized(images, (8, 9)), images)


def test_making_smaller_averages_instead_of_dropping_pixels():
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).expand(1, 1, 64, 64)
    small = resized(stripes, (8, 8))
    assert small.min() > 120
    assert small.max() < 135


def test_one_number_is_the_side_of_a_square():
    assert size_pair(32) == (32, 32)
    assert size_pair((24, 32)) == (24, 32)


@pytest.mark.parametrize("size", [0, (28, 0), -3])
def test_a_size_below_one_pixel_is_refused(size):
    with pytest.raises(InputError, match="pixels are impossible: give --image-size at least 1"):
        size_pair(size)
