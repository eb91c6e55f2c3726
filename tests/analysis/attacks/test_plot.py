"""The figure of accuracy under attack has a panel per norm, a line per network, all intervals and all verdicts."""

import json

import pytest

from capsnet.analysis.accuracy import wilson
from capsnet.analysis.attacks import plot
from capsnet.analysis.attacks.plot import plot_attacks
from capsnet.analysis.attacks.worst_case import Attacks, Ball, WorstCase

SETTINGS = {"steps": (10, 20, 50), "starts": 2, "start_steps": 50, "queries": 500, "foolbox": "3.3.4"}


def worst(network, norm, right, climbing=0):
    """A curve of 100 images; `climbing` more of them were still right at epsilon 0.1 before the last steps of PGD."""
    search = "Square" if norm == "Linf" else "DeepFool"

    def after(left, more=0):
        return {"PGD-10": left + more, "PGD-20": left + more, "PGD-50": left, "2 starts": left, search: left}

    return WorstCase(network, norm, 100, 99, (Ball(0.1, after(right[0], climbing)), Ball(0.3, after(right[1]))))


@pytest.fixture
def measured():
    curves = (
        worst("CapsNet", "Linf", (40, 0)),
        worst("CapsNet", "L2", (50, 3)),
        worst("a CNN", "Linf", (60, 1), climbing=30),
        worst("a CNN", "L2", (70, 2)),
    )
    return Attacks(curves, SETTINGS)


def words(figure):
    texts = [text.get_text() for text in figure.texts]
    return " ".join(texts).replace("\n", " ")


def test_the_same_numbers_make_the_same_bytes(measured, tmp_path):
    (one, _), (two, _) = (plot_attacks(measured, tmp_path / f"{name}.png") for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "a-masking.png").read_bytes() == (tmp_path / "b-masking.png").read_bytes()


def test_a_panel_is_a_norm_and_has_a_line_for_each_network(measured, tmp_path, pages):
    figures = pages(plot)
    plot_attacks(measured, tmp_path / "a.png")
    titles = ["worst case, Linf, n = 100", "worst case, L2, n = 100"]
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == titles
    for axes, lines in zip(figures[0].axes, ((40, 60), (50, 70)), strict=True):
        assert [line.get_ydata()[1] for line in axes.lines] == list(lines)
        assert [text.get_text() for text in axes.get_legend().texts] == ["CapsNet", "a CNN"]
    for axes, norm in zip(figures[0].axes, ("(Linf)", "(L2)"), strict=True):
        assert norm in axes.get_xlabel()


def test_networks_differ_in_colour_dashes_and_markers(measured, tmp_path, pages):
    figures = pages(plot)
    plot_attacks(measured, tmp_path / "a.png")
    one, two = figures[0].axes[0].lines
    assert one.get_color() != two.get_color()
    assert one.get_linestyle() != two.get_linestyle()
    assert one.get_marker() != two.get_marker()


def test_the_bands_are_the_intervals(measured, tmp_path, pages):
    figures = pages(plot)
    plot_attacks(measured, tmp_path / "a.png")
    box = figures[0].axes[0].collections[0].get_paths()[0].get_extents()
    assert box.ymax == pytest.approx(100 * wilson(99, 100)[1])
    assert box.ymin == pytest.approx(100 * wilson(0, 100)[0])


def test_the_caption_says_that_it_is_the_worst_case_and_what_a_check_has_flagged(measured, tmp_path, pages):
    figures = pages(plot)
    plot_attacks(measured, tmp_path / "a.png")
    caption = figures[0].get_supxlabel().replace("\n", " ")
    assert "An image counts as right only if every attack on it has failed" in caption
    assert "with 10, 20, 50 steps; 2 random starts; transfer attacks from the other networks;" in caption
    assert "CapsNet, Linf: converged after 10 steps of PGD; passed all 3 checks" in caption
    assert (
        "a CNN, Linf: not converged after 50 steps of PGD; "
        "FLAGGED by 1 of 3 checks: more steps (ε = 0.1): the accuracy may be too high"
    ) in caption


def test_for_a_network_alone_no_transfer_attack_is_mentioned(measured, tmp_path, pages):
    figures = pages(plot)
    plot_attacks(Attacks(measured.curves[:1], SETTINGS), tmp_path / "a.png")
    assert len(figures[0].axes) == 1
    assert "other networks" not in figures[0].get_supxlabel()


def test_what_each_further_attack_left_is_plotted_where_it_made_the_largest_difference(measured, tmp_path, pages):
    figures = pages(plot)
    plot_attacks(measured, tmp_path / "a.png")
    steps, others = figures[1].axes
    assert [list(line.get_ydata()) for line in steps.lines] == [[40, 40, 40], [90, 90, 60]]
    assert [list(line.get_xdata()) for line in steps.lines] == [["10", "20", "50"]] * 2
    assert [list(line.get_xdata()) for line in others.lines] == [["1 (PGD-50)", "2", "Square"]] * 2
    assert "11 of 12 passed" in words(figures[1])
    assert "a CNN, Linf, more steps: FLAGGED (n = 100, ε = 0.1; PGD-10: 90 %, PGD-20: 90 %, PGD-50: 60 %)" in words(
        figures[1]
    )
    assert "CapsNet, L2, least distance: passed" in words(figures[1])


def test_dollars_in_a_name_are_no_formula(tmp_path, pages):
    figures = pages(plot)
    plot_attacks(Attacks((worst("$a$", "Linf", (9, 8)),), SETTINGS), tmp_path / "a.png")
    assert r"\$a\$" in words(figures[1])
    assert r"\$a\$" in figures[0].get_supxlabel()
    assert figures[0].axes[0].get_legend().texts[0].get_text() == r"\$a\$"


def test_the_numbers_next_to_the_figure_have_everything(measured, tmp_path):
    path, _ = plot_attacks(measured, tmp_path / "a.png")
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert numbers["settings"] == SETTINGS | {"steps": [10, 20, 50]}
    first, flagged = numbers["curves"][0], numbers["curves"][2]
    assert (first["n"], first["attacks"]) == (100, "worst case, image by image")
    assert (first["epsilons"], first["right"]) == ([0.0, 0.1, 0.3], [99, 40, 0])
    assert first["intervals"] == [list(wilson(right, 100)) for right in (99, 40, 0)]
    assert first["balls"][0]["after"] == {"PGD-10": 40, "PGD-20": 40, "PGD-50": 40, "2 starts": 40, "Square": 40}
    assert (first["balls"][0]["converged_after_steps"], first["balls"][0]["converged"]) == (10, True)
    assert flagged["balls"][0]["accuracy_by_steps"] == {"10": 0.9, "20": 0.9, "50": 0.6}
    assert (flagged["balls"][0]["converged_after_steps"], flagged["balls"][0]["converged"]) == (50, False)
    assert flagged["checks"][0]["passed"] is False
    assert "not converged after 50 steps" in flagged["verdict"]
    assert "more steps" in numbers["rules"]
