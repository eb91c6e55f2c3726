"""What the tests of attacks share: images of which a network knows most, an attack on it, and its predictions."""

import pytest
import torch

from capsnet.analysis.attacks.pgd import LOSSES, FullGradient, misclassify, pgd
from capsnet.data import ImageSet
from capsnet.hardware import seeded


@pytest.fixture
def images(network):
    """Twelve images of noise, of which the network gets all but the first two right."""
    pixels = torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        labels = network(pixels / 255).lengths.argmax(dim=-1)
    labels[:2] = (labels[:2] + 1) % 3
    return ImageSet(pixels, labels)


def attacked(network, images, epsilon, loss="margin", steps=4, seed=0, norm="Linf", stops=True):
    objective = misclassify(FullGradient(network), LOSSES[loss], stops=stops)
    with seeded(seed):
        return pgd(objective, images.images / 255, images.labels, epsilon, steps, norm)


def predict(network, pixels):
    with torch.no_grad():
        return network(pixels).lengths.argmax(dim=-1)
