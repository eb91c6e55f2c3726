"""A tweak adds to one dimension of one capsule, and nothing else changes."""

import pytest
import torch

from capsnet.data import ImageSet
from capsnet.figures.dimensions import steps, tweak, tweaked


def capsules_of(network, images):
    with torch.no_grad():
        return network.encode(images.images / 255)


def predictions_of(network, images):
    return torch.linalg.vector_norm(capsules_of(network, images), dim=-1).argmax(dim=-1)


def test_a_tweak_adds_to_one_dimension_of_one_capsule_and_changes_nothing_else():
    capsules, offsets = torch.rand(3, 5), torch.tensor([-0.5, 0.0, 0.25])
    added = tweaked(capsules, 1, [4, 2], offsets) - capsules
    for row, dimension in enumerate([4, 2]):
        torch.testing.assert_close(added[row, :, 1, dimension], offsets)
        added[row, :, 1, dimension] = 0
    assert torch.equal(added, torch.zeros(2, 3, 3, 5))


def test_tweaking_leaves_the_capsules_as_they_were():
    capsules = torch.rand(3, 5)
    kept = capsules.clone()
    tweaked(capsules, 0, [0, 1], torch.tensor([1.0, 2.0]))
    assert torch.equal(capsules, kept)


def test_a_tweak_of_zero_is_the_unperturbed_drawing(network, images):
    told = tweak(network, images, label=2, image=7)
    drawing = network.decode(capsules_of(network, images)[7:8], torch.tensor([2]))[0].detach()
    middle = told.reconstructions[:, len(told.offsets) // 2]
    torch.testing.assert_close(middle, drawing.expand_as(middle))
    assert (told.reconstructions[:, 0] - drawing).abs().max() > 0.01


def test_each_drawing_is_of_the_capsule_with_that_number_added_to_that_dimension(network, images):
    told = tweak(network, images, label=1, image=3, extent=0.4, step=0.2, dimensions=[11, 5])
    for row, dimension in enumerate(told.dimensions):
        for k, offset in enumerate([-0.4, -0.2, 0.0, 0.2, 0.4]):
            capsules = capsules_of(network, images)[3:4]
            capsules[0, 1, dimension] += offset
            drawing = network.decode(capsules, torch.tensor([1]))[0].detach()
            torch.testing.assert_close(told.reconstructions[row, k], drawing)


def test_rows_are_sorted_by_the_ink_that_a_dimension_moves(network, images):
    told = tweak(network, images)
    assert sorted(told.dimensions) == list(range(16))
    assert told.ink == sorted(told.ink, reverse=True)
    middle = told.reconstructions[:, 5:6]
    moved = (told.reconstructions - middle).abs().sum(dim=(2, 3, 4)).sum(dim=1) / 10
    torch.testing.assert_close(torch.tensor(told.ink), moved)


def test_only_the_dimensions_asked_for_are_tweaked_each_once(network, images):
    assert sorted(tweak(network, images, dimensions=[7, 3, 7]).dimensions) == [3, 7]


def test_the_image_is_the_first_of_its_class_that_the_network_gets_right(network, images):
    predictions = predictions_of(network, images)
    place = int((predictions != predictions[0]).nonzero()[0])
    label = int(predictions[place])
    told = tweak(network, ImageSet(images.images, torch.full((12,), label)), label=label)
    assert (told.place, told.truth, told.prediction) == (place, label, label)


def test_the_image_is_the_first_of_its_class_if_the_network_gets_none_right(network, images):
    predictions = predictions_of(network, images)
    told = tweak(network, ImageSet(images.images, (predictions + 1) % 3), label=int((predictions[0] + 1) % 3))
    assert told.place == 0
    assert told.prediction != told.label


@pytest.mark.parametrize(
    ("extent", "step", "count"), [(0.25, 0.05, 11), (0.3, 0.075, 9), (0.3, 0.1, 7), (0.7, 0.7, 3), (1, 0.04, 51)]
)
def test_steps_lead_from_minus_the_extent_through_exactly_zero_to_the_extent(extent, step, count):
    offsets = steps(extent, step)
    assert len(offsets) == count
    assert (offsets[0], offsets[count // 2], offsets[-1]) == (-extent, 0, extent)
    assert offsets[1] - offsets[0] == pytest.approx(step)
