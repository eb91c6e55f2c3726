"""A detector's threshold is set on validation images alone, and its measures are exact."""

from dataclasses import replace

import pytest
import torch

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.robustness import detector
from capsnet.robustness.detection import auc, measure_detection
from capsnet.robustness.detector import fit_detector, look, reconstruction_errors
from tests.training import few_digits

SMALL = {"count": 12, "epsilons": (0.3,), "steps": 3}


@pytest.fixture(scope="module")
def network(trained):
    return trained.load_network()


@pytest.fixture(scope="module")
def measured(network):
    return measure_detection(network, few_digits(), few_digits(), **SMALL)


def kinds(result):
    return {kind.name: kind for kind in (result.clean, *result.suspects)}


def noise(n):
    return ImageSet(torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def test_the_drawing_error_is_that_of_the_winning_capsule_summed_over_pixels(network):
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


def test_the_test_images_take_no_part_in_the_threshold(network, measured):
    other = replace(few_digits(), test=few_digits().test.select(torch.arange(30, 60)))
    assert measure_detection(network, other, **SMALL).detector == measured.detector
    assert fit_detector(network, few_digits().validation) == measured.detector


def test_only_the_first_validation_images_set_the_threshold_where_there_are_many(network, monkeypatch):
    monkeypatch.setattr(detector, "VALIDATION", 20)
    many, first = few_digits().validation, few_digits().validation.select(torch.arange(20))
    assert fit_detector(network, many) == fit_detector(network, first)
    assert fit_detector(network, many).n == 20


def test_noise_is_drawn_worse_than_any_digit(measured):
    assert kinds(measured)["noise"].seen.errors.min() > measured.clean.seen.errors.max()


def test_every_attacked_image_counts_that_fooled_the_network_and_no_other(network, measured):
    for name in ("FGSM", "PGD", "aware"):
        kind = kinds(measured)[name]
        assert 0 < len(kind.seen.errors) <= kind.tried <= 12
        assert (kind.seen.answers != kind.labels).all()
        assert torch.equal(look(network, kind.seen.images).answers, kind.seen.answers)
        torch.testing.assert_close(reconstruction_errors(network, kind.seen.images), kind.seen.errors)


def test_attacks_are_tried_on_the_first_images_that_are_classified_right(measured):
    right = measured.clean.seen.answers[:12] == measured.clean.labels[:12]
    assert {kind.tried for kind in measured.suspects if kind.epsilon} == {int(right.sum())}


def test_other_data_has_the_name_of_its_set_and_no_labels(measured):
    other = kinds(measured)["digits"]
    assert (len(other.seen.errors), other.tried, other.labels) == (12, 12, None)


def test_the_same_seed_measures_the_same_and_another_seed_other_images(network, measured):
    same, other = (measure_detection(network, few_digits(), few_digits(), **SMALL, seed=seed) for seed in (0, 1))
    for one, again in zip(measured.suspects, same.suspects, strict=True):
        assert torch.equal(one.seen.errors, again.seen.errors)
    assert not torch.equal(measured.clean.seen.errors, other.clean.seen.errors)


def test_the_area_of_equal_errors_is_a_half_and_of_separate_ones_one_or_none():
    errors = torch.tensor([1.0, 2.0, 2.0, 5.0])
    assert auc(errors, errors) == 0.5
    assert auc(torch.ones(7), torch.ones(3)) == 0.5
    assert auc(errors, errors + 5) == 1
    assert auc(errors + 5, errors) == 0


def test_the_area_is_the_share_of_pairs_that_are_told_apart_with_ties_half():
    clean, suspects = torch.randint(6, (40,)).float(), 2 + torch.randint(6, (30,)).float()
    pairs = [(s > c) + 0.5 * (s == c) for s in suspects.tolist() for c in clean.tolist()]
    assert auc(clean, suspects) == pytest.approx(sum(pairs) / 1200)


def test_without_suspects_there_is_no_area():
    assert auc(torch.rand(3), torch.rand(0)) is None


@pytest.mark.parametrize("kind", ["baseline", "none"])
def test_a_network_that_does_not_draw_is_refused(kind):
    small = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3, "decoder": "none"}
    network = ConvBaseline((1, 8, 8), 10, size="small") if kind == "baseline" else CapsNet((1, 8, 8), 10, **small)
    for ask in (fit_detector, reconstruction_errors):
        with pytest.raises(InputError, match="this network does not draw, so no drawing can give an attack away"):
            ask(network, noise(3) if ask is fit_detector else noise(3).images / 255)
    with pytest.raises(InputError, match="this network does not draw"):
        measure_detection(network, few_digits())


def test_no_validation_images_are_refused(network):
    with pytest.raises(InputError, match="no validation images to set a threshold on: train with --validation above"):
        fit_detector(network, noise(0))


@pytest.mark.parametrize("percentile", [0, -1, 101, float("nan")])
def test_a_percentile_that_is_none_is_refused(network, percentile):
    with pytest.raises(InputError, match=f"a percentile is above 0 and at most 100, not {percentile}"):
        fit_detector(network, few_digits().validation, percentile)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"count": 0}, "at least one image and one step, not 0 and 20"),
        ({"steps": 0}, "at least one image and one step, not 100 and 0"),
        ({"epsilons": (0.1, 1.5)}, r"more than 0 and at most 1, not by \(0.1, 1.5\)"),
        ({"epsilons": (0.0,)}, r"more than 0 and at most 1, not by \(0.0,\)"),
    ],
)
def test_numbers_that_no_attack_can_have_are_refused(network, how, words):
    with pytest.raises(InputError, match=words):
        measure_detection(network, few_digits(), **how)


def test_a_test_set_without_images_is_refused(network):
    with pytest.raises(InputError, match="there are no test images"):
        measure_detection(network, replace(few_digits(), test=noise(0)))


def test_other_data_of_another_shape_is_refused(network):
    with pytest.raises(InputError, match=r"digits has images \(1, 9, 9\), the network sees \(1, 8, 8\)"):
        measure_detection(network, few_digits(), few_digits().resized((9, 9)))


def test_a_network_that_is_never_right_leaves_nothing_to_attack(network):
    data = few_digits()
    wrong = (look(network, data.test.images / 255).answers + 1) % 10
    with pytest.raises(InputError, match="classifies none of the images right, so there is nothing to attack"):
        measure_detection(network, replace(data, test=ImageSet(data.test.images, wrong)))
