"""A network that hides its gradient is told from one that does not."""

import pytest
import torch

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.robustness.masking import Probe, measure_masking

SIZES = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}
QUICK = Probe(epsilon=0.2, large=0.5, steps=12, starts=2, few=3, search_steps=2)


class Rounded(CapsNet):
    """A network that sees images in eight levels of grey, and so has no gradient for them."""

    def encode(self, images):
        return super().encode((images * 8).round() / 8)


def made(kind):
    torch.manual_seed(0)
    network = kind((1, 8, 8), 3, **SIZES).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
    return network


@pytest.fixture(scope="module")
def networks():
    return {"open": made(CapsNet), "masked": made(Rounded)}


@pytest.fixture(scope="module")
def images(networks):
    """Twelve images of noise that the networks get right."""
    torch.manual_seed(0)
    pixels = (torch.randint(9, (12, 1, 8, 8)) * 255 // 8).byte()
    with torch.no_grad():
        return ImageSet(pixels, networks["masked"](pixels / 255).lengths.argmax(dim=-1))


@pytest.fixture(scope="module")
def measured(networks, images):
    return measure_masking(networks, images, QUICK)


def by_name(result, network):
    return {check.name: check for check in result.checks if check.network == network}


def test_an_open_network_shows_no_sign_of_masking(measured):
    checks = by_name(measured, "open")
    assert list(checks) == [
        "PGD iterations",
        "random starts of PGD",
        "images made for",
        "no gradients",
        "large epsilon",
    ]
    assert all(check.passed for check in checks.values()), [check.sentence for check in checks.values()]


def test_a_network_without_gradients_is_caught(measured):
    checks = by_name(measured, "masked")
    assert not checks["PGD iterations"].passed
    assert not checks["images made for"].passed
    assert checks["images made for"].accuracies["open"] < checks["images made for"].accuracies["its own"]
    assert "masked, PGD iterations: a sign of masking (n = 12; 0: " in checks["PGD iterations"].sentence


def test_more_iterations_and_more_starts_never_fool_fewer(measured):
    for check in measured.checks:
        if check.name in ("PGD iterations", "random starts of PGD"):
            shares = list(check.accuracies.values())
            assert shares == sorted(shares, reverse=True)
            assert check.n == 12


def test_iterations_are_told_from_the_random_start_to_the_last(measured):
    checks = by_name(measured, "open")
    assert list(checks["PGD iterations"].accuracies) == ["0", "1", "2", "5", "6", "10", "12"]
    assert list(checks["random starts of PGD"].accuracies) == ["1", "2"]
    assert checks["no gradients"].n == 3


def test_a_network_alone_is_checked_by_the_same_seed_in_the_same_way_and_without_transfer(networks, images, measured):
    alone = measure_masking({"open": networks["open"]}, images, QUICK)
    assert "images made for" not in by_name(alone, "open")
    for name in ("PGD iterations", "random starts of PGD"):
        assert by_name(alone, "open")[name] == by_name(measured, "open")[name]


def test_a_search_needs_images_of_another_class(networks, images):
    alike = images.select((images.labels == images.labels[0]).nonzero().flatten())
    with pytest.raises(InputError, match=f"open takes all {len(alike)} images for one class: check it on images of"):
        measure_masking({"open": networks["open"]}, alike, QUICK)


def test_an_epsilon_outside_0_to_1_is_refused(networks, images):
    with pytest.raises(InputError, match="from 0 to 1, not 2"):
        measure_masking(networks, images, Probe(large=2.0))


def test_counts_below_1_are_refused(networks, images):
    with pytest.raises(InputError, match="starts is at least 1, not 0"):
        measure_masking(networks, images, Probe(starts=0))
