"""The curves under affine changes are the numbers measured, and the images so changed stand over their drawings."""

import json

import pytest
import torch

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.figures import affine, changed
from capsnet.figures.affine import draw_affine
from capsnet.figures.changed import draw_changed
from capsnet.models import CapsNet
from capsnet.robustness.affine import AffineResult, Curve, transformed
from capsnet.robustness.intervals import wilson

from .conftest import CLASSES

CURVES = tuple(
    Curve(change, (-1, 0, 1), {"capsules": (10, 20, k), "plain": (8, 19, k + 1)})
    for k, change in enumerate(("rotation", "right", "scale", "shear"))
)
RESULT = AffineResult(20, 7, CURVES, 30.0, 2, {"capsules": 15, "plain": 20})


def test_every_network_has_its_curve_in_every_panel(pages, tmp_path):
    drawn = pages(affine)
    draw_affine(RESULT, tmp_path / "a.png")
    for k, axes in enumerate(drawn[0].axes):
        curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
        assert curves == {"capsules": [50, 100, 5 * k], "plain": [40, 95, 5 * (k + 1)]}
    assert [axes.get_xlabel().split()[0] for axes in drawn[0].axes] == ["rotation", "shift", "scale,", "shear"]


def test_networks_differ_in_colour_dashes_and_marker(pages, tmp_path):
    drawn = pages(affine)
    draw_affine(RESULT, tmp_path / "a.png")
    one, two = drawn[0].axes[0].lines
    assert one.get_color() != two.get_color()
    assert one.get_linestyle() != two.get_linestyle()
    assert one.get_marker() != two.get_marker()


def test_the_legend_tells_the_accuracy_after_random_changes_with_its_interval(pages, tmp_path):
    drawn = pages(affine)
    draw_affine(RESULT, tmp_path / "a.png")
    [legend] = drawn[0].legends
    assert "rotated by up to ±30° and shifted by up to ±2 pixels" in legend.get_title().get_text()
    low, high = wilson(15, 20)
    assert legend.get_texts()[0].get_text() == f"capsules: 75.0 % ({100 * low:.1f} to {100 * high:.1f})"


def test_the_numbers_beside_the_curves_are_those_measured(pages, tmp_path):
    pages(affine)
    numbers = json.loads(draw_affine(RESULT, tmp_path / "a.png").with_suffix(".json").read_text())
    assert (numbers["n"], numbers["seed"]) == (20, 7)
    low, high = wilson(8, 20)
    share = {"n": 20, "right": 8, "accuracy": 0.4, "low": low, "high": high}
    assert numbers["shear"]["plain"][0] == {"amount": -1} | share
    assert (numbers["random"]["rotation"], numbers["random"]["shift"]) == (30, 2)
    assert numbers["random"]["networks"]["plain"]["accuracy"] == 1


def test_the_same_result_makes_the_same_bytes(tmp_path):
    one, two = (draw_affine(RESULT, tmp_path / name) for name in ("one.png", "two.png"))
    assert one.read_bytes() == two.read_bytes()


def test_changed_images_have_the_prediction_and_length_of_the_network_itself(network, images, pages, tmp_path):
    drawn = pages(changed)
    path = draw_changed(network, images, CLASSES, tmp_path / "a.png", count=2)
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert (numbers["n"], numbers["labels"]) == (2, [0, 1])
    turned = (255 * transformed(images.images[:2] / 255, rotation=30)).round() / 255
    column = numbers["changes"].index("turned 30° to the left")
    with torch.no_grad():
        lengths, predictions = network(turned).lengths.max(dim=-1)
    for row, axes in enumerate(drawn[0].axes):
        assert numbers["predictions"][row][column] == predictions[row]
        assert numbers["lengths"][row][column] == pytest.approx(float(lengths[row]), abs=1e-5)
        mark = "✗ " if predictions[row] != row else ""
        assert axes.texts[column].get_text() == f"{mark}{CLASSES[predictions[row]]}\n{lengths[row]:.2f}"


def test_every_error_under_a_change_has_a_frame(network, images, pages, tmp_path):
    drawn = pages(changed)
    path = draw_changed(network, images, CLASSES, tmp_path / "a.png", count=3)
    numbers = json.loads(path.with_suffix(".json").read_text())
    for axes, label, predictions in zip(drawn[0].axes, numbers["labels"], numbers["predictions"], strict=True):
        assert len(axes.patches) == sum(prediction != label for prediction in predictions)
    assert 0 < sum(len(axes.patches) for axes in drawn[0].axes) < 3 * len(numbers["changes"])


def test_the_label_takes_no_part_in_answers_and_drawings(network, images, tmp_path, pages):
    drawn = pages(changed)
    for labels in (images.labels, (images.labels + 1) % 3):
        draw_changed(network, ImageSet(images.images, labels), CLASSES, tmp_path / "a.png", count=1)
    one, two = (torch.as_tensor(figure.axes[0].images[0].get_array()) for figure in drawn)
    assert torch.equal(one, two)


def test_the_same_seed_draws_the_same_bytes(network, images, tmp_path):
    one, two = (draw_changed(network, images, CLASSES, tmp_path / name, count=1) for name in ("one.png", "two.png"))
    assert one.read_bytes() == two.read_bytes()


def test_a_network_without_decoder_has_nothing_to_draw(images, tmp_path):
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3, decoder="none")
    with pytest.raises(InputError, match="no decoder, so it cannot reconstruct: train one with --decoder dense"):
        draw_changed(network, images, CLASSES, tmp_path / "a.png")


@pytest.mark.parametrize(("n", "count"), [(0, 4), (12, 0)])
def test_a_picture_of_no_images_is_refused(network, images, tmp_path, n, count):
    with pytest.raises(InputError, match="a picture has at least one image, not 0"):
        draw_changed(network, images.select(torch.arange(n)), CLASSES, tmp_path / "a.png", count=count)
