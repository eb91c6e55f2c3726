"""Both losses are those of the paper, by hand: sums over classes and pixels, means over images."""

import pytest
import torch
from torch import tensor

from capsnet.losses import margin_loss, reconstruction_loss


@pytest.mark.parametrize(
    ("lengths", "label", "loss"),
    [
        ([0.9, 0.1, 0.1], 0, 0),
        ([0.95, 0.0, 0.05], 0, 0),  # beyond the margins nothing is asked
        ([0.5, 0.1, 0.1], 0, 0.4**2),
        ([0.9, 0.4, 0.1], 0, 0.5 * 0.3**2),
        ([0.5, 0.4, 0.7], 0, 0.4**2 + 0.5 * (0.3**2 + 0.6**2)),
        ([0.5, 0.4, 0.7], 2, 0.2**2 + 0.5 * (0.4**2 + 0.3**2)),
        ([0.0, 0.0, 0.0], 1, 0.9**2),
    ],
)
@pytest.mark.parametrize("images", [1, 2, 7])
def test_the_margin_loss_is_eq_4_summed_over_classes_and_averaged_over_images(lengths, label, loss, images):
    torch.testing.assert_close(margin_loss(tensor([lengths] * images), tensor([label] * images)), tensor(float(loss)))


def test_the_margin_loss_of_a_batch_is_the_mean_of_its_images():
    lengths, labels = torch.rand(4, 3), tensor([0, 2, 1, 1])
    alone = [margin_loss(lengths[b : b + 1], labels[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(margin_loss(lengths, labels), torch.stack(alone).mean())


@pytest.mark.parametrize(
    ("constant", "value", "loss"),
    [
        ("present", 0.7, 0.2**2 + 0.5 * 0.3**2),
        ("absent", 0.2, 0.4**2 + 0.5 * 0.2**2),
        ("down_weight", 1, 0.4**2 + 0.3**2),
    ],
)
def test_each_constant_of_the_margin_loss_does_what_it_says(constant, value, loss):
    lengths, labels = tensor([[0.5, 0.4]]), tensor([0])
    torch.testing.assert_close(margin_loss(lengths, labels, **{constant: value}), tensor(loss))


@pytest.mark.parametrize("images", [1, 2, 7])
def test_the_reconstruction_loss_is_summed_over_pixels_and_averaged_over_images(images):
    drawing, image = torch.full((images, 3, 4, 5), 0.75), torch.full((images, 3, 4, 5), 0.25)
    torch.testing.assert_close(reconstruction_loss(drawing, image), tensor(3 * 4 * 5 * 0.25))


def test_the_reconstruction_loss_of_a_batch_is_the_mean_of_its_images():
    drawing, image = torch.rand(4, 1, 5, 6), torch.rand(4, 1, 5, 6)
    alone = [reconstruction_loss(drawing[b : b + 1], image[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(reconstruction_loss(drawing, image), torch.stack(alone).mean())
