"""The real files of MNIST and Fashion-MNIST are as expected, files on disk are found or refused, and the digits."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from capsnet.data import sources
from capsnet.data.sources import FILES, data_folder, load_digits, load_source
from capsnet.errors import InputError

REAL = Path(os.environ.get("CAPSNET_DATA") or Path(__file__).parents[3] / "shared" / "data")
HISTOGRAMS = {
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion_mnist": ([6000] * 10, [1000] * 10),
}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_the_real_files_hold_the_known_numbers_of_images(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name}/ in $CAPSNET_DATA or ../shared/data")
    data = load_source(name, REAL)
    assert data.train.images.shape == (60000, 1, 28, 28)
    assert data.test.images.shape == (10000, 1, 28, 28)
    assert (data.train.labels.bincount().tolist(), data.test.labels.bincount().tolist()) == HISTOGRAMS[name]


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_the_real_files_have_the_checksums_of_the_table(name):
    if not (REAL / name / FILES[0]).is_file():
        pytest.skip(f"no {name}/{FILES[0]} in $CAPSNET_DATA or ../shared/data")
    found = tuple(hashlib.sha256((REAL / name / file).read_bytes()).hexdigest() for file in FILES)
    assert found == sources.SOURCES[name].sha256


def test_the_files_of_one_set_are_refused_under_the_name_of_the_other():
    if not (REAL / "mnist").is_dir():
        pytest.skip("no mnist/ in $CAPSNET_DATA or ../shared/data")
    with pytest.raises(InputError, match=r"the files for fashion_mnist in .+ are those of mnist: keep each set in"):
        load_source("fashion_mnist", REAL / "mnist")


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("place", ["", "mnist"])
def test_files_are_found_at_the_top_or_under_their_name_gzipped_or_not(tmp_path, put, place, gzipped):
    put(tmp_path / place, gzipped=gzipped)
    data = load_source("mnist", tmp_path)
    assert data.train.images.shape == (6, 1, 5, 5)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert (len(data.validation), len(data.test)) == (0, 2)


def test_data_dir_takes_precedence_over_the_environment_and_this_over_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPSNET_DATA", str(tmp_path / "environment"))
    assert data_folder(tmp_path / "given") == tmp_path / "given"
    assert data_folder() == tmp_path / "environment"
    monkeypatch.delenv("CAPSNET_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "capsnet"


def test_a_user_without_a_home_folder_is_asked_for_another_one(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("CAPSNET_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="there is no home folder to keep data in: choose a folder with --data-dir"):
        data_folder()


def test_images_and_labels_of_different_numbers_are_refused(tmp_path, put):
    put(tmp_path, n=6, labels=5)
    with pytest.raises(InputError, match=r"train-images.+ has 6 images but .+train-labels.+ 5 labels"):
        load_source("mnist", tmp_path)


def test_test_images_of_another_size_are_refused(tmp_path, put):
    put(tmp_path, test_side=7)
    with pytest.raises(InputError, match=r"mnist: test images are \(1, 7, 7\), train images \(1, 5, 5\)"):
        load_source("mnist", tmp_path)


def test_a_label_above_9_is_refused(tmp_path, put, write_idx):
    write_idx(put(tmp_path) / FILES[1], torch.tensor([0, 1, 2, 3, 4, 26], dtype=torch.uint8))
    with pytest.raises(InputError, match="mnist: train label 26 is not one of 0 to 9"):
        load_source("mnist", tmp_path)


def test_each_set_has_two_mirrors():
    assert all(len(source.mirrors) >= 2 for source in sources.SOURCES.values())


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
