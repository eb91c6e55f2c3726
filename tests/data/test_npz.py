"""An .npz file is read in any usual layout, and refused with the reason otherwise."""

import numpy as np
import pytest
import torch

from capsnet.data.npz import read_npz
from capsnet.errors import InputError

LABELS = np.arange(20) % 2


def save(folder, **arrays):
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return path


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ((20, 5, 6), (1, 5, 6)),
        ((20, 1, 5, 6), (1, 5, 6)),
        ((20, 3, 5, 6), (3, 5, 6)),
        ((20, 5, 6, 1), (1, 5, 6)),
        ((20, 5, 6, 3), (3, 5, 6)),
        ((20, 3, 5, 3), (3, 5, 3)),
    ],
)
def test_every_layout_becomes_channels_first(tmp_path, shape, image_shape):
    assert read_npz(save(tmp_path, images=pixels(*shape), labels=LABELS)).image_shape == image_shape


def test_channels_last_are_moved_not_reshaped(tmp_path):
    images = pixels(20, 5, 6, 3)
    tests = {"test_images": images, "test_labels": LABELS}
    data = read_npz(save(tmp_path, images=images, labels=LABELS, **tests), validation=0)
    assert torch.equal(data.train.images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def test_floats_from_0_to_1_become_bytes(tmp_path):
    images = pixels(20, 5, 6)
    expected = read_npz(save(tmp_path, images=images, labels=LABELS)).train.images
    scaled = read_npz(save(tmp_path, images=(images / 255).astype(np.float32), labels=LABELS)).train.images
    assert torch.equal(expected, scaled)


def test_floats_are_rounded_to_the_nearest_byte(tmp_path):
    images = np.linspace(0, 1, 20 * 30).reshape(20, 5, 6)
    tests = {"test_images": images, "test_labels": LABELS}
    data = read_npz(save(tmp_path, images=images, labels=LABELS, **tests))
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(np.round(images * 255).astype(np.uint8)))


def test_each_class_has_a_test_image_and_keeps_one_to_train_on(tmp_path):
    data = read_npz(save(tmp_path, images=pixels(20, 5, 6), labels=LABELS))
    assert len(data.train) + len(data.validation) + len(data.test) == 20
    assert data.test.labels.unique().tolist() == data.train.labels.unique().tolist() == [0, 1]


def test_test_arrays_are_the_test(tmp_path):
    tests = {"test_images": pixels(3, 5, 6), "test_labels": np.array([1, 1, 0], dtype=np.uint8)}
    data = read_npz(save(tmp_path, images=pixels(20, 5, 6), labels=LABELS, **tests), validation=0)
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(tests["test_images"]))
    assert data.test.labels.tolist() == [1, 1, 0]
    assert len(data.train) == 20


