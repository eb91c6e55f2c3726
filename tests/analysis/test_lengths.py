"""The figure of winning lengths shows the scores, and calibration follows its definition."""

import json

import pytest
import torch

from capsnet.analysis import lengths
from capsnet.analysis.lengths import calibration, plot_lengths
from capsnet.errors import InputError

from .conftest import CLASSES

SCORES = torch.tensor([[0.91, 0.1, 0.2], [0.3, 0.92, 0.1], [0.2, 0.61, 0.3], [0.95, 0.3, 0.1], [0.4, 0.1, 0.37]])
LABELS = torch.tensor([0, 1, 1, 0, 1])  # the last prediction is wrong; no owl


def panels_of(pages, tmp_path, scores=SCORES, labels=LABELS, classes=CLASSES, **options):
    plotted = pages(lengths)
    path = plot_lengths(scores, labels, classes, tmp_path / "a.png", **options)
    return plotted[0].axes, json.loads(path.with_suffix(".json").read_text())


def test_a_perfectly_calibrated_network_has_no_calibration_error():
    winning = torch.arange(1, 10).div(10).repeat_interleave(100)
    right = torch.cat([torch.arange(100) < 10 * k for k in range(1, 10)])
    bins, error = calibration(winning, right)
    assert error == pytest.approx(0, abs=1e-6)
    assert [each.n for each in bins if each.n] == [100] * 9


def test_an_overconfident_network_has_its_overconfidence_as_calibration_error():
    winning = torch.tensor([0.95] * 80 + [0.55] * 20)
    right = torch.arange(100) % 2 == 0
    assert calibration(winning, right)[1] == pytest.approx(0.8 * 0.45 + 0.2 * 0.05)


def test_over_and_underconfidence_do_not_cancel_in_different_bins():
    winning, right = torch.tensor([0.9, 0.1]), torch.tensor([False, True])
    assert calibration(winning, right)[1] == pytest.approx(0.9)


def test_every_prediction_is_in_one_bin_and_a_score_of_one_in_the_last():
    winning = torch.tensor([0.0, 0.05, 0.25, 0.5, 1.0])
    bins, _ = calibration(winning, torch.ones(5, dtype=torch.bool), bins=4)
    assert [each.n for each in bins] == [2, 1, 1, 1]
    assert (bins[-1].low, bins[-1].high, bins[-1].mean) == (0.75, 1, 1)


def test_accuracy_by_class_is_plotted_in_percent_but_not_of_a_class_without_images(pages, tmp_path):
    (axes, _, _), numbers = panels_of(pages, tmp_path)
    [points] = [line for line in axes.lines if line.get_marker() == "o"]
    places, accuracy = points.get_data()
    assert (list(places), list(accuracy)) == ([0, 1], pytest.approx([100, 200 / 3]))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(CLASSES)
    assert [each["accuracy"] for each in numbers["classes"]] == [1, pytest.approx(2 / 3), None]


def test_right_and_wrong_predictions_are_counted_by_their_winning_length(pages, tmp_path):
    (_, axes, _), _ = panels_of(pages, tmp_path)
    right, wrong = (patch.get_data() for patch in axes.patches)
    assert [round(40 * edge) for edge, count in zip(right.edges[:-1], right.values, strict=True) if count] == [
        24,
        36,
        38,
    ]
    assert (sum(right.values), sum(wrong.values)) == (4, 1)
    assert list(wrong.values).index(1) == 16  # 0.4
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["right (n = 4)", "wrong (n = 1)"]


def test_accuracy_is_plotted_against_the_mean_length_of_each_bin_with_its_n(pages, tmp_path):
    (_, _, axes), numbers = panels_of(pages, tmp_path)
    [points] = [line for line in axes.lines if line.get_marker() == "s"]
    places, accuracy = points.get_data()
    assert (list(places), list(accuracy)) == (pytest.approx([0.4, 0.61, 0.915, 0.95]), [0, 1, 1, 1])
    assert [text.get_text() for text in axes.texts] == ["1", "1", "2", "1", "n"]
    error = (0.4 + 0.39 + 2 * 0.085 + 0.05) / 5
    assert numbers["calibration_error"] == pytest.approx(error)
    assert axes.get_title(loc="left") == f"Calibration error (ECE) {100 * error:.1f} %, 15 bins of equal width"


def test_the_numbers_say_how_many_predictions_they_are_of(pages, tmp_path):
    _, numbers = panels_of(pages, tmp_path)
    assert (numbers["n"], numbers["right"], numbers["scores"]) == (5, 4, "length")
    assert sum(each["n"] for each in numbers["bins"]) == sum(each["n"] for each in numbers["classes"]) == 5


def test_lengths_are_said_not_to_be_probabilities_and_probabilities_are_named(pages, tmp_path):
    figures = pages(lengths)
    for kind, words in (("length", "does not train them to be probabilities"), ("probability", "softmax")):
        plot_lengths(SCORES, LABELS, CLASSES, tmp_path / "a.png", kind=kind)
        assert words in figures[-1].get_supxlabel()
        assert figures[-1].axes[1].get_xlabel() == f"winning {kind}"


def test_the_same_scores_make_the_same_bytes(tmp_path):
    one, two = (plot_lengths(SCORES, LABELS, CLASSES, tmp_path / name) for name in ("one.png", "two.png"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("added", "words"), [(0, "100.00 % right"), (1, "0.00 % right")])
def test_all_right_or_all_wrong_can_be_plotted(pages, tmp_path, added, words):
    plotted = pages(lengths)
    plot_lengths(SCORES, (SCORES.argmax(dim=-1) + added) % 3, CLASSES, tmp_path / "a.png")
    plotted[0].draw_without_rendering()
    assert plotted[0].get_suptitle() == f"Predictions for n = 5 images: {words}"


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (SCORES[:0], LABELS[:0], "there are no predictions to plot"),
        (
            SCORES[:, :2],
            LABELS,
            r"5 labels and 3 class names need scores of \[5, 3\] \(images, classes\), not \[5, 2\]",
        ),
        (SCORES / 0, LABELS, r"in \[0, 1\], not inf to inf"),
        (SCORES * torch.nan, LABELS, r"in \[0, 1\], not nan to nan"),
        (SCORES - 1, LABELS, r"in \[0, 1\], not -0.9 to -0.05: apply softmax to logits"),
    ],
)
def test_what_cannot_be_plotted_is_refused(tmp_path, scores, labels, words):
    with pytest.raises(InputError, match=words):
        plot_lengths(scores, labels, CLASSES, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
