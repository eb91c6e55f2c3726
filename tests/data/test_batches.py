"""Batches hold every image once; shifts move pixels by the given offsets, without wrapping around."""

import pytest
import torch

from capsnet.data.batches import batches, shifted
from capsnet.data.sets import ImageSet
from capsnet.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(n):
    return ImageSet(torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1), torch.arange(n))


def test_without_a_generator_images_come_in_order_and_unshifted():
    images = ImageSet(torch.randint(0, 256, (10, 3, 6, 5), dtype=torch.uint8), torch.arange(10))
    pixels, labels = (torch.cat(parts) for parts in zip(*batches(images, 4), strict=True))
    assert torch.equal(labels, images.labels)
    assert torch.equal(pixels * 255, images.images.float())


def test_pixels_are_floats_from_0_to_1():
    images = ImageSet(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3), torch.tensor([0]))
    pixels, _ = next(batches(images, 1))
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels.flatten(), torch.tensor([0.0, 0.2, 1.0]))


def test_the_last_batch_is_kept_though_smaller():
    assert [len(labels) for _, labels in batches(numbered(10), 4, generator=seeded())] == [4, 4, 2]


def test_an_empty_set_has_no_batches():
    assert list(batches(numbered(0), 4)) == []


def test_a_shuffled_epoch_has_every_image_once_with_its_label():
    pixels, labels = (torch.cat(parts) for parts in zip(*batches(numbered(50), 8, generator=seeded()), strict=True))
    assert labels.tolist() != list(range(50))
    assert labels.sort().values.tolist() == list(range(50))
    assert (pixels.flatten() * 255).round().long().tolist() == labels.tolist()


def test_each_epoch_is_shuffled_anew_and_the_seed_repeats_them():
    def two_epochs():
        generator = seeded()
        return [torch.cat([labels for _, labels in batches(numbered(50), 8, generator=generator)]) for _ in range(2)]

    first, second = two_epochs()
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack([first, second]), torch.stack(two_epochs()))


def test_batches_are_shifted_by_the_argument_shift():
    images = ImageSet(torch.full((20, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(20).long())
    plain, _ = next(batches(images, 20, generator=seeded()))
    moved, _ = next(batches(images, 20, shift=2, generator=seeded()))
    assert plain.min() == 1
    assert moved.min() == 0


def test_a_batch_of_no_images_is_refused_at_once():
    with pytest.raises(InputError, match="a batch holds at least one image, not 0"):
        batches(numbered(3), 0)


@pytest.mark.parametrize(("shift", "generator"), [(2, None), (-1, seeded())])
def test_a_shift_that_cannot_be_drawn_is_refused_at_once(shift, generator):
    with pytest.raises(InputError, match=f"a shift of {shift} pixels cannot be drawn"):
        batches(numbered(3), 2, shift=shift, generator=generator)


def moved_by(image, down, right):
    """The reference: image [c, h, w] moved pixel by pixel."""
    _, h, w = image.shape
    result = torch.zeros_like(image)
    for y in range(h):
        for x in range(w):
            if 0 <= y - down < h and 0 <= x - right < w:
                result[:, y, x] = image[:, y - down, x - right]
    return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_shift_moves_pixels_as_the_reference_does_and_fills_with_zeros(dtype):
    images = torch.randint(1, 256, (12, 3, 5, 7), generator=seeded()).to(dtype)
    down, right = torch.randint(-2, 3, (2, 12, 1), generator=seeded(1))
    expected = torch.stack([moved_by(*each) for each in zip(images, down.flatten(), right.flatten(), strict=True)])
    moved = shifted(images, torch.stack([down, right]).squeeze(-1), 2)
    assert moved.dtype == dtype
    assert torch.equal(moved, expected)


def drawn(images, shift, size=30):
    """The images as an epoch of batches shifts them."""
    images = ImageSet(images, torch.zeros(len(images)).long())
    return torch.cat([pixels for pixels, _ in batches(images, size, shift=shift, generator=seeded())])


def places_of_a_dot(shift, n=2000):
    dots = torch.zeros(n, 1, 9, 9, dtype=torch.uint8)
    dots[:, :, 4, 4] = 255
    found = drawn(dots, shift).nonzero()
    assert len(found) == n
    return (found[:, 2:] - 4).tolist()


def test_every_offset_occurs_about_equally_often_and_none_is_larger():
    places = [tuple(place) for place in places_of_a_dot(2)]
    counts = {place: places.count(place) for place in places}
    assert set(counts) == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    assert min(counts.values()) > 40
    assert max(counts.values()) < 130


def test_images_of_a_batch_are_shifted_each_on_its_own():
    assert len({tuple(place) for place in places_of_a_dot(2, n=20)}) > 5


def test_the_same_seed_draws_the_same_shifts_whatever_the_size_of_a_batch():
    images = torch.randint(0, 256, (10, 1, 5, 5), dtype=torch.uint8)
    shifts = [drawn(images, 2, size=10) for _ in range(2)]
    assert torch.equal(*shifts)


def test_a_shift_of_zero_moves_nothing():
    images = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(shifted(images, torch.zeros(2, 4).long(), 0), images)


def test_a_shift_never_wraps_even_if_larger_than_the_image():
    moved = drawn(torch.full((200, 1, 3, 3), 255, dtype=torch.uint8), 5)
    assert torch.isin(moved.sum(dim=(1, 2, 3)), torch.tensor([0.0, 1, 2, 3, 4, 6, 9])).all()  # rectangles only
    assert (moved.sum(dim=(1, 2, 3)) == 0).any()