def test_classes_are_named_by_their_array_or_else_by_number(tmp_path):
    arrays = {"images": pixels(20, 5, 6), "labels": LABELS}
    assert read_npz(save(tmp_path, **arrays)).classes == ("0", "1")
    assert read_npz(save(tmp_path, **arrays, classes=np.array(["cat", "dog"]))).classes == ("cat", "dog")
    assert read_npz(save(tmp_path, **arrays, classes=np.array([b"cat", b"dog"]))).classes == ("cat", "dog")
    assert read_npz(save(tmp_path, **arrays, classes=np.array([7, 5]))).classes == ("7", "5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": pixels(20, 5, 6, 4)}, r"images are \(20, 5, 6, 4\): they must be \[n, h, w\]"),
        ({"images": pixels(20, 30)}, r"images are \(20, 30\): they must be"),
        ({"images": pixels(19, 5, 6)}, r"images \(19, 5, 6\) and labels \(20,\) must match"),
        ({"images": pixels(0, 5, 6), "labels": LABELS[:0]}, "must match, and not be empty"),
        ({"images": pixels(20, 5, 6).astype(np.int64)}, r"images are int64 from 0 to 255: they must be uint8"),
        ({"images": pixels(20, 5, 6) / 100}, r"images are float64 from 0.0 to 2.55: they must be uint8, or floats"),
        ({"images": np.full((20, 5, 6), np.nan)}, "images are float64 from nan to nan"),
        ({"images": np.full((20, 5, 6), np.inf)}, "images are float64 from inf to inf"),
        ({"images": pixels(20, 5, 6) > 9}, "images are bool from False to True: they must be uint8, or floats"),
        ({"images": pixels(20, 0, 6)}, r"images \(20, 0, 6\) and labels \(20,\) must match, and not be empty"),
        ({"images": pixels(20, 5, 6) * 1j}, r"images\b.* is of complex128, but should be numbers or text"),
        ({"images": pixels(20, 5, 6).astype(str)}, "images are <U3: they must be uint8, or floats"),
        ({"images": np.zeros((20, 5, 6), "S3")}, r"images are \|S3: they must be uint8, or floats"),
        ({"images": np.zeros((20, 5, 6), [("r", "u1")])}, "images is of .*, but should be numbers or text"),
        ({"images": np.zeros((20, 5, 6), "M8[s]")}, r"images is of datetime64\[s\], but should be numbers or text"),
        ({"labels": LABELS.astype(bool)}, r"labels are bool \(20,\): they must be whole numbers"),
        ({"labels": LABELS.astype(str)}, r"labels are <U21 \(20,\): they must be whole numbers"),
        ({"labels": np.full(20, 2**64 - 1, np.uint64)}, "labels run up to 18446744073709551615: they must run from 0"),
        ({"labels": LABELS - 1}, "labels must run from 0 to 1, each used at least once, not -1, 0$"),
        ({"labels": LABELS * 2}, "labels must run from 0 to 1, each used at least once, not 0, 2$"),
        ({"labels": LABELS + 0.5}, r"labels are float64 \(20,\): they must be whole numbers \[n\]"),
        ({"labels": LABELS[:, None]}, r"labels are int64 \(20, 1\): they must be whole numbers"),
        ({"labels": LABELS * 0}, "own.npz has 1 class: a classifier needs at least two"),
        ({"labels": np.eye(20, dtype=int)[0]}, "class '1' has 1 image: add images"),
        ({"classes": np.array(["a"])}, "labels must run from 0 to 0, each used at least once, not 0, 1$"),
        ({"classes": np.array(["a", "b", "c"])}, "labels must run from 0 to 2, each used at least once, not 0, 1$"),
        ({"classes": np.array(["cat", "cat"])}, "own.npz has 2 classes called 'cat': give each a name of its own"),
        ({"classes": np.array(["cat", ""])}, "own.npz has a class called '': give it a name that can be printed"),
        ({"classes": np.array([0.5, 1.5])}, r"classes are float64 \(2,\): they must be names \[k\], as text"),
        ({"classes": np.array([["cat", "dog"]])}, r"classes are <U3 \(1, 2\): they must be names \[k\], as text"),
        ({"classes": np.zeros(2, [("name", "U3")])}, "classes is of .*, but should be numbers or text"),
        ({"classes": np.array([b"cat", b"\xff"])}, "classes are bytes that are not UTF-8: save them as text"),
        ({"test_images": pixels(3, 5, 6)}, "only one of the arrays test_images and test_labels"),
        ({"test_images": pixels(2, 5, 6), "test_labels": np.array([0, 2])}, "test label 2 is not one of 0 to 1"),
        ({"test_images": pixels(2, 7, 7), "test_labels": LABELS[:2]}, r"test images are \(1, 7, 7\), train images"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, change, message):
    path = save(tmp_path, **{"images": pixels(20, 5, 6), "labels": LABELS} | change)
    with pytest.raises(InputError, match=message):
        read_npz(path)


def test_arrays_of_other_names_may_be_anything(tmp_path):
    others = {"notes": np.array([{}], dtype=object), "more": np.zeros(2, [("name", "U3")])}
    assert read_npz(save(tmp_path, images=pixels(20, 5, 6), labels=LABELS, **others)).classes == ("0", "1")


def test_a_missing_array_is_named(tmp_path):
    with pytest.raises(InputError, match=r"own.npz has no array 'labels': save it with np.savez"):
        read_npz(save(tmp_path, images=pixels(20, 5, 6)))


def test_a_pickle_is_never_loaded(tmp_path):
    path = save(tmp_path, images=np.array([{}, {}], dtype=object), labels=LABELS)
    with pytest.raises(InputError, match=r"own.npz cannot be read as .npz \(images holds Python objects\)"):
        read_npz(path)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 half an archive"])
def test_a_file_that_is_no_archive_is_named(tmp_path, content):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"own.npz cannot be read as .npz \(.+\): write it with np.savez"):
        read_npz(path)


def test_a_lone_array_is_no_archive(tmp_path):
    np.save(tmp_path / "own.npy", pixels(2, 3))
    path = (tmp_path / "own.npy").rename(tmp_path / "own.npz")
    with pytest.raises(InputError, match=r"own.npz cannot be read as .npz"):
        read_npz(path)
