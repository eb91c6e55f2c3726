"""`load_data` loads data by name or by path, and splits off validation images."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from capsnet.data import load_data
from capsnet.data.sources import FILES
from capsnet.errors import InputError


def folder_of_images(root, *names, n=20, side=6):
    for at, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(n):
            Image.new("L", (side, side), at * 100 + number).save(root / name / f"{number}.png")
    return root


def contents(images):
    return {bytes(image.flatten().tolist()) for image in images.images}


def test_a_tenth_of_the_training_digits_are_validation_images():
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 143, 360)
    assert not contents(data.train) & contents(data.validation)


def test_the_test_images_do_not_depend_on_the_seed_but_the_validation_images_do():
    first, second = load_data("digits", seed=0), load_data("digits", seed=1)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.images, second.validation.images)


def test_5000_images_of_mnist_are_validation_images(tmp_path, write_idx):
    for file, shape in zip(FILES, ((5003, 2, 2), (5003,), (2, 2, 2), (2,)), strict=True):
        write_idx(tmp_path / file, torch.zeros(shape, dtype=torch.uint8))
    data = load_data("mnist", data_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 5000, 2)


def test_more_validation_images_than_there_are_is_refused():
    with pytest.raises(InputError, match="1437 validation images cannot be drawn from 1437"):
        load_data("digits", validation=1437)


def test_a_folder_is_loaded_by_its_path(tmp_path):
    data = load_data(str(folder_of_images(tmp_path / "pets", "cat", "dog")), validation=6)
    assert data.classes == ("cat", "dog")
    assert (len(data.validation), len(data.train) + len(data.test)) == (6, 34)
    parts = [contents(part) for part in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == sum(len(part) for part in parts) == 40


def test_validation_images_that_a_folder_brings_are_used(tmp_path):
    for part, n in (("train", 5), ("validation", 3), ("test", 2)):
        folder_of_images(tmp_path / part, "cat", "dog", n=n)
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 6, 4)
    with pytest.raises(InputError, match="has validation images of its own: leave --validation out"):
        load_data(str(tmp_path), validation=2)


def test_an_npz_file_is_loaded_by_its_path(tmp_path):
    np.savez(tmp_path / "own.npz", images=np.arange(640, dtype=np.uint8).reshape(40, 4, 4), labels=np.arange(40) % 2)
    data = load_data(str(tmp_path / "own.npz"), validation=5)
    assert (len(data.validation), len(data.train) + len(data.test)) == (5, 35)


@pytest.mark.parametrize(("size", "shape"), [(12, (1, 12, 12)), ((10, 14), (1, 10, 14))])
def test_every_part_is_resized_to_image_size(size, shape):
    data = load_data("digits", image_size=size)
    assert data.image_shape == shape
    assert data.validation.images.shape[1:] == data.test.images.shape[1:] == shape


def test_an_impossible_size_is_refused():
    with pytest.raises(InputError, match="images of 0x0 pixels are impossible"):
        load_data("digits", image_size=0)


@pytest.mark.parametrize("name", ["minst", "nowhere/at/all", "gone.npz"])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(InputError, match=f"no data set '{name}': give mnist, fashion_mnist, digits, a folder"):
        load_data(name)


def test_importing_the_data_modules_imports_nothing_slow():
    code = "import sys, capsnet.data; print({'sklearn', 'pooch', 'PIL'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
