"""An attacker sees the scores of a network and its whole gradient."""

import sys

import pytest
import torch

from capsnet.baselines import ConvBaseline
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.robustness.exposed import Exposed, foolbox_model


@pytest.fixture
def network():
    """A network that was trained with gradients through its last iteration only, and is still in training."""
    sizes = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}
    network = CapsNet((1, 8, 8), 3, gradient="last", **sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3  # or the votes are so short that routing, and with it what is hidden, is slight
    return network


def gradient_of(score, images):
    images = images.clone().requires_grad_()
    score(images)[:, 0].sum().backward()
    return images.grad


def test_an_attacker_gets_the_whole_gradient_of_a_network_that_hides_some(network):
    images = torch.rand(4, 1, 8, 8)
    exposed, hidden = (gradient_of(score, images) for score in (Exposed(network), lambda x: network(x).lengths))
    network.digit_caps.gradient = "all"
    torch.testing.assert_close(exposed, gradient_of(lambda x: network(x).lengths, images))
    assert (exposed - hidden).abs().max() > 1e-3 * exposed.abs().max()


def test_exposing_leaves_the_network_as_it_was(network):
    Exposed(network)(torch.rand(2, 1, 8, 8).requires_grad_()).sum().backward()
    assert network.digit_caps.gradient == "last"
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_the_scores_are_the_lengths_of_a_capsule_network(network):
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(Exposed(network)(images), network(images).lengths)


def test_the_scores_are_the_logits_of_a_baseline_without_dropout():
    baseline, images = ConvBaseline((1, 8, 8), 3, "small"), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(Exposed(baseline)(images), baseline.eval()(images))


def test_without_foolbox_an_attack_says_how_to_install_it(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"not installed: pip install foolbox"):
        foolbox_model(network)
