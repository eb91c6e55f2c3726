"""Attacks stay within their bounds, and the worst case is what no attack of all could undo."""

import foolbox
import pytest
import torch

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.hardware import seeded
from capsnet.models import CapsNet
from capsnet.robustness.attacks import LARGE, Effort, measure_attacks
from capsnet.robustness.descent import LOSSES, check_within, cross_entropy, descend, margin, misclassify
from capsnet.robustness.exposed import foolbox_model
from capsnet.robustness.intervals import wilson

QUICK = {
    "epsilons": (0.3, 0.05, 0.1),
    "distances": (1.0, 0.2),
    "l2_images": 6,
    "effort": Effort(steps=(3, 6), starts=3, start_steps=4, queries=20),
}


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


def attacked(network, images, epsilon, loss="margin", steps=4, seed=0, norm="Linf", stops=True):
    model = foolbox_model(network)
    aim = misclassify(model, LOSSES[loss], stops=stops)
    with seeded(seed):
        return descend(aim, model, images.images / 255, images.labels, epsilon, steps, norm)


def predict_batches(network, pixels):
    with torch.no_grad():
        return network(pixels).lengths.argmax(dim=-1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.0), ("Linf", 0.1), ("Linf", 1.0), ("L2", 0.5), ("L2", 2.0)])
def test_adversarial_images_stay_within_epsilon_and_the_range_of_pixels(network, images, norm, epsilon, loss):
    adversarial = attacked(network, images, epsilon, loss, norm=norm, stops=False).adversarial
    order = torch.inf if norm == "Linf" else 2
    change = torch.linalg.vector_norm((adversarial - images.images / 255).flatten(1), order, dim=-1)
    assert change.max() <= epsilon + 1e-5
    assert change.max() >= 0.5 * epsilon
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_an_image_that_left_its_ball_is_not_passed_over():
    pixels = torch.full((2, 1, 8, 8), 0.95)
    check_within(pixels - 0.1, pixels, 0.1)
    check_within(pixels - 0.1, pixels, 0.8, "L2")
    with pytest.raises(RuntimeError, match=r"an attack within 0.1 went as far as 0.2"):
        check_within(pixels - 0.2, pixels, 0.1)
    with pytest.raises(RuntimeError, match=r"an attack within 0.7 went as far as 0.8"):
        check_within(pixels - 0.1, pixels, 0.7, "L2")
    with pytest.raises(RuntimeError, match=r"to pixels from 1.05 to 1.05"):
        check_within(pixels + 0.1, pixels, 0.2)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_said_to_be_fooled_is_misclassified_and_nothing_else(network, images, loss):
    attempt = attacked(network, images, 0.05, loss)
    assert torch.equal(attempt.done, predict_batches(network, attempt.adversarial) != images.labels)
    assert 2 < int(attempt.done.sum()) < 12


def test_the_margin_is_the_lead_of_the_best_wrong_class():
    scores, labels = torch.tensor([[0.1, 0.7, 0.4], [0.9, 0.2, 0.3]]), torch.tensor([1, 1])
    torch.testing.assert_close(margin(scores, labels), torch.tensor([-0.3, 0.7]))


def test_the_margin_has_a_gradient_where_the_cross_entropy_of_a_sure_network_has_none():
    found = {}
    for loss in (margin, cross_entropy):
        scores = torch.tensor([[300.0, 0.0, -5.0]], requires_grad=True)
        loss(scores, torch.tensor([0])).sum().backward()
        found[loss] = scores.grad
    assert torch.equal(found[margin], torch.tensor([[-1.0, 1.0, 0.0]]))
    assert not found[cross_entropy].any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_attack_that_does_not_stop_is_foolbox_s(network, images, norm):
    model, kind = foolbox_model(network), {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[norm]
    with seeded(0):
        theirs = kind(steps=4, rel_stepsize=2.5 / 4).run(model, images.images / 255, images.labels, epsilon=0.1)
    ours = attacked(network, images, 0.1, "cross-entropy", norm=norm, stops=False).adversarial
    torch.testing.assert_close(ours, theirs)


def test_an_image_keeps_the_change_that_fooled_the_network_first(network, images):
    stopped, further = (attacked(network, images, 0.1, "cross-entropy", stops=stops) for stops in (True, False))
    still = ~stopped.done
    torch.testing.assert_close(stopped.adversarial[still], further.adversarial[still])
    fooled = predict_batches(network, further.adversarial) != images.labels
    assert not bool((fooled & ~stopped.done).any())


def test_an_image_that_has_fooled_the_network_is_not_moved_again(network, images):
    model, shown = foolbox_model(network), []
    aim = misclassify(model, margin)

    def watched(pixels, labels):
        shown.append(pixels.detach().clone())
        return aim(pixels, labels)

    with seeded(0):
        attempt = descend(watched, model, images.images / 255, images.labels, 0.1, 8)
    sizes = [len(pixels) for pixels in shown]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 12 > sizes[-1]
    at_once = predict_batches(network, shown[0]) != images.labels
    assert at_once.sum() >= 2
    assert torch.equal(attempt.adversarial[at_once], shown[0][at_once])


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
    for judged, curve in ((network, result.curves[0]), (baseline, result.curves[2])):
        assert curve.right[0] == 12 - evaluate(judged, images).errors
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
            assert left <= int((~attacked(network, right, epsilon, loss, steps=6, seed=5).done).sum())
    model, pixels = foolbox_model(network), images.images[:6] / 255
    attack = foolbox.attacks.L2DeepFoolAttack(steps=30, candidates=3)
    found = attack.run(model, pixels, foolbox.criteria.Misclassification(images.labels[:6]))
    distance = torch.linalg.vector_norm((found - pixels).flatten(1), dim=-1)
    fooled = predict_batches(network, found) != images.labels[:6]
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
    told = {"steps": (3, 6), "starts": 3, "start_steps": 4, "queries": 20, "l2_images": 6, "seed": 3}
    told |= {"foolbox": foolbox.__version__, "losses": ["margin", "cross-entropy"]}
    assert {name: settings[name] for name in told} == told


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_generator_alone(network, images):
    state = torch.random.get_rng_state()
    assert measure_attacks({"a": network}, images, **QUICK) == measure_attacks({"a": network}, images, **QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_is_a_random_start_of_its_own(network, images):
    one, again, other = (attacked(network, images, 0.02, seed=seed).adversarial for seed in (0, 0, 1))
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


@pytest.mark.parametrize("wrong", [{"steps": (0, 5)}, {"steps": ()}, {"starts": 0}, {"start_steps": 0}, {"queries": 0}])
def test_counts_below_1_are_refused(network, images, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is at least 1, not 0"):
        measure_attacks({"a": network}, images, effort=Effort(**wrong))


def test_no_images_for_l2_are_refused(network, images):
    with pytest.raises(InputError, match="l2_images is at least 1, not 0"):
        measure_attacks({"a": network}, images, l2_images=0)
