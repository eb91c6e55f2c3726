"""The figure of a detector shows every group of images, and its numbers are those of the measurement."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from capsnet.analysis.accuracy import wilson
from capsnet.analysis.detection import plot
from capsnet.analysis.detection.detector import Detector
from capsnet.analysis.detection.measure import Detection, ImageGroup, auc
from capsnet.analysis.detection.plot import numbers, plot_detection, roc
from tests.analysis.conftest import CLASSES


def group(name, epsilon, tried, errors):
    n = len(errors)
    predictions, (images, reconstructions) = torch.arange(n) % 3, torch.rand(2, n, 1, 8, 8)
    labels = predictions if epsilon else None
    return ImageGroup(name, epsilon, tried, labels, images, predictions, reconstructions, torch.tensor(errors))


@pytest.fixture
def result():
    """A detector that flags 1 of 5 clean images, and attacks of which one never fools the network."""
    clean = replace(group("clean test images", None, 5, [1.0, 2.0, 3.0, 4.0, 9.0]), labels=torch.arange(5) % 3)
    suspects = (
        group("FGSM", 0.1, 10, [4.0, 6.0, 7.0]),
        group("PGD", 0.1, 10, []),
        group("adaptive", 0.1, 10, [2.5, 4.5]),
        group("noise", None, 6, [20.0] * 6),
        group("/data/of/somebody/and/of/nobody.npz", None, 2, [3.0, 8.0]),
    )
    return Detection(CLASSES, Detector(5.0, 95.0, 40), clean, suspects, 20, 0)


def words(axes):
    return [text.get_text() for text in axes.texts]


def curves(result, tmp_path, pages):
    figures = pages(plot)
    plot_detection(result, tmp_path / "a.png")
    return figures[0].axes


def test_the_area_below_a_curve_is_the_one_counted_by_ranks():
    clean, suspects = torch.randint(9, (50,)).float(), 2 + torch.randint(9, (20,)).float()
    false_alarms, hits = roc(clean, suspects)
    assert float(torch.trapezoid(hits, false_alarms)) == pytest.approx(auc(clean, suspects))


def test_a_curve_goes_from_nothing_flagged_to_everything_flagged():
    false_alarms, hits = roc(torch.rand(5), torch.rand(4))
    assert (false_alarms[0], hits[0]) == (0, 0)
    assert (false_alarms[-1], hits[-1]) == (1, 1)
    assert (false_alarms.diff() >= 0).all()
    assert (hits.diff() >= 0).all()


def test_every_group_that_fooled_has_a_curve_with_its_area_and_n(result, tmp_path, pages):
    legend = curves(result, tmp_path, pages)[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == [
        "FGSM, ε = 0.1: AUC 0.767, n = 3",
        "adaptive, ε = 0.1: AUC 0.600, n = 2",
        "noise: AUC 1.000, n = 6",
        "nobody.npz: AUC 0.650, n = 2",
    ]


def test_curves_differ_in_more_than_colour(result, tmp_path, pages):
    stronger = [replace(group, epsilon=0.3) for group in result.suspects[:3]]
    axes = curves(replace(result, suspects=(*result.suspects, *stronger)), tmp_path, pages)[0]
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines if not line.get_label().startswith("_")]
    assert len(looks) == len(set(looks)) == 6


def test_the_caption_says_how_many_steps_the_attacks_took(result, tmp_path, pages):
    figures = pages(plot)
    plot_detection(replace(result, steps=77), tmp_path / "a.png")
    caption = figures[0].texts[0].get_text().replace("\n", " ")
    assert "take 77 steps from one random start" in caption


def test_a_dot_on_each_curve_is_the_threshold(result, tmp_path, pages):
    dots = [line.get_xydata()[0] for line in curves(result, tmp_path, pages)[0].lines if line.get_marker() == "o"]
    assert [tuple(dot) for dot in dots] == [pytest.approx(at) for at in [(0.2, 2 / 3), (0.2, 0), (0.2, 1), (0.2, 0.5)]]


def test_every_group_has_a_row_of_errors_and_the_shares_next_to_it(result, tmp_path, pages):
    axes = curves(result, tmp_path, pages)[1]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[:3] == ["clean test images\nn = 5", "FGSM, ε = 0.1\nfooled 3 of 10", "PGD, ε = 0.1\nfooled 0 of 10"]
    assert words(axes)[0] == "20.0 % [4, 62]"
    assert words(axes)[1] == "66.7 % [21, 94]\n1 of 10 undetected"
    assert words(axes)[2] == "fooled none"


def test_examples_show_label_prediction_and_error_and_only_flagged_ones_are_framed(result, tmp_path, pages):
    clean, fgsm, *_ = curves(result, tmp_path, pages)[2:]
    assert words(clean) == ["cat → cat\n1.0", "dog → dog\n2.0", "owl → owl\n3.0", "cat → cat\n4.0"]
    assert words(fgsm) == ["cat → cat\n4.0", "dog → dog\n6.0, flagged", "owl → owl\n7.0, flagged"]
    assert (len(clean.patches), len(fgsm.patches)) == (0, 4)


def test_an_attack_that_never_fooled_has_no_examples(result, tmp_path, pages):
    titles = [axes.get_title(loc="left") for axes in curves(result, tmp_path, pages)[2:]]
    assert titles == ["clean test images", "FGSM, ε = 0.1", "adaptive, ε = 0.1", "noise", "nobody.npz"]


def test_the_numbers_are_kept_next_to_the_figure(result, tmp_path, pages):
    pages(plot)
    path = plot_detection(result, tmp_path / "detection.png")
    kept = json.loads(path.with_suffix(".json").read_text())
    assert kept == json.loads(json.dumps(numbers(result)))
    assert (kept["threshold"], kept["percentile"], kept["validation_n"]) == (5.0, 95.0, 40)
    assert (kept["clean"]["n"], kept["clean"]["flagged"]) == (5, 1)
    fgsm, pgd, *_ = kept["suspects"]
    assert (fgsm["epsilon"], fgsm["tried"], fgsm["n"], fgsm["flagged"], fgsm["undetected"]) == (0.1, 10, 3, 2, 1)
    assert fgsm["flagged_interval"] == list(wilson(2, 3))
    assert fgsm["undetected_of_tried_interval"] == list(wilson(1, 10))
    assert fgsm["errors"] == [4.0, 6.0, 7.0]
    assert (pgd["n"], pgd["flagged_interval"], pgd["auc"]) == (0, None, None)


def test_the_same_result_makes_the_same_bytes_with_names_and_images_of_any_shape(result, tmp_path):
    long = replace(result, classes=tuple(f"a class with the long name {k}" for k in range(3)))
    colour = [
        replace(each, images=pixels, reconstructions=1 - pixels)
        for each in (result.clean, *result.suspects)
        for pixels in [torch.rand(len(each.errors), 3, 6, 10)]
    ]
    long = replace(long, clean=colour[0], suspects=tuple(colour[1:]))
    one, two = (plot_detection(long, tmp_path / name) for name in ("one.png", "two.png"))
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as shown:
        assert shown.width > 2000
