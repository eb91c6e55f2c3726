"""A perturbation adds to one dimension of one capsule, and nothing else changes."""

import pytest
import torch

from capsnet.analysis.perturbations.measure import measure_perturbations, perturb, steps
from capsnet.data import ImageSet


def capsules_of(network, images):
    with torch.no_grad():
        return network.encode(images.images / 255)


def predictions_of(network, images):
    return torch.linalg.vector_norm(capsules_of(network, images), dim=-1).argmax(dim=-1)


def test_a_perturbation_adds_to_one_dimension_of_one_capsule_and_changes_nothing_else():
    capsules, offsets = torch.rand(3, 5), torch.tensor([-0.5, 0.0, 0.25])
    added = perturb(capsules, 1, [4, 2], offsets) - capsules
    for row, dimension in enumerate([4, 2]):
        torch.testing.assert_close(added[row, :, 1, dimension], offsets)
        added[row, :, 1, dimension] = 0
    assert torch.equal(added, torch.zeros(2, 3, 3, 5))


def test_perturbing_leaves_the_capsules_as_they_were():
    capsules = torch.rand(3, 5)
    kept = capsules.clone()
    perturb(capsules, 0, [0, 1], torch.tensor([1.0, 2.0]))
    assert torch.equal(capsules, kept)


def test_a_perturbation_of_zero_is_the_unperturbed_reconstruction(network, images):
    found = measure_perturbations(network, images, label=2, image=7)
    made = network.decode(capsules_of(network, images)[7:8], torch.tensor([2]))[0].detach()
    middle = found.reconstructions[:, len(found.offsets) // 2]
    torch.testing.assert_close(middle, made.expand_as(middle))
    assert (found.reconstructions[:, 0] - made).abs().max() > 0.01


def test_each_reconstruction_is_of_the_capsule_with_that_number_added_to_that_dimension(network, images):
    found = measure_perturbations(network, images, label=1, image=3, extent=0.4, step=0.2, dimensions=[11, 5])
    for row, dimension in enumerate(found.dimensions):
        for k, offset in enumerate([-0.4, -0.2, 0.0, 0.2, 0.4]):
            capsules = capsules_of(network, images)[3:4]
            capsules[0, 1, dimension] += offset
            made = network.decode(capsules, torch.tensor([1]))[0].detach()
            torch.testing.assert_close(found.reconstructions[row, k], made)


def test_rows_are_sorted_by_the_change_that_a_dimension_makes(network, images):
    found = measure_perturbations(network, images)
    assert sorted(found.dimensions) == list(range(16))
    assert found.change == sorted(found.change, reverse=True)
    middle = found.reconstructions[:, 5:6]
    moved = (found.reconstructions - middle).abs().sum(dim=(2, 3, 4)).sum(dim=1) / 10
    torch.testing.assert_close(torch.tensor(found.change), moved)


def test_only_the_dimensions_asked_for_are_perturbed_each_once(network, images):
    assert sorted(measure_perturbations(network, images, dimensions=[7, 3, 7]).dimensions) == [3, 7]


def test_the_image_is_the_first_of_its_class_that_the_network_gets_right(network, images):
    predictions = predictions_of(network, images)
    place = int((predictions != predictions[0]).nonzero()[0])
    label = int(predictions[place])
    found = measure_perturbations(network, ImageSet(images.images, torch.full((12,), label)), label=label)
    assert (found.place, found.truth, found.prediction) == (place, label, label)


def test_the_image_is_the_first_of_its_class_if_the_network_gets_none_right(network, images):
    predictions = predictions_of(network, images)
    found = measure_perturbations(
        network, ImageSet(images.images, (predictions + 1) % 3), label=int((predictions[0] + 1) % 3)
    )
    assert found.place == 0
    assert found.prediction != found.label


@pytest.mark.parametrize(
    ("extent", "step", "count"), [(0.25, 0.05, 11), (0.3, 0.075, 9), (0.3, 0.1, 7), (0.7, 0.7, 3), (1, 0.04, 51)]
)
def test_steps_lead_from_minus_the_extent_through_exactly_zero_to_the_extent(extent, step, count):
    offsets = steps(extent, step)
    assert len(offsets) == count
    assert (offsets[0], offsets[count // 2], offsets[-1]) == (-extent, 0, extent)
    assert offsets[1] - offsets[0] == pytest.approx(step)
