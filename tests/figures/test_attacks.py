"""The picture of accuracy under attack has a panel an attack, a line a network and the interval of each number."""

import json

import pytest

from capsnet.figures import attacks
from capsnet.figures.attacks import draw_attacks
from capsnet.robustness.attacks import Attacks, Curve
from capsnet.robustness.intervals import wilson
from capsnet.robustness.masking import Check, Masking, Probe

SETTINGS = {"bim_steps": 5, "pgd_steps": 15, "foolbox": "3.3.4"}


def curve(network, attack, right, norm="Linf"):
    return Curve(network, attack, norm, 100, (0.0, 0.1, 0.3), right)


@pytest.fixture
def measured():
    curves = (
        curve("CapsNet", "PGD", (98, 40, 0)),
        curve("CapsNet", "DeepFool", (98, 50, 3), "L2"),
        curve("a CNN", "PGD", (97, 60, 1)),
        curve("a CNN", "DeepFool", (97, 70, 2), "L2"),
    )
    return Attacks(curves, SETTINGS)


@pytest.fixture
def masking():
    def check(network, name, accuracies, passed):
        return Check(network, name, "a rule", 50, accuracies, passed)

    checks = (
        check("CapsNet", "PGD iterations", {"0": 0.9, "20": 0.4, "40": 0.38}, True),
        check("CapsNet", "random starts of PGD", {"1": 0.38, "2": 0.2}, False),
        check("CapsNet", "large epsilon", {"0.5": 0.0}, True),
    )
    return Masking(checks, Probe())


def words(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def test_the_same_numbers_make_the_same_bytes(measured, masking, tmp_path):
    one, two = (draw_attacks(measured, tmp_path / f"{name}.png", masking=masking) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "a-masking.png").read_bytes() == (tmp_path / "b-masking.png").read_bytes()


def test_a_panel_is_an_attack_and_has_a_line_for_each_network(measured, tmp_path, pages):
    drawn = pages(attacks)
    draw_attacks(measured, tmp_path / "a.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["PGD, n = 100", "DeepFool, n = 100"]
    for axes, lines in zip(drawn[0].axes, ((40, 60), (50, 70)), strict=True):
        assert [line.get_ydata()[1] for line in axes.lines] == list(lines)
        assert [text.get_text() for text in axes.get_legend().texts] == ["CapsNet", "a CNN"]
    for axes, norm in zip(drawn[0].axes, ("(Linf)", "(L2)"), strict=True):
        assert norm in axes.get_xlabel()


def test_networks_differ_in_colour_dashes_and_markers(measured, tmp_path, pages):
    drawn = pages(attacks)
    draw_attacks(measured, tmp_path / "a.png")
    one, two = drawn[0].axes[0].lines
    assert one.get_color() != two.get_color()
    assert one.get_linestyle() != two.get_linestyle()
    assert one.get_marker() != two.get_marker()


def test_the_bands_are_the_intervals(measured, tmp_path, pages):
    drawn = pages(attacks)
    draw_attacks(measured, tmp_path / "a.png")
    box = drawn[0].axes[0].collections[0].get_paths()[0].get_extents()
    assert box.ymax == pytest.approx(100 * wilson(98, 100)[1])
    assert box.ymin == pytest.approx(100 * wilson(0, 100)[0])


def test_an_odd_number_of_attacks_leaves_no_empty_panel(measured, tmp_path, pages):
    drawn = pages(attacks)
    draw_attacks(Attacks(measured.curves[:1], SETTINGS), tmp_path / "a.png")
    assert len(drawn[0].axes) == 1


def test_the_checks_for_masking_are_drawn_and_told_with_their_verdicts(measured, masking, tmp_path, pages):
    drawn = pages(attacks)
    draw_attacks(measured, tmp_path / "a.png", masking=masking)
    iterations, starts = drawn[1].axes
    assert list(iterations.lines[0].get_ydata()) == [90, 40, 38]
    assert list(starts.lines[0].get_ydata()) == [38, 20]
    assert "2 of 3 checks show no sign" in words(drawn[1])
    assert "✗ CapsNet, random starts of PGD: a sign of masking (n = 50; 1: 38 %, 2: 20 %); rule: a rule" in words(
        drawn[1]
    )
    assert "✓ CapsNet, large epsilon: no sign of masking (n = 50; 0.5: 0 %)" in words(drawn[1])


def test_dollars_in_a_name_are_no_formula(measured, masking, tmp_path, pages):
    drawn = pages(attacks)
    named = [Check("$a$", check.name, check.rule, 50, check.accuracies, True) for check in masking.checks]
    curves = [Curve("$a$", "PGD", "Linf", 100, (0.0, 0.1), (9, 8))]
    draw_attacks(Attacks(tuple(curves), SETTINGS), tmp_path / "a.png", masking=Masking(tuple(named), Probe()))
    assert r"\$a\$" in words(drawn[1])
    assert drawn[0].axes[0].get_legend().texts[0].get_text() == r"\$a\$"


def test_the_numbers_beside_the_picture_have_everything(measured, masking, tmp_path):
    path = draw_attacks(measured, tmp_path / "a.png", masking=masking)
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert numbers["settings"] == SETTINGS
    assert numbers["curves"][0]["n"] == 100
    assert numbers["curves"][0]["accuracies"] == [0.98, 0.4, 0.0]
    assert numbers["curves"][0]["intervals"] == [list(wilson(right, 100)) for right in (98, 40, 0)]
    assert numbers["masking"]["probe"]["epsilon"] == 0.1
    assert numbers["masking"]["checks"][1]["passed"] is False
    assert "a sign of masking" in numbers["masking"]["checks"][1]["sentence"]
