"""Attacks stay within their bounds, and accuracy under attack is what it says."""

import foolbox
import pytest
import torch
from foolbox.criteria import Misclassification

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.models import CapsNet
from capsnet.robustness.attacks import measure_attacks
from capsnet.robustness.descent import check_within, descend, seeded
from capsnet.robustness.exposed import foolbox_model
from capsnet.robustness.intervals import wilson

KINDS = ("FGSM", "BIM", "PGD")
QUICK = {"epsilons": (0.3, 0.05, 0.1), "distances": (0.2, 1.0), "bim_steps": 3, "pgd_steps": 4, "deepfool_images": 6}


@pytest.fixture
def network():
    """An untrained network whose weights are so large that it tells images of noise apart."""
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
    return network


@pytest.fixture
def images(network):
    """Twelve images of noise, of which the network gets all but the first two right."""
    pixels = torch.randint(256, (12, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        labels = network(pixels / 255).lengths.argmax(dim=-1)
    labels[:2] = (labels[:2] + 1) % 3
    return ImageSet(pixels, labels)


def attacked(network, images, epsilon, attack, steps=4, seed=0):
    with seeded(seed):
        return descend(foolbox_model(network), images.images / 255, images.labels, epsilon, attack, steps)


@pytest.mark.parametrize("attack", KINDS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_adversarial_images_stay_within_epsilon_and_the_range_of_pixels(network, images, attack, epsilon):
    adversarial = attacked(network, images, epsilon, attack).adversarial
    assert (adversarial - images.images / 255).abs().max() <= epsilon + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_an_image_that_left_its_ball_is_not_passed_over():
    pixels = torch.full((2, 1, 8, 8), 0.95)
    check_within(pixels - 0.1, pixels, 0.1)
    with pytest.raises(RuntimeError, match=r"an attack within 0.1 went as far as 0.2"):
        check_within(pixels - 0.2, pixels, 0.1)
    with pytest.raises(RuntimeError, match=r"to pixels from 1.05 to 1.05"):
        check_within(pixels + 0.1, pixels, 0.2)


@pytest.mark.parametrize("attack", KINDS)
def test_what_is_said_to_be_fooled_is_misclassified_and_nothing_else(network, images, attack):
    attempt = attacked(network, images, 0.05, attack)
    with torch.no_grad():
        wrong = network(attempt.adversarial).lengths.argmax(dim=-1) != images.labels
    assert torch.equal(attempt.fooled, wrong)
    assert 2 < int(wrong.sum()) < 12
    assert attempt.steps[wrong].max() <= 4


def test_what_is_misclassified_as_it_is_is_left_alone(network, images):
    attempt = attacked(network, images, 0.1, "BIM")
    assert torch.equal(attempt.adversarial[:2], images.images[:2] / 255)
    assert attempt.steps.tolist()[:2] == [0, 0]
    assert (attempt.adversarial[2:] != images.images[2:] / 255).flatten(1).any(dim=-1).all()


@pytest.mark.parametrize("kind", ["LinfFastGradientAttack", "LinfBasicIterativeAttack"])
def test_to_stop_when_fooled_is_no_weaker_than_foolbox(network, images, kind):
    model, steps = foolbox_model(network), {} if "Fast" in kind else {"steps": 4, "rel_stepsize": 2.5 / 4}
    attack = getattr(foolbox.attacks, kind)(**steps)
    theirs = attack.run(model, images.images / 255, Misclassification(images.labels), epsilon=0.1)
    ours = attacked(network, images, 0.1, "FGSM" if "Fast" in kind else "BIM")
    still = ours.steps >= 4  # never fooled, or by the last step
    torch.testing.assert_close(ours.adversarial[still], theirs[still])
    with torch.no_grad():
        fooled = network(theirs).lengths.argmax(dim=-1) != images.labels
    assert not bool((fooled & ~ours.fooled)[2:].any())


def test_accuracy_never_rises_with_epsilon_and_begins_at_that_without_attack(network, images):
    baseline = ConvBaseline((1, 8, 8), 3, "small")
    result = measure_attacks({"capsules": network, "plain": baseline}, images, **QUICK)
    assert [(curve.network, curve.attack) for curve in result.curves] == [
        (name, attack) for name in ("capsules", "plain") for attack in (*KINDS, "DeepFool")
    ]
    for curve in result.curves:
        assert list(curve.epsilons) == sorted(curve.epsilons)
        assert list(curve.right) == sorted(curve.right, reverse=True)
    for judged, curves in ((network, result.curves[:3]), (baseline, result.curves[4:7])):
        assert {curve.accuracies[0] for curve in curves} == {evaluate(judged, images).accuracy}
    assert {curve.right[-1] for curve in result.curves[:4]} == {0}


def test_a_curve_has_its_n_and_the_interval_of_each_accuracy(network, images):
    curve, *_, deepfool = measure_attacks({"capsules": network}, images, **QUICK).curves
    assert (curve.n, curve.norm, curve.epsilons) == (12, "Linf", (0.0, 0.05, 0.1, 0.3))
    assert (deepfool.n, deepfool.norm, deepfool.epsilons) == (6, "L2", (0.0, 0.2, 1.0))
    assert deepfool.right[0] == 4
    assert curve.intervals == [wilson(right, 12) for right in curve.right]


def test_the_settings_say_what_the_attacks_depend_on(network, images):
    settings = measure_attacks({"capsules": network}, images, **QUICK, seed=3).settings
    told = {"bim_steps": 3, "pgd_steps": 4, "deepfool_images": 6, "seed": 3, "foolbox": foolbox.__version__}
    assert told.items() <= settings.items()


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_generator_alone(network, images):
    state = torch.random.get_rng_state()
    assert measure_attacks({"a": network}, images, **QUICK) == measure_attacks({"a": network}, images, **QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_is_a_random_start_of_its_own(network, images):
    one, again, other = (attacked(network, images, 0.02, "PGD", seed=seed).adversarial for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_set_that_is_all_wrong_needs_no_attack(network, images):
    curves = measure_attacks({"a": network}, images.select(torch.arange(2)), **QUICK).curves
    assert all(set(curve.right) == {0} for curve in curves)


@pytest.mark.parametrize("epsilon", [-0.1, 1.5, float("nan")])
def test_an_epsilon_outside_0_to_1_is_refused(network, images, epsilon):
    with pytest.raises(InputError, match=f"epsilon is a change of pixels .* from 0 to 1, not {epsilon:g}"):
        measure_attacks({"a": network}, images, epsilons=(0.1, epsilon))


def test_a_negative_distance_is_refused(network, images):
    with pytest.raises(InputError, match=r"an L2 distance is 0 or more, which not all of \[1.0, -2.0\] are"):
        measure_attacks({"a": network}, images, distances=(1.0, -2.0))


def test_no_networks_and_no_images_are_refused(network, images):
    with pytest.raises(InputError, match="an attack takes networks and images, not 0 and 12 of them"):
        measure_attacks({}, images)
    with pytest.raises(InputError, match="an attack takes networks and images, not 1 and 0 of them"):
        measure_attacks({"a": network}, images.select(torch.arange(0)))


@pytest.mark.parametrize("name", ["bim_steps", "pgd_steps", "deepfool_images"])
def test_counts_below_1_are_refused(network, images, name):
    with pytest.raises(InputError, match=f"{name} is at least 1, not 0"):
        measure_attacks({"a": network}, images, **{name: 0})
