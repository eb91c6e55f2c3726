"""Splits are disjoint and cover everything; by content, adding or removing images does not move others."""

from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from capsnet.data import load_data
from capsnet.data.sets import ImageSet
from capsnet.data.splits import hold_out, split, split_by_content
from capsnet.errors import InputError

PARTS = ("train", "validation", "test")


def numbered(n, classes=2):
    """Images whose one pixel is their number."""
    return ImageSet(torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1), torch.arange(n) % classes)


def numbers(images):
    return images.images.flatten().tolist()


def test_a_split_is_disjoint_and_covers_everything():
    train, validation = split(numbered(50), 12, seed=0)
    assert (len(train), len(validation)) == (38, 12)
    assert sorted(numbers(train) + numbers(validation)) == list(range(50))


def test_labels_stay_with_their_images():
    for part in split(numbered(50, classes=7), 12, seed=0):
        assert part.labels.tolist() == [number % 7 for number in numbers(part)]


def test_a_split_is_drawn_by_its_seed():
    drawn = [numbers(split(numbered(50), 12, seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != list(range(12))


def test_a_split_does_not_change_the_global_generator():
    before = torch.get_rng_state()
    split(numbered(50), 12, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_validation_set_may_be_empty():
    train, validation = split(numbered(5), 0, seed=0)
    assert numbers(train) == list(range(5))
    assert validation.images.shape == (0, 1, 1, 1)


@pytest.mark.parametrize("validation", [5, 6, -1])
def test_a_validation_set_that_leaves_nothing_is_refused(validation):
    with pytest.raises(
        InputError, match=f"{validation} validation images cannot be drawn from 5: choose --validation from 0 to 4"
    ):
        split(numbered(5), validation, seed=0)


def test_the_requested_number_of_each_class_is_held_out():
    others, held_out = hold_out(numbered(30, classes=3), [1, 4, 0], seed=0)
    assert held_out.labels.bincount(minlength=3).tolist() == [1, 4, 0]
    assert sorted(numbers(others) + numbers(held_out)) == list(range(30))


def cut(contents, labels, *, test=True, validation=None, seed=0):
    """The contents of each part of images whose one pixel is their place, as tuples (content, label)."""
    images = ImageSet(torch.arange(len(contents)).reshape(-1, 1, 1, 1), torch.tensor(labels))
    digests = [str(content).encode() for content in contents]
    classes = [str(k) for k in range(max(labels) + 1)]
    parts = split_by_content(images, digests, classes, test=test, validation=validation, seed=seed)
    places = [part.images.flatten().tolist() for part in parts]
    assert sorted(chain(*places)) == list(range(len(contents)))
    return {name: {(contents[k], labels[k]) for k in part} for name, part in zip(PARTS, places, strict=True)}


def part_of(parts):
    return {image: name for name, images in parts.items() for image in images}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A folder of 1,000 small images, 500 of each class."""
    root = tmp_path_factory.mktemp("thousand")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 4, 4), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        path = root / f"class {number % 2}" / f"{number:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def copy_of(root, target, *, leave=(), rename=str):
    """A folder with links to the files of another, but for those whose numbers are left out."""
    for path in sorted(root.rglob("*.png")):
        if int(path.stem) not in leave:
            link = target / path.parent.name / f"{rename(path.stem)}.png"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)
    return target


def parts_of(root, **options):
    """The part of each image of a folder, by its pixels and label."""
    data = load_data(str(root), **options)
    parts = {name: getattr(data, name) for name in PARTS}
    return {
        (bytes(image.flatten().tolist()), label): name
        for name, part in parts.items()
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    }


def moved(before, after):
    """Images of both whose part is another."""
    return {image for image in before.keys() & after.keys() if before[image] != after[image]}


def test_about_a_tenth_of_a_folder_are_test_images_and_a_tenth_of_the_others_validation_images(thousand):
    data = load_data(str(thousand))
    assert 75 < len(data.test) < 125
    assert 65 < len(data.validation) < 115
    assert len(data.train) == 1000 - len(data.test) - len(data.validation)


def test_an_image_added_to_a_folder_of_a_thousand_moves_none(thousand, tmp_path):
    before, root = parts_of(thousand), copy_of(thousand, tmp_path)
    for number in range(3):
        pixels = np.random.default_rng([1, number]).integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "class 0" / f"0000{number}.png")
        after = parts_of(root)
        assert len(after) == 1001 + number
        assert not moved(before, after)


def test_images_removed_from_a_folder_of_a_thousand_move_none(thousand, tmp_path):
    before, after = parts_of(thousand), parts_of(copy_of(thousand, tmp_path, leave=range(0, 900, 7)))
    assert len(after) == 1000 - 129
    assert not moved(before, after)


def test_renaming_and_reordering_the_files_of_a_folder_does_not_change_the_split(thousand, tmp_path):
    before = parts_of(thousand)
    assert parts_of(copy_of(thousand, tmp_path, rename=lambda stem: stem[::-1])) == before


def test_the_part_of_an_image_does_not_depend_on_its_size(thousand):
    full, small = (load_data(str(thousand), image_size=size) for size in (None, 2))
    for name in PARTS:
        assert torch.equal(getattr(full, name).resized((2, 2)).images, getattr(small, name).images)


def test_the_test_images_do_not_depend_on_the_seed_but_the_validation_images_do(thousand):
    first, second = (load_data(str(thousand), seed=seed) for seed in (0, 1))
    assert first.test.fingerprint() == second.test.fingerprint()
    kept = {bytes(image.flatten().tolist()) for image in first.validation.images}
    assert len(kept & {bytes(image.flatten().tolist()) for image in second.validation.images}) < len(kept) / 2


@pytest.mark.parametrize("layout", ["channels last", "floats", "reversed"])
def test_the_part_of_an_image_of_an_npz_file_depends_on_its_pixels_only(tmp_path, layout):
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4), dtype=np.uint8)
    labels = np.arange(200) % 2
    others = {"channels last": (images[..., None], labels), "floats": (images / 255, labels)}
    others["reversed"] = images[::-1], labels[::-1]
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    np.savez(tmp_path / "two.npz", images=others[layout][0], labels=others[layout][1])
    np.savez(tmp_path / "more.npz", images=images[3:], labels=labels[3:])
    one, two, more = (parts_of(tmp_path / f"{name}.npz") for name in ("one", "two", "more"))
    assert one == two
    assert len(more) == 197
    assert not moved(one, more)


def test_copies_of_an_image_are_in_one_part_even_under_different_labels():
    contents = [number for number in range(300) for _ in range(3)]
    parts = cut(contents, [place % 4 for place in range(900)])
    for content in range(300):
        assert len({part for (found, _), part in part_of(parts).items() if found == content}) == 1


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_class_however_small_has_a_test_image_and_one_to_train_on(n):
    contents = range(100 * n)
    parts = cut(list(contents), [number % 100 for number in contents])
    assert {label for _, label in parts["train"]} == {label for _, label in parts["test"]} == set(range(100))


@pytest.mark.parametrize("n", [2, 4])
def test_copies_in_small_classes_are_not_split_where_the_classes_share_all_their_images(n):
    contents = [number for _ in range(2) for number in range(n)]
    parts = cut(contents, [0] * n + [1] * n)
    assert {label for _, label in parts["train"]} == {label for _, label in parts["test"]} == {0, 1}
    tested, trained = ({content for content, _ in parts[part]} for part in ("test", "train"))
    assert not tested & trained


def test_a_small_class_whose_test_image_is_one_of_several_copies_has_them_all_tested():
    for first in range(200):
        parts = cut([first] * 3 + [first + 1000] * 3 + list(range(2000, 2020)), [0] * 6 + [1] * 20)
        assert len({content for content, label in parts["test"] if label == 0}) == 1
        assert not parts["test"] & parts["train"]


def test_a_class_of_nothing_but_copies_has_one_of_them_tested():
    images = ImageSet(torch.arange(9).reshape(-1, 1, 1, 1), torch.tensor([0] * 4 + [1] * 5))
    digests = [b"same"] * 4 + [b"1", b"2", b"3", b"4", b"5"]
    _, _, test = split_by_content(images, digests, ("a", "b"), test=True, validation=0)
    assert (test.labels == 0).sum() == 1


def test_a_class_of_one_image_cannot_be_tested_on_too():
    with pytest.raises(InputError, match="class '1' has 1 image: add images, or give test images of your own"):
        cut([1, 2, 3], [0, 0, 1])
    assert cut([1, 2, 3], [0, 0, 1], test=False)["train"]


@pytest.mark.parametrize("validation", [0, 1, 17, 80])
def test_as_many_validation_images_as_asked_for_are_set_aside_and_each_class_keeps_one(validation):
    parts = cut(list(range(100)), [number % 20 for number in range(100)], test=False, validation=validation)
    assert len(parts["validation"]) == validation
    assert {label for _, label in parts["train"]} == set(range(20))


@pytest.mark.parametrize("seed", range(5))
def test_an_image_added_moves_at_most_one_where_the_number_of_validation_images_is_given(seed):
    before = part_of(cut(list(range(200)), [number % 2 for number in range(200)], validation=50, seed=seed))
    for new in range(1000, 1050):
        numbers = [*range(200), new]
        after = part_of(cut(numbers, [number % 2 for number in numbers], validation=50, seed=seed))
        assert len(moved(before, after)) <= 1


def test_copies_are_not_split_to_make_up_a_number_of_validation_images():
    numbers, labels = [k // 2 for k in range(40)] + list(range(100, 140)), [k % 2 for k in range(80)]
    for seed in range(50):
        parts = cut(numbers, labels, validation=9, seed=seed)
        contents = [{content for content, _ in parts[name]} for name in PARTS]
        assert len(parts["validation"]) == 9
        assert sum(map(len, contents)) == len(set.union(*contents))


@pytest.mark.parametrize("validation", [-1, 99, 100, 1000])
def test_a_number_of_validation_images_that_cannot_be_had_is_refused(validation):
    with pytest.raises(
        InputError, match=f"^{validation} validation images cannot be drawn from 100: choose --validation from 0 to 98,"
    ):
        cut(list(range(100)), [number % 2 for number in range(100)], test=False, validation=validation)


def test_ten_images_or_more_have_a_validation_image():
    for start in range(0, 1000, 10):
        parts = cut(list(range(start, start + 10)), [0, 1] * 5, test=False)
        assert parts["validation"]


def test_digits_keep_the_parts_that_published_results_were_measured_on():
    pins = load_data("digits").fingerprint()
    assert pins.train.sha256 == "76f348c7624d7e1fac105d5b72144a4ce2b3774ede8da77ef1c9d235339a7e77"
    assert pins.validation.sha256 == "0d20a199d6bbd77a1fb73834d486f8bdeb21d94df2c36c307120f8c0f1430a2e"
    assert pins.test.sha256 == "4f8ae7bb6388d72f10f7731ede60d115b87c9a24011cb18ded42710c2c839580"
