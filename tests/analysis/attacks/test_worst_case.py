"""The worst case over all attacks counts the images on which every attack failed."""

import sys

import foolbox
import pytest
import torch

from capsnet.analysis.accuracy import wilson
from capsnet.analysis.attacks.pgd import LOSSES, FullGradient
from capsnet.analysis.attacks.worst_case import LARGE, Effort, measure_attacks
from capsnet.baselines import ConvBaseline
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from tests.analysis.attacks.conftest import attacked, predict

QUICK = {
    "epsilons": (0.3, 0.05, 0.1),
    "distances": (1.0, 0.2),
    "l2_images": 6,
    "effort": Effort(steps=(3, 6), starts=3, start_steps=4, queries=20),
}


@pytest.fixture(scope="module")
def baseline():
    torch.manual_seed(0)
    return ConvBaseline((1, 8, 8), 3, "small").eval()


def test_accuracy_never_rises_with_epsilon_or_attacks_and_begins_at_that_without_attack(network, baseline, images):
    result = measure_attacks({"capsules": network, "plain": baseline}, images, **QUICK)
    assert [(curve.network, curve.norm) for curve in result.curves] == [
        (name, norm) for name in ("capsules", "plain") for norm in ("Linf", "L2")
    ]
    for curve in result.curves:
        assert curve.epsilons == sorted(curve.epsilons)
        added = [curve.clean, *(right for ball in curve.balls for right in ball.after.values())]
        assert added == sorted(added, reverse=True)
        assert curve.right == [curve.clean, *(list(ball.after.values())[-1] for ball in curve.balls)]
    for measured, curve in ((network, result.curves[0]), (baseline, result.curves[2])):
        assert curve.right[0] == 12 - evaluate(measured, images).errors
    assert result.curves[0].right[-1] == 0


def test_the_attacks_are_added_in_one_order_and_the_other_networks_last(network, baseline, images):
    both = measure_attacks({"capsules": network, "plain": baseline}, images, **QUICK).curves
    alone = measure_attacks({"capsules": network}, images, **QUICK).curves
    gradients = ["PGD-3", "PGD-6", "2 starts", "3 starts"]
    assert list(both[0].balls[0].after) == [*gradients, "Square", "transfer"]
    assert list(both[1].balls[0].after) == [*gradients, "DeepFool", "transfer"]
    assert list(alone[0].balls[0].after) == [*gradients, "Square"]


def test_a_curve_has_its_n_and_the_interval_of_each_accuracy(network, images):
    linf, l2 = measure_attacks({"capsules": network}, images, **QUICK).curves
    assert (linf.n, linf.norm, linf.epsilons) == (12, "Linf", [0.0, 0.05, 0.1, 0.3, LARGE])
    assert (l2.n, l2.norm, l2.epsilons) == (6, "L2", [0.0, 0.2, 1.0])
    assert l2.clean == 4
    assert linf.intervals == [wilson(right, 12) for right in linf.right]


def test_the_worst_case_is_below_every_single_attack(network, images):
    linf, l2 = measure_attacks({"capsules": network}, images, **QUICK).curves
    right = images.select(torch.arange(2, 12))
    for epsilon, left in zip(linf.epsilons[1:], linf.right[1:], strict=True):
        for loss in LOSSES:
            assert left <= int((~attacked(network, right, epsilon, loss, steps=6, seed=5).success).sum())
    model, pixels = foolbox.PyTorchModel(FullGradient(network), bounds=(0, 1)), images.images[:6] / 255
    attack = foolbox.attacks.L2DeepFoolAttack(steps=30, candidates=3)
    found = attack.run(model, pixels, foolbox.criteria.Misclassification(images.labels[:6]))
    distance = torch.linalg.vector_norm((found - pixels).flatten(1), dim=-1)
    fooled = predict(network, found) != images.labels[:6]
    for ball in l2.balls:
        assert ball.right <= int((~fooled | (distance > ball.epsilon)).sum())


def test_an_attack_leaves_the_network_as_it_was(network, images):
    before, network.digit_caps.gradient = [parameter.clone() for parameter in network.parameters()], "last"
    measure_attacks({"a": network.train()}, images, **QUICK)
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert (network.training, network.digit_caps.gradient) == (True, "last")


def test_the_settings_say_what_the_attacks_depend_on(network, images):
    settings = measure_attacks({"capsules": network}, images, **QUICK, seed=3).settings
    expected = {"steps": (3, 6), "starts": 3, "start_steps": 4, "queries": 20, "l2_images": 6, "seed": 3}
    expected |= {"foolbox": foolbox.__version__, "losses": ["margin", "cross-entropy"]}
    assert {name: settings[name] for name in expected} == expected


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_generator_alone(network, images):
    state = torch.random.get_rng_state()
    assert measure_attacks({"a": network}, images, **QUICK) == measure_attacks({"a": network}, images, **QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_set_that_is_all_wrong_needs_no_attack(network, images):
    curves = measure_attacks({"a": network}, images.select(torch.arange(2)), **QUICK).curves
    assert all(set(curve.right) == {0} for curve in curves)


@pytest.mark.parametrize("epsilon", [-0.1, 1.5, float("nan")])
def test_an_epsilon_outside_0_to_1_is_refused(network, images, epsilon):
    with pytest.raises(InputError, match=f"epsilon is a change of pixels .* from 0 to 1, not {epsilon:g}"):
        measure_attacks({"a": network}, images, epsilons=(0.1, epsilon))


def test_a_negative_distance_is_refused(network, images):
    with pytest.raises(InputError, match=r"L2 distances are 0 or more, not \[1.0, -2.0\]"):
        measure_attacks({"a": network}, images, distances=(1.0, -2.0))


def test_no_networks_and_no_images_are_refused(network, images):
    with pytest.raises(InputError, match="an attack takes networks and images, not 0 and 12 of them"):
        measure_attacks({}, images)
    with pytest.raises(InputError, match="an attack takes networks and images, not 1 and 0 of them"):
        measure_attacks({"a": network}, images.select(torch.arange(0)))


@pytest.mark.parametrize("wrong", [{"steps": (0, 5)}, {"steps": ()}, {"starts": 0}, {"start_steps": 0}, {"queries": 0}])
def test_counts_below_1_are_refused(network, images, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is at least 1, not 0"):
        measure_attacks({"a": network}, images, effort=Effort(**wrong))


def test_no_images_for_l2_are_refused(network, images):
    with pytest.raises(InputError, match="l2_images is at least 1, not 0"):
        measure_attacks({"a": network}, images, l2_images=0)


def test_without_foolbox_an_attack_says_how_to_install_it(network, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"not installed: pip install foolbox"):
        measure_attacks({"a": network}, images)
