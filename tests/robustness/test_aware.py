"""Attacks on a detector stay within bounds, and the one who knows of it does what it is for."""

import pytest
import torch

from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.robustness.aware import _loss, attacks, aware_attack
from capsnet.robustness.detection import look
from tests.training import few_digits

EPSILON = 0.2


@pytest.fixture(scope="module")
def network(trained):
    return trained.load_network()


@pytest.fixture(scope="module")
def digits(network):
    """Test digits that the network classifies right, and pixels that are theirs."""
    test = few_digits().test
    right = look(network, test.images / 255).answers == test.labels
    return test.select(right.nonzero().flatten()[:30])


def attacked(network, digits, threshold=6.0, steps=20, seed=0):
    return aware_attack(network, digits.images / 255, digits.labels, threshold, epsilon=EPSILON, steps=steps, seed=seed)


def test_every_attack_stays_within_epsilon_and_the_range_of_pixels(network, digits):
    by_name = dict(attacks(network, digits, 6.0, epsilon=EPSILON, steps=5, seed=0))
    assert by_name.keys() == {"FGSM", "PGD", "aware"}
    for images in by_name.values():
        assert (images - digits.images / 255).abs().max() <= EPSILON + 1e-6
        assert (images - digits.images / 255).abs().max() > EPSILON / 2
        assert images.min() >= 0
        assert images.max() <= 1


def test_who_knows_the_threshold_passes_it_more_often_than_who_does_not(network, digits):
    def undetected(images):
        seen = look(network, images)
        return int(((seen.answers != digits.labels) & (seen.errors <= threshold)).sum())

    threshold = float(look(network, digits.images / 255).errors.quantile(0.8))
    by_name = dict(attacks(network, digits, threshold, epsilon=EPSILON, steps=20, seed=0))
    assert undetected(by_name["aware"]) > undetected(by_name["PGD"])


def test_an_attack_that_lacks_nothing_is_taken_for_another_class_and_not_flagged(network, digits):
    changed = attacked(network, digits, threshold=8.0)
    with torch.no_grad():
        finished = _loss(network, changed, digits.labels, 8.0) == 0
    assert 0 < finished.sum() < len(finished)
    seen = look(network, changed)
    assert torch.equal(finished, finished & (seen.answers != digits.labels) & (seen.errors <= 8.0))


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


def test_a_network_without_decoder_is_refused():
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3, decoder="none")
    with pytest.raises(InputError, match="no decoder, so it cannot reconstruct"):
        aware_attack(network, torch.rand(2, 1, 8, 8), torch.arange(2), 6.0, epsilon=EPSILON, steps=1, seed=0)
