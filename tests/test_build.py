"""What a recipe says becomes a network, a loss and a learning rate, here worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from capsnet.baselines import ConvBaseline
from capsnet.build import build_network, learning_rate, losses
from capsnet.models import CapsNetOutput
from capsnet.recipes import Recipe
from tests.training import TINY, weights


def rates(recipe, steps, epoch_steps=100):
    return [learning_rate(recipe, step, steps, epoch_steps) for step in range(steps)]


def test_the_exponential_rate_falls_by_its_factor_every_decay_steps():
    rate = rates(Recipe(lr=1.0, lr_decay=0.25, lr_decay_steps=10, lr_min=0), 21)
    assert (rate[0], rate[5], rate[10], rate[20]) == (1, 0.5, 0.25, 0.0625)


def test_without_decay_steps_the_exponential_rate_falls_by_its_factor_every_epoch():
    recipe = Recipe(lr=1.0, lr_decay=0.25, lr_decay_steps=None, lr_min=0)
    rate = rates(recipe, 13, epoch_steps=6)
    assert (rate[0], rate[3], rate[6], rate[12]) == (1, 0.5, 0.25, 0.0625)


def test_the_exponential_rate_never_falls_below_its_floor():
    rate = rates(Recipe(lr=1.0, lr_decay=0.5, lr_decay_steps=1, lr_min=0.2), 10)
    assert rate == [1, 0.5, 0.25, *[0.2] * 7]


def test_the_one_cycle_rate_rises_to_its_peak_and_falls_along_cosines():
    rate = rates(Recipe(lr=0.8, schedule="one-cycle", warmup=0.2), 10)
    assert rate[:3] == pytest.approx([0.2, 0.6, 0.8])  # a third and two thirds of half a turn, then the peak
    assert rate[6] == pytest.approx(0.4)  # half of the way down
    assert rate == [*sorted(rate[:3]), *sorted(rate[3:], reverse=True)]


def test_the_one_cycle_rate_ends_near_zero():
    rate = rates(Recipe(lr=1.0, schedule="one-cycle"), 1000)
    assert 0 < rate[-1] < 1e-5


def test_one_cycle_without_warmup_starts_at_its_peak():
    assert rates(Recipe(lr=1.0, schedule="one-cycle", warmup=0), 2) == pytest.approx([1, 0.5])


def test_the_total_loss_is_the_margin_loss_plus_the_weighted_reconstruction_loss():
    lengths = torch.tensor([[0.5, 0.3], [0.9, 0.1]])  # the right one 0.4 too short, the wrong one 0.2 too long; perfect
    images = torch.zeros(2, 1, 2, 2)
    images[0, 0, 0, 0] = 1

    def network(images, classes):
        return CapsNetOutput(lengths, torch.zeros(2, 2, 4), torch.full_like(images, 0.5))

    parts = losses(network, images, torch.tensor([0, 0]), Recipe(reconstruction_weight=0.1))
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(
        {"margin": 0.09, "reconstruction": 1.0, "loss": 0.09 + 0.1 * 1.0, "accuracy": 1.0}
    )


def test_the_margins_and_their_weight_are_the_recipe_s():
    lengths = torch.tensor([[0.5, 0.3]])

    def network(images, classes):
        return CapsNetOutput(lengths, torch.zeros(1, 2, 4), None)

    recipe = Recipe(margin_present=0.8, margin_absent=0.2, margin_down_weight=2.0)
    parts = losses(network, torch.zeros(1, 1, 2, 2), torch.tensor([0]), recipe)
    assert float(parts["margin"]) == pytest.approx(0.3**2 + 2 * 0.1**2)


def test_in_training_the_true_label_s_capsule_is_reconstructed():
    asked = []

    def network(images, classes):
        asked.append(classes)
        return CapsNetOutput(torch.rand(3, 4), torch.rand(3, 4, 8), images)

    labels = torch.tensor([3, 0, 2])
    losses(network, torch.rand(3, 1, 2, 2), labels, Recipe())
    assert asked[0] is labels


def test_a_network_without_a_decoder_is_trained_by_the_margin_loss_alone():
    network = build_network(replace(TINY, decoder="none"), (1, 8, 8), 10)
    parts = losses(network, torch.rand(3, 1, 8, 8), torch.tensor([1, 2, 3]), TINY)
    assert parts.keys() == {"margin", "loss", "accuracy"}
    assert parts["loss"] == parts["margin"]


def test_a_baseline_is_trained_by_cross_entropy():
    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([1, 0, 1])
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    parts = losses(network, images, labels, Recipe(network="cnn"))
    chances = network(images).softmax(dim=-1)  # over classes
    torch.testing.assert_close(parts["loss"], -(chances[0, 1] * chances[1, 0] * chances[2, 1]).log() / 3)
    assert parts.keys() == {"loss", "accuracy"}


@pytest.mark.parametrize(("network", "parameters"), [("capsnet", 8_215_568), ("cnn", 35_445_522)])
def test_a_recipe_builds_the_papers_networks(network, parameters):
    with torch.device("meta"):
        built = build_network(Recipe(network=network), (1, 28, 28), 10)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


def test_the_small_baseline_is_smaller_than_the_capsule_network():
    with torch.device("meta"):
        small, capsnet = (build_network(Recipe(network=name), (1, 28, 28), 10) for name in ("small-cnn", "capsnet"))
    assert isinstance(small, ConvBaseline)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in capsnet.parameters())


def test_the_seed_alone_decides_the_initial_weights():
    first = weights(build_network(TINY, (1, 8, 8), 10))
    torch.rand(5)
    assert torch.equal(weights(build_network(TINY, (1, 8, 8), 10)), first)
    assert not torch.equal(weights(build_network(replace(TINY, seed=1), (1, 8, 8), 10)), first)


@pytest.mark.parametrize("network", ["capsnet", "cnn", "small-cnn"])
def test_building_a_network_leaves_the_callers_random_numbers_as_they_were(network):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_network(replace(TINY, network=network), (1, 8, 8), 10)
    assert torch.equal(torch.rand(3), expected)


def test_the_weights_of_a_seed_are_those_that_pytorch_draws_from_it():
    torch.manual_seed(7)
    expected = weights(ConvBaseline((1, 8, 8), 10, size="small"))
    assert torch.equal(weights(build_network(replace(TINY, network="small-cnn", seed=7), (1, 8, 8), 10)), expected)
