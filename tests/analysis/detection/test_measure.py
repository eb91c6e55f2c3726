"""A detector's threshold is set on validation images alone, its numbers are exact, and attacks do what they say."""

from dataclasses import replace

import pytest
import torch

from capsnet.analysis.detection.measure import _loss, adaptive_attack, attacks, auc, measure_detection
from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.detector import fit_detector, reconstruct, reconstruction_errors
from capsnet.errors import InputError
from capsnet.models import CapsNet
from tests.training import few_digits

EPSILON = 0.2
SMALL = {"count": 12, "epsilons": (0.3,), "steps": 3}


@pytest.fixture(scope="module")
def network(trained):
    return trained.load_network()


@pytest.fixture(scope="module")
def measured(network):
    return measure_detection(network, few_digits(), few_digits(), **SMALL)


def groups(result):
    return {group.name: group for group in (result.clean, *result.suspects)}


def noise(n):
    return ImageSet(torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def test_the_test_images_take_no_part_in_the_threshold(network, measured):
    other = replace(few_digits(), test=few_digits().test.select(torch.arange(30, 60)))
    assert measure_detection(network, other, **SMALL).detector == measured.detector
    assert fit_detector(network, few_digits().validation) == measured.detector


def test_noise_is_reconstructed_worse_than_any_digit(measured):
    assert groups(measured)["noise"].errors.min() > measured.clean.errors.max()


def test_every_attacked_image_counts_that_fooled_the_network_and_no_other(network, measured):
    for name in ("FGSM", "PGD", "adaptive"):
        group = groups(measured)[name]
        assert 0 < len(group.errors) <= group.tried <= 12
        assert (group.predictions != group.labels).all()
        assert torch.equal(reconstruct(network, group.images)[0], group.predictions)
        torch.testing.assert_close(reconstruction_errors(network, group.images), group.errors)


def test_attacks_are_tried_on_the_first_images_that_are_classified_right(measured):
    right = measured.clean.predictions[:12] == measured.clean.labels[:12]
    assert {group.tried for group in measured.suspects if group.epsilon} == {int(right.sum())}


def test_out_of_distribution_data_has_the_name_of_its_set_and_no_labels(measured):
    ood = groups(measured)["digits"]
    assert (len(ood.errors), ood.tried, ood.labels) == (12, 12, None)


def test_the_same_seed_measures_the_same_and_another_seed_other_images(network, measured):
    same, other = (measure_detection(network, few_digits(), few_digits(), **SMALL, seed=seed) for seed in (0, 1))
    for one, again in zip(measured.suspects, same.suspects, strict=True):
        assert torch.equal(one.errors, again.errors)
    assert not torch.equal(measured.clean.errors, other.clean.errors)


def test_the_area_of_equal_errors_is_a_half_and_of_separate_ones_one_or_none():
    errors = torch.tensor([1.0, 2.0, 2.0, 5.0])
    assert auc(errors, errors) == 0.5
    assert auc(torch.ones(7), torch.ones(3)) == 0.5
    assert auc(errors, errors + 5) == 1
    assert auc(errors + 5, errors) == 0


def test_the_area_is_the_share_of_pairs_that_are_ranked_right_with_ties_half():
    clean, suspects = torch.randint(6, (40,)).float(), 2 + torch.randint(6, (30,)).float()
    pairs = [(s > c) + 0.5 * (s == c) for s in suspects.tolist() for c in clean.tolist()]
    assert auc(clean, suspects) == pytest.approx(sum(pairs) / 1200)


def test_without_suspects_there_is_no_area():
    assert auc(torch.rand(3), torch.rand(0)) is None


@pytest.mark.parametrize("kind", ["baseline", "none"])
def test_a_network_without_decoder_is_refused(kind):
    small = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3, "decoder": "none"}
    network = ConvBaseline((1, 8, 8), 10, size="small") if kind == "baseline" else CapsNet((1, 8, 8), 10, **small)
    with pytest.raises(InputError, match="this network has no decoder, so nothing is reconstructed"):
        measure_detection(network, few_digits())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"count": 0}, "at least one image and one step, not 0 and 20"),
        ({"steps": 0}, "at least one image and one step, not 100 and 0"),
        ({"epsilons": (0.1, 1.5)}, r"more than 0 and at most 1, not by \(0.1, 1.5\)"),
        ({"epsilons": (0.0,)}, r"more than 0 and at most 1, not by \(0.0,\)"),
    ],
)
def test_settings_out_of_range_are_refused(network, how, words):
    with pytest.raises(InputError, match=words):
        measure_detection(network, few_digits(), **how)


