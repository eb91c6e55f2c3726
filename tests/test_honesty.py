"""Reported numbers are of unchanged images that were not used to train or choose the network, without their labels."""

from importlib import import_module

import pytest
import torch

from capsnet.data.sets import Data, ImageSet
from capsnet.evaluation import BatchPredictions, evaluate, predict_batches
from capsnet.models import CapsNet
from capsnet.recipes import Digits
from capsnet.runs import start_run
from capsnet.training import train


@pytest.fixture
def images():
    return ImageSet(torch.randint(0, 256, (12, 1, 7, 6), dtype=torch.uint8), torch.arange(12) % 3)


@pytest.fixture
def network():
    return CapsNet((1, 7, 6), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3)


def test_a_class_is_predicted_for_each_image_on_its_own():
    scores = torch.tensor([[0.9, 0.8], [0.7, 0.1]])  # a softmax over the batch prefers class 1 for the first image
    assert BatchPredictions(scores, None).predictions.tolist() == [0, 0]


def test_images_are_evaluated_as_they_are_and_in_order(network, images):
    seen, labels, _ = zip(*predict_batches(network, images, batch_size=5), strict=True)
    assert torch.equal(torch.cat(labels), images.labels)
    assert torch.equal(torch.cat(seen), images.images / 255)


def test_a_test_images_label_has_no_influence_on_its_reconstruction(network, images):
    others = ImageSet(images.images, (images.labels + 1) % 3)
    reconstructions = [
        torch.cat([predicted.reconstructions for *_, predicted in predict_batches(network, part)])
        for part in (images, others)
    ]
    assert torch.equal(*reconstructions)


def test_masked_by_label_reconstructs_from_the_capsule_of_the_label(network, images):
    _, labels, predicted = next(predict_batches(network, images, masked_by="label"))
    *_, reconstruction = network(images.images / 255, labels)
    torch.testing.assert_close(predicted.reconstructions, reconstruction)
    assert evaluate(network, images, masked_by="label").masked_by == "label"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_never_evaluates_on_a_test_image(images, tmp_path, monkeypatch, precision):
    evaluated = []

    def watched(network, part, **options):
        evaluated.append(part)
        return evaluate(network, part, **options)

    monkeypatch.setattr(import_module("capsnet.training"), "evaluate", watched)
    validation = ImageSet(255 - images.images, images.labels)
    test = ImageSet(images.images.flip(-1), images.labels)
    data, recipe = (
        Data("digits", ("a", "b", "c"), images, validation, test),
        Digits(conv_channels=4, epochs=2, precision=precision),
    )
    train(start_run(tmp_path / "run", recipe, data), data)
    assert len(evaluated) == 2
    assert all(torch.equal(part.images, validation.images) for part in evaluated)
