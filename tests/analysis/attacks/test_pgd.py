"""PGD stays within its bounds, equals foolbox's, and uses the full gradient of a network."""

import foolbox
import pytest
import torch

from capsnet.analysis.attacks.pgd import LOSSES, FullGradient, check_within, cross_entropy, margin, misclassify, pgd
from capsnet.baselines import ConvBaseline
from capsnet.errors import InputError
from capsnet.hardware import seeded
from capsnet.models import CapsNet
from tests.analysis.attacks.conftest import attacked, predict


@pytest.fixture
def detached():
    """A network that was trained with gradients through its last iteration only, and is still in training mode."""
    sizes = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}
    network = CapsNet((1, 8, 8), 3, gradient="last", **sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3  # longer votes, so that routing and the gradient that is hidden matter
    return network


def gradient_of(score, images):
    images = images.clone().requires_grad_()
    score(images)[:, 0].sum().backward()
    return images.grad


def test_an_attack_gets_the_full_gradient_of_a_network_that_hides_some(detached):
    images = torch.rand(4, 1, 8, 8)
    full, partial = (gradient_of(score, images) for score in (FullGradient(detached), lambda x: detached(x).lengths))
    detached.digit_caps.gradient = "all"
    torch.testing.assert_close(full, gradient_of(lambda x: detached(x).lengths, images))
    assert (full - partial).abs().max() > 1e-3 * full.abs().max()


def test_the_full_gradient_leaves_the_network_as_it_was(detached):
    FullGradient(detached)(torch.rand(2, 1, 8, 8).requires_grad_()).sum().backward()
    assert detached.digit_caps.gradient == "last"
    assert detached.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in detached.parameters())


def test_the_scores_are_the_lengths_of_a_capsule_network(detached):
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(FullGradient(detached)(images), detached(images).lengths)


def test_the_scores_are_the_logits_of_a_baseline_without_dropout():
    baseline, images = ConvBaseline((1, 8, 8), 3, "small"), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(FullGradient(baseline)(images), baseline.eval()(images))


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
    assert torch.equal(attempt.success, predict(network, attempt.adversarial) != images.labels)
    assert 2 < int(attempt.success.sum()) < 12


def test_the_margin_is_the_lead_of_the_best_wrong_class():
    scores, labels = torch.tensor([[0.1, 0.7, 0.4], [0.9, 0.2, 0.3]]), torch.tensor([1, 1])
    torch.testing.assert_close(margin(scores, labels), torch.tensor([-0.3, 0.7]))


def test_the_margin_has_a_gradient_where_the_cross_entropy_of_a_confident_network_has_none():
    found = {}
    for loss in (margin, cross_entropy):
        scores = torch.tensor([[300.0, 0.0, -5.0]], requires_grad=True)
        loss(scores, torch.tensor([0])).sum().backward()
        found[loss] = scores.grad
    assert torch.equal(found[margin], torch.tensor([[-1.0, 1.0, 0.0]]))
    assert not found[cross_entropy].any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_attack_that_does_not_stop_is_foolbox_s(network, images, norm):
    model = foolbox.PyTorchModel(FullGradient(network), bounds=(0, 1))
    attack = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[norm](steps=4, rel_stepsize=2.5 / 4)
    with seeded(0):
        theirs = attack.run(model, images.images / 255, images.labels, epsilon=0.1)
    ours = attacked(network, images, 0.1, "cross-entropy", norm=norm, stops=False).adversarial
    torch.testing.assert_close(ours, theirs)


def test_one_step_from_the_image_itself_is_foolbox_s_fgsm(network, images):
    model, pixels = FullGradient(network), images.images / 255
    theirs = foolbox.attacks.LinfFastGradientAttack().run(
        foolbox.PyTorchModel(model, bounds=(0, 1)), pixels, images.labels, epsilon=0.1
    )
    objective = misclassify(model, cross_entropy, stops=False)
    ours = pgd(objective, pixels, images.labels, 0.1, 1, random_start=False).adversarial
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("epsilon", "steps"), [(-0.1, 4), (0.1, 0), (float("nan"), 4)])
def test_an_attack_of_no_steps_or_a_negative_epsilon_is_refused(network, images, epsilon, steps):
    with pytest.raises(InputError, match=f"at least one step, not {epsilon:g} and {steps}"):
        attacked(network, images, epsilon, steps=steps)


def test_an_image_keeps_the_change_that_fooled_the_network_first(network, images):
    stopped, further = (attacked(network, images, 0.1, "cross-entropy", stops=stops) for stops in (True, False))
    still = ~stopped.success
    torch.testing.assert_close(stopped.adversarial[still], further.adversarial[still])
    fooled = predict(network, further.adversarial) != images.labels
    assert not bool((fooled & ~stopped.success).any())


def test_an_image_that_has_fooled_the_network_is_not_moved_again(network, images):
    objective, shown = misclassify(FullGradient(network), margin), []

    def watched(pixels, labels):
        shown.append(pixels.detach().clone())
        return objective(pixels, labels)

    with seeded(0):
        attempt = pgd(watched, images.images / 255, images.labels, 0.1, 8)
    sizes = [len(pixels) for pixels in shown]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 12 > sizes[-1]
    at_once = predict(network, shown[0]) != images.labels
    assert at_once.sum() >= 2
    assert torch.equal(attempt.adversarial[at_once], shown[0][at_once])
    assert torch.equal(attempt.steps == 0, at_once)
    assert (attempt.steps[~attempt.success] == 8).all()


def test_a_seed_is_a_random_start_of_its_own(network, images):
    one, again, other = (attacked(network, images, 0.02, seed=seed).adversarial for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