def test_a_test_set_without_images_is_refused(network):
    with pytest.raises(InputError, match="there are no test images"):
        measure_detection(network, replace(few_digits(), test=noise(0)))


def test_out_of_distribution_data_of_another_shape_is_refused(network):
    with pytest.raises(InputError, match=r"digits has images \(1, 9, 9\), the network takes \(1, 8, 8\)"):
        measure_detection(network, few_digits(), few_digits().resized((9, 9)))


def test_a_network_that_is_never_right_leaves_nothing_to_attack(network):
    data = few_digits()
    wrong = (reconstruct(network, data.test.images / 255)[0] + 1) % 10
    with pytest.raises(InputError, match="classifies none of the images right, so there is nothing to attack"):
        measure_detection(network, replace(data, test=ImageSet(data.test.images, wrong)))


@pytest.fixture(scope="module")
def digits(network):
    """Test digits that the network classifies right, in order."""
    test = few_digits().test
    right = reconstruct(network, test.images / 255)[0] == test.labels
    return test.select(right.nonzero().flatten()[:30])


def attacked(network, digits, threshold=6.0, steps=20, seed=0):
    settings = {"epsilon": EPSILON, "steps": steps, "seed": seed}
    return adaptive_attack(network, digits.images / 255, digits.labels, threshold, **settings)


def test_every_attack_stays_within_epsilon_and_the_range_of_pixels(network, digits):
    by_name = dict(attacks(network, digits, 6.0, epsilon=EPSILON, steps=5, seed=0))
    assert by_name.keys() == {"FGSM", "PGD", "adaptive"}
    for images in by_name.values():
        assert (images - digits.images / 255).abs().max() <= EPSILON + 1e-6
        assert (images - digits.images / 255).abs().max() > EPSILON / 2
        assert images.min() >= 0
        assert images.max() <= 1


def test_the_adaptive_attack_stays_undetected_more_often_than_pgd(network, digits):
    def undetected(images):
        predictions, _, errors = reconstruct(network, images)
        return int(((predictions != digits.labels) & (errors <= threshold)).sum())

    threshold = float(reconstruction_errors(network, digits.images / 255).quantile(0.8))
    by_name = dict(attacks(network, digits, threshold, epsilon=EPSILON, steps=20, seed=0))
    assert undetected(by_name["adaptive"]) > undetected(by_name["PGD"])


def test_an_attack_whose_loss_is_zero_is_misclassified_and_not_flagged(network, digits):
    changed = attacked(network, digits, threshold=8.0)
    with torch.no_grad():
        finished = _loss(network, changed, digits.labels, 8.0) == 0
    assert 0 < finished.sum() < len(finished)
    predictions, _, errors = reconstruct(network, changed)
    assert torch.equal(finished, finished & (predictions != digits.labels) & (errors <= 8.0))


def test_the_same_seed_makes_the_same_attack_and_another_seed_another(network, digits):
    one, same, other = (attacked(network, digits, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_attack_leaves_the_network_and_the_callers_random_numbers_alone(network, digits):
    before, state = [parameter.clone() for parameter in network.parameters()], torch.get_rng_state()
    for _ in attacks(network, digits, 6.0, epsilon=EPSILON, steps=2, seed=0):
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_the_adaptive_attack_refuses_a_network_without_decoder():
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3, decoder="none")
    with pytest.raises(InputError, match="no decoder"):
        adaptive_attack(network, torch.rand(2, 1, 8, 8), torch.arange(2), 6.0, epsilon=EPSILON, steps=1, seed=0)
