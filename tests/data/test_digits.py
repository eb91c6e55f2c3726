"""The bundled digits: 1,797 scans, 360 of them the same test every time."""

import pytest
import torch

from capsnet.data.digits import load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_test_holds_36_of_each_digit(digits):
    assert digits.test.labels.bincount().tolist() == [36] * 10


def test_train_and_test_together_are_all_1797_scans(digits):
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1437, 0, 360)
    sizes = digits.train.labels.bincount() + digits.test.labels.bincount()
    assert sizes.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_no_test_scan_is_among_the_training_scans(digits):
    train, test = ({bytes(image.flatten().tolist()) for image in part.images} for part in (digits.train, digits.test))
    assert not train & test


def test_levels_0_to_16_become_bytes_0_to_255(digits):
    assert digits.image_shape == (1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]


def test_the_test_is_the_same_every_time(digits):
    assert torch.equal(load_digits().test.images, digits.test.images)
