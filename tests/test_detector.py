"""A detector's threshold is set on validation images, by the reconstruction errors of a network with a decoder."""

import pytest
import torch

from capsnet import detector
from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.detector import fit_detector, reconstruction_errors
from capsnet.errors import InputError
from capsnet.models import CapsNet
from tests.training import few_digits


@pytest.fixture(scope="module")
def network(trained):
    return trained.load_network()


def noise(n):
    return ImageSet(torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def test_the_reconstruction_error_is_that_of_the_longest_capsule_summed_over_pixels(network):
    images = few_digits().test.images[:3] / 255
    with torch.no_grad():
        squares = (network(images).reconstruction - images).square().sum(dim=(1, 2, 3))  # over channel, row and column
    torch.testing.assert_close(reconstruction_errors(network, images), squares)


@pytest.mark.parametrize(("percentile", "flagged"), [(95, 3), (100, 0), (50, 30), (94, 3), (99.9, 0)])
def test_of_60_validation_images_a_percentile_leaves_so_many_flagged(network, percentile, flagged):
    validation = few_digits().validation
    detector = fit_detector(network, validation, percentile)
    assert detector.flags(reconstruction_errors(network, validation.images / 255)).sum() == flagged
    assert (detector.percentile, detector.n) == (percentile, 60)


def test_the_threshold_is_the_error_of_a_validation_image_and_is_not_flagged(network):
    errors = reconstruction_errors(network, few_digits().validation.images / 255)
    detector = fit_detector(network, few_digits().validation)
    assert detector.threshold == errors.sort().values[56]
    assert not detector.flags(torch.tensor([detector.threshold])).any()


def test_only_the_first_validation_images_set_the_threshold_where_there_are_many(network, monkeypatch):
    monkeypatch.setattr(detector, "VALIDATION", 20)
    many, first = few_digits().validation, few_digits().validation.select(torch.arange(20))
    assert fit_detector(network, many) == fit_detector(network, first)
    assert fit_detector(network, many).n == 20


def test_no_validation_images_are_refused(network):
    with pytest.raises(InputError, match="no validation images to set a threshold on: train with --validation above"):
        fit_detector(network, noise(0))


@pytest.mark.parametrize("percentile", [0, -1, 101, float("nan")])
def test_a_percentile_out_of_range_is_refused(network, percentile):
    with pytest.raises(InputError, match=f"a percentile is above 0 and at most 100, not {percentile}"):
        fit_detector(network, few_digits().validation, percentile)


@pytest.mark.parametrize("kind", ["baseline", "none"])
def test_a_network_without_decoder_is_refused(kind):
    small = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3, "decoder": "none"}
    network = ConvBaseline((1, 8, 8), 10, size="small") if kind == "baseline" else CapsNet((1, 8, 8), 10, **small)
    for ask in (fit_detector, reconstruction_errors):
        with pytest.raises(InputError, match="this network has no decoder, so nothing is reconstructed"):
            ask(network, noise(3) if ask is fit_detector else noise(3).images / 255)
