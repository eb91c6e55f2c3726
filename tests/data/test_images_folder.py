"""A folder of images is read whole: none is dropped in silence."""

import pytest
from PIL import Image

from capsnet.data.images import read_folder
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
    with pytest.raises(InputError, match="class 'cow' is not in both train/ and test/: give all the same classes"):
        read_folder(tmp_path)


def test_a_folder_of_parts_of_other_names_is_not_taken_for_classes(tmp_path):
    pets(tmp_path / "train")
    pets(tmp_path / "val")
    with pytest.raises(InputError, match="train/cat is a folder within the class 'train'"):
        read_folder(tmp_path)


def test_images_are_grey_only_if_all_are(tmp_path):
    pets(tmp_path)
    save(tmp_path / "dog" / "grey_saved_as_colour.png", "RGB", (7, 7, 7))
    assert read_folder(tmp_path).image_shape == GREY
    save(tmp_path / "dog" / "red.png", "RGB", (255, 0, 0))
    assert read_folder(tmp_path).image_shape == COLOUR


def test_hidden_files_and_notes_are_passed_over(tmp_path):
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


def test_an_unknown_kind_of_file_is_not_dropped_in_silence(tmp_path):
    (pets(tmp_path) / "cat" / "drawing.svg").write_text("<svg/>")
    with pytest.raises(InputError, match=r"1 unusable files: .+drawing\.svg"):
        read_folder(tmp_path)


def test_an_empty_class_is_named(tmp_path):
    (pets(tmp_path) / "cow").mkdir()
    with pytest.raises(InputError, match="cow holds no images: add some, or remove the folder"):
        read_folder(tmp_path)


def test_sizes_that_differ_are_told_with_the_way_out(tmp_path):
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
