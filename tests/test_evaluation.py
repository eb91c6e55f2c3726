"""An evaluation counts errors and sees images as they are; the predictions of its networks are known here."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluate, predict_batch, predict_batches
from capsnet.models import CapsNet, CapsNetOutput

LABELS, PREDICTED = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0]


class Known(CapsNet):
    """A network of four classes: it predicts the level of the first pixel, and reconstructs the level of the class."""

    def __init__(self):
        nn.Module.__init__(self)
        self.classes, self.seen = 4, []
        self.place = nn.Parameter(torch.zeros(()))  # a network is where its parameters are

    def forward(self, images, classes=None):
        self.seen.append(images)
        predicted = (images[:, 0, 0, 0] * 255).round().long()  # [b]
        lengths = 0.8 * nn.functional.one_hot(predicted, 4) + 0.1  # [b, j]
        levels = (predicted if classes is None else classes).view(-1, 1, 1, 1)
        return CapsNetOutput(lengths, lengths.unsqueeze(-1), torch.ones_like(images) * levels / 255)


class KnownBaseline(nn.Module):
    """A baseline with the same predictions."""

    def __init__(self):
        super().__init__()
        self.classes, self.place = 4, nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return 5.0 * nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 4)


def images_of(levels, labels):
    """Images of 1x2x2 pixels of one level each, with these labels."""
    levels = torch.tensor(levels, dtype=torch.uint8)
    return ImageSet(levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.tensor(labels))


@pytest.fixture
def five():
    return images_of(PREDICTED, LABELS)


def test_errors_confusions_and_shares_are_those_counted_by_hand(five):
    result = evaluate(Known(), five)
    assert (result.n, result.errors) == (5, 2)
    assert result.confusion == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert result.accuracy == pytest.approx(0.6)
    assert result.per_class == [0.5, 1, 0, None]


def test_a_baseline_is_counted_in_the_same_way_and_has_no_reconstruction_error(five):
    result = evaluate(KnownBaseline(), five)
    assert replace(evaluate(Known(), five), reconstruction=None) == result


def test_the_scores_of_a_baseline_are_probabilities(five):
    [(_, _, predicted)] = predict_batches(KnownBaseline(), five)
    torch.testing.assert_close(predicted.scores.sum(dim=-1), torch.ones(5))
    assert predicted.predictions.tolist() == PREDICTED


def test_the_reconstruction_is_of_the_predicted_class_or_of_the_label(five):
    for masked_by, classes in (("prediction", PREDICTED), ("label", LABELS)):
        [(_, _, predicted)] = predict_batches(Known(), five, masked_by=masked_by)
        assert (predicted.reconstructions[:, 0, 0, 0] * 255).round().tolist() == classes
        assert evaluate(Known(), five, masked_by=masked_by).masked_by == masked_by


def test_the_reconstruction_error_is_summed_over_pixels_and_averaged_over_images_not_batches():
    images = images_of([0] * 500 + [3], [1] * 501)  # the odd one out is a batch of its own
    squares = 500 * 4 * (1 / 255) ** 2 + 4 * (2 / 255) ** 2
    assert evaluate(Known(), images, masked_by="label").reconstruction == pytest.approx(squares / 501)
    assert evaluate(Known(), images).reconstruction == 0


def test_images_are_seen_unshifted_in_order_as_their_bytes_over_255():
    network, images = Known(), torch.randint(0, 256, (7, 1, 3, 3), dtype=torch.uint8)
    images[:, :, 0, 0] = 0
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    seen = [batch_labels for _, batch_labels, _ in predict_batches(network, ImageSet(images, labels), batch_size=3)]
    assert [len(batch) for batch in network.seen] == [3, 3, 1]
    assert torch.equal(torch.cat(network.seen), images.float() / 255)
    assert torch.equal(torch.cat(seen), labels)


def test_scores_have_no_gradient(five):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    assert not predict_batch(network, torch.rand(2, 1, 2, 2)).scores.requires_grad


def test_a_network_predicts_in_evaluation_mode_and_returns_to_its_own(five):
    network = KnownBaseline()
    modes = [network.training for _ in predict_batches(network, five, batch_size=2)]
    assert modes == [False] * 3
    assert network.training


def test_stopping_after_the_first_batch_returns_the_network_to_its_mode(five):
    network = KnownBaseline()
    seen = predict_batches(network, five, batch_size=2)
    next(seen)
    seen.close()
    assert network.training


def test_a_set_without_images_is_refused():
    with pytest.raises(InputError, match="there are no images to evaluate on"):
        evaluate(Known(), images_of([], []))


@pytest.mark.parametrize(
    "network", [lambda: CapsNet((1, 18, 18), 3, conv_channels=4), lambda: ConvBaseline((1, 18, 18), 3, "small")]
)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused_with_what_is_at_fault(network, number):
    network, images = network(), torch.rand(3, 1, 18, 18)
    spoilt = images.clone()
    spoilt[1, 0, 5, 5] = number
    with pytest.raises(InputError, match="image 1 of 3 has pixels that are NaN or infinite: leave it out"):
        predict_batch(network, spoilt)
    name, weight = next(iter(network.named_parameters()))
    weight.data.view(-1)[0] = number
    with pytest.raises(InputError, match=f"the network's {name} has numbers that are NaN or infinite: train it again"):
        predict_batch(network, images)
