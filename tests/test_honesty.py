"""What is reported is what a network does by itself, with images as they are that it was not chosen on."""

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
    seen, labels, _ = zip(*predict_batches(network, images, batch=5), strict=True)
    assert torch.equal(torch.cat(labels), images.labels)
    assert torch.equal(torch.cat(seen), images.images / 255)


def test_a_test_images_label_takes_no_part_in_its_drawing(network, images):
    others = ImageSet(images.images, (images.labels + 1) % 3)
    drawings = [
        torch.cat([given.reconstructions for *_, given in predict_batches(network, part)]) for part in (images, others)
    ]
    assert torch.equal(*drawings)


def test_the_labels_capsule_is_drawn_where_that_is_asked_for(network, images):
    _, labels, given = next(predict_batches(network, images, masked_by="label"))
    *_, drawing = network(images.images / 255, labels)
    torch.testing.assert_close(given.reconstructions, drawing)
    assert evaluate(network, images, masked_by="label").masked_by == "label"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_never_looks_at_a_test_image(images, tmp_path, monkeypatch, precision):
    judged = []

    def watched(network, part, **options):
        judged.append(part)
        return evaluate(network, part, **options)

    monkeypatch.setattr(import_module("capsnet.training"), "evaluate", watched)
    validation = ImageSet(255 - images.images, images.labels)
    test = ImageSet(images.images.flip(-1), images.labels)
    data, recipe = (
        Data("digits", ("a", "b", "c"), images, validation, test),
        Digits(conv_channels=4, epochs=2, precision=precision),
    )
    train(start_run(tmp_path / "run", recipe, data), data)
    assert len(judged) == 2
    assert all(torch.equal(part.images, validation.images) for part in judged)
