"""A folder of images is a data set, and may bring its own parts; no image is dropped without an error."""

import pytest
import torch
from PIL import Image

from capsnet.data.images import image_paths, read_folder
from capsnet.errors import InputError

GREY = (1, 4, 6)
COLOUR = (3, 4, 6)


def save(path, mode="L", colour=100, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def pets(root, n=4):
    for name in ("cat", "dog"):
        for number in range(n):
            save(root / name / f"{number}.png", colour=10 * number)
    return root


def test_sorted_sub_folders_are_the_classes(tmp_path):
    for at, name in enumerate(("zebra", "ant", "Bear")):
        for number in range(10):
            save(tmp_path / name / f"{number}.png", colour=at)
    data = read_folder(tmp_path, validation=0)
    assert data.classes == ("Bear", "ant", "zebra")
    assert data.image_shape == GREY
    for part in (data.train, data.test):
        assert part.labels.unique().tolist() == [0, 1, 2]
        assert part.images[:, 0, 0, 0].tolist() == (2 - part.labels).tolist()


def test_train_and_test_sub_folders_are_the_parts(tmp_path):
    pets(tmp_path / "train", n=5)
    pets(tmp_path / "test", n=2)
    data = read_folder(tmp_path, validation=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 0, 4)
    assert data.test.images[:, 0, 0, 0].tolist() == [0, 10, 0, 10]


def test_parts_of_different_classes_are_refused(tmp_path):
    pets(tmp_path / "train")
    pets(tmp_path / "test")
    save(tmp_path / "test" / "cow" / "0.png")
    with pytest.raises(InputError, match="class 'cow' is not in both train/ and test/: give both the same classes"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
@pytest.mark.parametrize("test", [True, False])
def test_a_folder_may_bring_validation_images_under_three_names(tmp_path, name, test):
    pets(tmp_path / "train", n=20)
    pets(tmp_path / name, n=3)
    if test:
        pets(tmp_path / "test", n=2)
    data = read_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.validation.images[:, 0, 0, 0].tolist() == [0, 10, 20, 0, 10, 20]
    if test:
        assert (len(data.train), len(data.test)) == (40, 4)
    else:  # held out of the training images, by content
        pets(tmp_path / "alone", n=20)
        alone = read_folder(tmp_path / "alone", validation=0)
        assert torch.equal(data.test.images, alone.test.images)
        assert torch.equal(data.train.images, alone.train.images)
        assert len(data.test) >= 2


def test_validation_images_under_two_names_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        pets(tmp_path / name)
    with pytest.raises(InputError, match=r"has val/ and valid/: keep one of them$"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_images_of_other_classes_than_the_training_images_are_refused(tmp_path, name):
    pets(tmp_path / "train")
    pets(tmp_path / name)
    (tmp_path / name / "dog").rename(tmp_path / name / "wolf")
    with pytest.raises(InputError, match=f"class 'dog' is not in both train/ and {name}/: give both the same classes"):
        read_folder(tmp_path)


def test_part_folders_with_a_folder_of_another_name_are_taken_for_classes_and_refused(tmp_path):
    pets(tmp_path / "train")
    pets(tmp_path / "dev")
    with pytest.raises(InputError, match="dev/cat is a folder within the class 'dev'"):
        read_folder(tmp_path)


def test_a_folder_stands_for_the_images_in_it_and_below_sorted_by_path(tmp_path):
    pets(tmp_path / "b", n=2)
    lone = save(tmp_path / "a.png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "b" / ".hidden").mkdir()
    save(tmp_path / "b" / ".hidden" / "0.png")
    (tmp_path / "b" / "cat" / "loop").symlink_to(tmp_path / "b")
    inside = [tmp_path / "b" / name for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")]
    assert image_paths([tmp_path]) == [lone, *inside]
    assert image_paths([tmp_path / "b", str(lone)]) == [*inside, lone]
    assert image_paths([tmp_path / "missing.png"]) == [tmp_path / "missing.png"]


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("no image")
    with pytest.raises(InputError, match=f"^{tmp_path} holds no images: give image files, or a folder with images$"):
        image_paths([tmp_path])


def test_images_are_grey_only_if_all_are(tmp_path):
    pets(tmp_path)
    save(tmp_path / "dog" / "grey_saved_as_colour.png", "RGB", (7, 7, 7))
    assert read_folder(tmp_path).image_shape == GREY
    save(tmp_path / "dog" / "red.png", "RGB", (255, 0, 0))
    assert read_folder(tmp_path).image_shape == COLOUR


def test_hidden_files_and_notes_are_skipped(tmp_path):
    for name in (".DS_Store", "Thumbs.db", "README.md", "licence.TXT"):
        (pets(tmp_path, n=4) / "cat" / name).write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.md").write_text("no class")
    data = read_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.test) == 8


def test_unreadable_images_are_counted_and_five_are_named(tmp_path):
    pets(tmp_path)
    for number in range(7):
        (tmp_path / "cat" / f"bad{number}.png").write_text("no image")
    with pytest.raises(InputError) as refusal:
        read_folder(tmp_path)
    message = str(refusal.value)
    assert message.startswith("7 unusable files: ")
    assert [f"bad{number}.png" in message for number in range(7)] == [True] * 5 + [False] * 2
    assert message.endswith("repair or remove them")


def test_a_file_of_unknown_type_is_not_silently_skipped(tmp_path):
    (pets(tmp_path) / "cat" / "sketch.svg").write_text("<svg/>")
    with pytest.raises(InputError, match=r"1 unusable files: .+sketch\.svg"):
        read_folder(tmp_path)


def test_an_empty_class_is_named(tmp_path):
    (pets(tmp_path) / "cow").mkdir()
    with pytest.raises(InputError, match="cow holds no images: add some, or remove the folder"):
        read_folder(tmp_path)


def test_images_of_different_sizes_are_refused_with_the_option_that_helps(tmp_path):
    save(pets(tmp_path) / "dog" / "wide.png", size=(9, 4))
    with pytest.raises(InputError, match=r"images of 2 sizes, 4x6 \(.+0\.png\), 4x9 \(.+wide\.png\): .+ --image-size"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, (5, 7)).image_shape == (1, 5, 7)


@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_are_refused(tmp_path, classes):
    for at in range(classes):
        save(tmp_path / str(at) / "0.png")
    with pytest.raises(InputError, match=f"has {classes} class folders: it takes at least two"):
        read_folder(tmp_path)
