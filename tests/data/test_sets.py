"""Data sets are checked, recognised by their fingerprints, and resized."""

import json
import re
from dataclasses import asdict, replace
from time import perf_counter

import pytest
import torch

from capsnet.checks import parse_json
from capsnet.data.sets import Data, Fingerprint, ImageSet, resized, size_pair
from capsnet.errors import InputError


def numbered(n, classes=2):
    """Images whose one pixel is their number."""
    return ImageSet(torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1), torch.arange(n) % classes)


def test_the_images_and_the_labels_of_a_set_move_to_a_device():
    moved = numbered(3).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"


def test_data_of_one_class_are_refused():
    with pytest.raises(InputError, match="cats has 1 class: telling apart takes at least two"):
        Data("cats", ("cat",), *[numbered(3, classes=1)] * 3)


@pytest.mark.parametrize("name", ["cat", "cat\n", "\x1b[31mcat", "", "  ", "cat\u2028", "undecodable \udcff"])
def test_class_names_that_are_repeated_empty_or_unprintable_are_refused_by_name(name):
    refused = rf"own has (2 classes|a class) called {re.escape(ascii(name))}: give "
    with pytest.raises(InputError, match=refused):
        Data("own", ("cat", name), *[numbered(3)] * 3)


def test_class_names_in_any_script_are_taken():
    names = ("T-shirt/top", "Käfer", "柴犬\u3000", "नमस्\u200dते")  # with wide and zero-width spaces
    assert Data("own", names, *[numbered(3)] * 3).classes == names


def test_parts_of_different_shapes_are_refused():
    wide = ImageSet(torch.zeros(2, 1, 1, 9, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"own: test images are \(1, 1, 9\), train images \(1, 1, 1\)"):
        Data("own", ("a", "b"), numbered(3), numbered(3), wide)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_classes_is_refused(label):
    odd = ImageSet(numbered(2).images, torch.tensor([0, label]))
    with pytest.raises(InputError, match=f"own: test label {label} is not one of 0 to 1"):
        Data("own", ("a", "b"), numbered(3), numbered(3), odd)


def test_resized_data_keep_their_labels():
    data = Data("own", ("a", "b"), numbered(4), numbered(0), numbered(2)).resized((3, 5))
    assert data.image_shape == (1, 3, 5)
    assert data.validation.images.shape == (0, 1, 3, 5)
    assert data.train.labels.tolist() == [0, 1, 0, 1]


def numbered_data():
    return Data("own", ("a", "b"), numbered(6), numbered(4), numbered(2))


def test_equal_data_have_one_fingerprint_whatever_their_names_and_layout_in_memory():
    data = numbered_data()
    turned = ImageSet(torch.arange(6, dtype=torch.uint8).reshape(1, 6, 1, 1).transpose(0, 1), data.train.labels)
    assert replace(data, name="other", classes=("x", "y"), train=turned).fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    "changed",
    [
        ImageSet(numbered(6).images + 1, numbered(6).labels),
        ImageSet(numbered(6).images, 1 - numbered(6).labels),
        numbered(6).select(torch.tensor([1, 0, 2, 3, 4, 5])),
        numbered(5),
        numbered(7),
    ],
    ids=["pixels", "labels", "order", "fewer", "more"],
)
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_change_of_any_part_changes_the_fingerprint_of_this_part_alone(part, changed):
    data = replace(numbered_data(), **{part: numbered(6)})
    before, after = (asdict(it.fingerprint()) for it in (data, replace(data, **{part: changed})))
    assert {name for name in before if before[name] != after[name]} == {part}
    assert after[part]["n"] == len(changed)


def test_the_same_bytes_in_another_shape_have_another_fingerprint():
    images = ImageSet(torch.zeros(2, 1, 4, 3, dtype=torch.uint8), torch.tensor([0, 1]))
    wide = ImageSet(images.images.reshape(2, 1, 3, 4), images.labels)
    assert images.fingerprint() != wide.fingerprint()
    assert len({numbered(0).fingerprint(), ImageSet(images.images[:0], images.labels[:0]).fingerprint()}) == 2


def test_a_fingerprint_comes_back_from_json():
    kept = numbered_data().fingerprint()
    assert parse_json(json.dumps(asdict(kept)).encode(), Fingerprint, "recipe.json") == kept


@pytest.mark.parametrize(
    ("field", "value"), [("sha256", "0" * 63), ("sha256", "G" * 64), ("sha256", "0" * 64 + "\n"), ("n", -1), ("n", "6")]
)
def test_a_damaged_fingerprint_is_refused(field, value):
    content = asdict(numbered_data().fingerprint())
    content["test"][field] = value
    with pytest.raises(InputError, match=f"recipe.json is damaged: test.{field}: "):
        parse_json(json.dumps(content).encode(), Fingerprint, "recipe.json")


def test_the_fingerprint_of_as_many_images_as_mnist_s_takes_less_than_a_second():
    images = ImageSet(torch.zeros(60000, 1, 28, 28, dtype=torch.uint8), torch.zeros(60000, dtype=torch.int64))
    start = perf_counter()
    assert images.fingerprint().n == 60000
    assert perf_counter() - start < 1


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
