"""A network that hides its gradient is flagged, and so is an attack that has not converged."""

from dataclasses import replace

import pytest
import torch

from capsnet.analysis.attacks.masking import RULES, check_curve, convergence, is_close, verdict
from capsnet.analysis.attacks.worst_case import Ball, Effort, WorstCase, measure_attacks
from capsnet.data import ImageSet
from capsnet.models import CapsNet

SIZES = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}
EFFORT = Effort(steps=(6, 12), starts=2, start_steps=6, queries=300)


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
def measured():
    """An open and a masked network under attack, on forty images of noise that both get right."""
    networks = {"open": made(CapsNet), "masked": made(Rounded)}
    torch.manual_seed(0)
    pixels = (torch.randint(9, (40, 1, 8, 8)) * 255 // 8).byte()
    with torch.no_grad():
        images = ImageSet(pixels, networks["masked"](pixels / 255).lengths.argmax(dim=-1))
    return measure_attacks(networks, images, epsilons=(0.1, 0.2), distances=(1.0,), l2_images=6, effort=EFFORT)


def by_name(result, network, norm="Linf"):
    (curve,) = (curve for curve in result.curves if (curve.network, curve.norm) == (network, norm))
    return {check.name: check for check in check_curve(curve)}


def curve(*after, n=100, epsilons=(0.1, 0.3), norm="Linf"):
    balls = tuple(Ball(epsilon, left) for epsilon, left in zip(epsilons, after, strict=True))
    return WorstCase("CNN", norm, n, 99, balls)


HELD = {"PGD-10": 20, "PGD-20": 18, "PGD-50": 18, "2 starts": 17, "Square": 17, "transfer": 17}


def test_an_open_network_passes_every_check(measured):
    for norm, other in (("Linf", "no gradients"), ("L2", "least distance")):
        checks = by_name(measured, "open", norm)
        names = ["more steps", "more starts", other, "transfer"] + ["large epsilon"] * (norm == "Linf")
        assert list(checks) == names
        assert all(check.passed for check in checks.values()), [check.sentence for check in checks.values()]


def test_a_network_without_gradients_is_flagged_by_the_attack_that_takes_none(measured):
    check = by_name(measured, "masked")["no gradients"]
    assert not check.passed
    assert check.right["Square"] < check.right["2 starts"]
    assert "masked, Linf, no gradients: FLAGGED (n = 40, ε = " in check.sentence


def test_steps_that_still_fool_more_have_not_converged_and_are_flagged():
    climbing = curve(HELD, HELD | {"PGD-10": 52, "PGD-20": 44, "PGD-50": 18})
    check = check_curve(climbing)[0]
    assert (check.name, check.passed, check.epsilon) == ("more steps", False, 0.3)
    assert check.sentence == (
        "CNN, Linf, more steps: FLAGGED (n = 100, ε = 0.3; PGD-10: 52 %, PGD-20: 44 %, PGD-50: 18 %)"
    )
    assert verdict(climbing) == (
        "not converged after 50 steps of PGD; "
        "FLAGGED by 1 of 4 checks: more steps (ε = 0.3): the accuracy may be too high"
    )


def test_accuracy_has_converged_after_the_first_number_of_steps_within_the_interval_of_the_last():
    late = curve(HELD, HELD | {"PGD-10": 52})
    assert [convergence(late, ball)["converged_after_steps"] for ball in late.balls] == [10, 20]
    found = convergence(late, late.balls[1])
    assert found["accuracy_by_steps"] == {"10": 0.52, "20": 0.18, "50": 0.18}
    assert found["converged"]
    assert verdict(late) == "converged after 20 steps of PGD; passed all 4 checks"


@pytest.mark.parametrize(
    ("before", "after", "n", "close"),
    [
        (18, 18, 100, True),
        (23, 18, 100, True),
        (24, 18, 100, False),  # within the interval up to 26.7 %, but 6 points above
        (14, 9, 30, False),  # within the interval up to 47.9 %, but 17 points above
        (1870, 1800, 10_000, True),
        (1890, 1800, 10_000, False),  # 0.9 points above, but the interval ends at 18.8 %
    ],
)
def test_close_is_within_wilson_s_interval_and_five_points_of_what_is_left(before, after, n, close):
    assert is_close(before, after, n) is close


@pytest.mark.parametrize(
    ("changes", "flagged"),
    [
        ({"PGD-10": 60, "PGD-20": 60, "PGD-50": 60}, ["more starts"]),
        ({"PGD-10": 60, "PGD-20": 60, "PGD-50": 60, "2 starts": 60}, ["no gradients"]),
        ({"PGD-10": 60, "PGD-20": 60, "PGD-50": 60, "2 starts": 60, "Square": 60}, ["transfer"]),
    ],
)
def test_each_further_attack_that_does_better_is_flagged_at_whichever_epsilon(changes, flagged):
    for balls in ((HELD | changes, HELD), (HELD, HELD | changes)):
        assert [check.name for check in check_curve(curve(*balls)) if not check.passed] == flagged


def test_a_network_that_is_right_on_what_may_be_a_uniform_grey_is_flagged():
    left = dict.fromkeys(HELD, 1)
    (check,) = [check for check in check_curve(curve(HELD, left, epsilons=(0.1, 0.5))) if check.name == "large epsilon"]
    assert not check.passed
    none = curve(HELD, dict.fromkeys(HELD, 0), epsilons=(0.1, 0.5))
    assert all(check.passed for check in check_curve(none))


def test_every_check_has_its_rule(measured):
    found = {check.name for curve in measured.curves for check in check_curve(curve)}
    assert found == set(RULES)


def test_what_had_no_second_attack_is_not_checked():
    single = curve({"PGD-10": 3}, {"PGD-10": 2})
    assert check_curve(single) == []
    assert verdict(single) == "not checked"
    assert check_curve(replace(single, balls=())) == []
