"""The Square attack stays in its ball, takes no more queries than allowed, and fools networks without a gradient."""

import pytest
import torch

from capsnet.analysis.attacks.pgd import margin, misclassify
from capsnet.analysis.attacks.square import square_attack
from capsnet.hardware import seeded


def brightness(pixels):
    """Scores of two classes: dark and bright, without a gradient."""
    bright = (pixels.flatten(1).mean(dim=-1) * 256).round() / 256
    return torch.stack([0.5 - bright, bright - 0.5], dim=-1)


def attacked(pixels, labels, epsilon, queries=200, seed=0, scores=brightness):
    with seeded(seed):
        return square_attack(misclassify(scores, margin), pixels, labels, epsilon, queries)


@pytest.fixture
def dark():
    """Images of two channels whose brightness is from 0.3 to just below a half."""
    return torch.linspace(0.3, 0.49, 8).view(8, 1, 1, 1).expand(8, 2, 6, 9).clone()


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_every_image_stays_within_epsilon_and_the_range_of_pixels(dark, epsilon):
    changed = attacked(dark, torch.zeros(8, dtype=torch.int64), epsilon).adversarial
    assert (changed - dark).abs().max() <= epsilon + 1e-6
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_it_fools_what_its_ball_allows_and_says_so(dark):
    attempt = attacked(dark, torch.zeros(8, dtype=torch.int64), 0.1, queries=1000)
    assert torch.equal(attempt.success, brightness(attempt.adversarial).argmax(dim=-1) == 1)
    assert attempt.success.tolist() == [False] * 5 + [True] * 3  # the fifth is in reach only with every pixel brighter
    assert bool(attacked(dark, torch.zeros(8, dtype=torch.int64), 0.5).success.all())


def test_it_starts_from_vertical_stripes_of_epsilon(dark):
    change = (attacked(dark, torch.zeros(8, dtype=torch.int64), 0.05, queries=1).adversarial - dark) / 0.05
    torch.testing.assert_close(change.abs(), torch.ones_like(change))
    assert torch.equal(change.sign(), change.sign()[:, :, :1].expand_as(change))


def test_an_image_is_shown_no_more_often_than_it_may_be_and_never_once_fooled(dark):
    shown = []

    def counting(pixels):
        shown.append(len(pixels))
        return brightness(pixels)

    labels = torch.zeros(8, dtype=torch.int64)
    attacked(dark, labels, 0.1, queries=30, scores=counting)
    assert len(shown) == 30
    shown.clear()
    done = attacked(dark, labels, 0.15, queries=500, scores=counting).success
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (8, int((~done).sum()))
    assert 0 < shown[-1] < 8


def test_the_same_seed_makes_the_same_images_and_another_seed_others(dark):
    labels = torch.zeros(8, dtype=torch.int64)
    one, again, other = (attacked(dark, labels, 0.1, 20, seed).adversarial for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
