"""Affine changes of images are exact, and the accuracies and figures are those of the changed images."""

import json

import pytest
import torch

from capsnet.analysis import affine
from capsnet.analysis.accuracy import share, wilson
from capsnet.analysis.affine import (
    changed,
    changed_at_random,
    measure_affine,
    plot_affine,
    plot_reconstructions,
    transformed,
)
from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.models import CapsNet
from tests.analysis.conftest import CLASSES

CHANGES = ("rotation", "shift_right", "scale", "shear")
SHAPES = [(2, 1, 28, 28), (3, 3, 7, 7), (2, 1, 8, 8), (2, 2, 27, 33)]


@pytest.fixture
def networks():
    sizes = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}
    return {"capsules": CapsNet((1, 8, 8), 3, **sizes), "plain": ConvBaseline((1, 8, 8), 3, "small")}


def with_zeros(shape):
    """Images of which a fifth is black, so that a trace of a neighbour in a black pixel shows."""
    pixels = torch.rand(shape)
    return pixels * (pixels > 0.2)


def dot(h=15, w=21, row=7, column=10):
    """A black image with one white pixel, by default in its middle."""
    pixels = torch.zeros(1, 1, h, w)
    pixels[0, 0, row, column] = 1
    return pixels


def place(pixels):
    """Row and column of an image's centre of mass."""
    rows, columns = pixels[0, 0].sum(dim=1), pixels[0, 0].sum(dim=0)
    return [float((mass * torch.arange(len(mass))).sum() / mass.sum()) for mass in (rows, columns)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_change_leaves_every_bit(shape, dtype):
    pixels = with_zeros(shape).to(dtype)
    assert torch.equal(transformed(pixels), pixels)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shift_of_whole_pixels_is_that_shift_filled_with_zeros(shape):
    pixels = with_zeros(shape)
    moved = torch.zeros_like(pixels)
    moved[:, :, 2:, :-1] = pixels[:, :, :-2, 1:]
    assert torch.equal(transformed(pixels, shift_down=2, shift_right=-1), moved)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns_of_a_square_are_rot90_anticlockwise(shape, turns):
    pixels = with_zeros(shape)
    assert torch.equal(transformed(pixels, rotation=90 * turns), torch.rot90(pixels, turns, (2, 3)))


def test_a_pixel_is_turned_about_the_middle_by_the_angle():
    turned = place(transformed(dot(column=16), rotation=30))  # from 6 pixels to the right of the middle
    assert turned == pytest.approx([7 - 6 * 0.5, 10 + 6 * 3**0.5 / 2], abs=0.1)


def test_a_scale_moves_a_pixel_away_from_the_middle_by_its_factor():
    assert place(transformed(dot(row=9, column=14), scale=1.5)) == pytest.approx([7 + 3, 10 + 6], abs=0.1)


def test_a_shear_leans_to_the_right():
    for row in (3, 11):
        leaned = place(transformed(dot(row=row), shear=45))
        assert leaned == pytest.approx([row, 10 + (7 - row)], abs=0.1)


def test_half_a_pixel_is_shared_by_two():
    assert transformed(dot(), shift_right=0.5)[0, 0, 7, 9:13].tolist() == [0, 0.5, 0.5, 0]


def test_changes_are_made_in_the_order_scale_shear_rotation_shift():
    # From 2 above the middle, scaled to 4, leant to 4 right of it, turned to 4 left and 4 above, and then shifted.
    moved = place(transformed(dot(row=5), scale=2, shear=45, rotation=90, shift_right=2))
    assert moved == pytest.approx([7 - 4, 10 - 4 + 2], abs=0.1)


def test_each_image_may_have_its_own_amounts():
    pixels, turns = with_zeros((3, 1, 9, 9)), torch.tensor([0.0, 90.0, 37.0])
    alone = [transformed(image[None], rotation=float(turn)) for image, turn in zip(pixels, turns, strict=True)]
    assert torch.equal(transformed(pixels, rotation=turns), torch.cat(alone))


def test_no_pixel_leaves_the_range():
    for change in ({"rotation": 13.0}, {"scale": 1.37}, {"shear": -21.0}, {"shift_right": 0.3, "shift_down": 0.7}):
        white = transformed(torch.ones(1, 1, 28, 28), **change)
        assert white.min() >= 0
        assert white.max() <= 1
        assert white[0, 0, 14, 14] == pytest.approx(1)


@pytest.mark.parametrize(("change", "words"), [({"scale": 0}, "not 0 and 0"), ({"shear": -90}, "not 1 and 90")])
def test_what_no_image_can_undergo_is_refused(change, words):
    with pytest.raises(InputError, match=f"a scale is above 0 and a shear within 90 degrees, {words}"):
        transformed(torch.rand(1, 1, 8, 8), **change)


def test_a_changed_set_is_bytes_with_the_same_labels(images):
    same, turned = changed(images), changed(images, rotation=90)
    assert torch.equal(same.images, images.images)
    assert torch.equal(turned.images, torch.rot90(images.images, 1, (2, 3)))
    assert torch.equal(turned.labels, images.labels)


def test_random_changes_are_drawn_by_seed_for_each_image():
    same = ImageSet(torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8).expand(6, 1, 8, 8), torch.zeros(6).long())
    one, again, other = (changed_at_random(same, seed).images for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 6


def test_random_shifts_are_whole_and_within_their_bounds():
    dots = ImageSet((255 * dot(9, 9, 4, 4)).byte().expand(200, 1, 9, 9), torch.zeros(200).long())
    moved = changed_at_random(dots, 0, rotation=0, shift=1).images
    assert torch.equal(moved.flatten(1).sum(dim=1), torch.full((200,), 255))
    assert torch.equal(moved.sum(dim=(0, 1)) > 0, torch.nn.functional.pad(torch.ones(3, 3), (3, 3, 3, 3)) > 0)


def accuracy(correct, n):
    """What is written of a network with so many correct predictions."""
    low, high = wilson(correct, n)
    return {"n": n, "correct": correct, "accuracy": correct / n, "low": low, "high": high}


def test_without_change_the_accuracy_is_that_of_an_evaluation(networks, images):
    numbers = measure_affine(networks, images)
    assert list(numbers) == ["n", "seed", *CHANGES, "random"]
    assert numbers["n"] == 12
    for name, network in networks.items():
        measured = accuracy(12 - evaluate(network, images).errors, 12)
        for change in CHANGES:
            (unchanged,) = (point for point in numbers[change][name] if point["amount"] == (change == "scale"))
            assert unchanged == {"amount": unchanged["amount"]} | measured


def test_under_a_change_the_accuracy_is_that_on_the_changed_images(networks, images):
    numbers = measure_affine(networks, images, seed=3)
    for name, network in networks.items():
        for change in CHANGES:
            for point in numbers[change][name]:
                moved = changed(images, **{change: point["amount"]})
                assert point["correct"] == 12 - evaluate(network, moved).errors
        moved = changed_at_random(images, 3)
        assert numbers["random"]["networks"][name] == accuracy(12 - evaluate(network, moved).errors, 12)


def test_as_many_images_as_asked_for_are_drawn_by_seed(networks, images):
    labelled = ImageSet(torch.zeros_like(images.images), images.labels)  # one prediction for all: the labels differ
    one, again, *others = (measure_affine(networks, labelled, count=5, seed=seed) for seed in (0, 0, 1, 2, 3))
    assert one == again
    assert one["n"] == 5
    assert any(one["random"] != other["random"] for other in others)


@pytest.mark.parametrize("change", [{"count": 0}, {"images": 0}])
def test_no_images_are_refused(networks, images, change):
    seen = images.select(torch.arange(change.get("images", 12)))
    with pytest.raises(InputError, match="affine changes are measured on at least one image, not 0"):
        measure_affine(networks, seen, count=change.get("count", 5))


def test_no_networks_are_refused(images):
    with pytest.raises(InputError, match="there is no network to measure: give at least one, by name"):
        measure_affine({}, images)


def test_a_network_for_other_images_is_refused_by_name(networks):
    larger = ImageSet(torch.zeros(2, 1, 9, 9, dtype=torch.uint8), torch.zeros(2).long())
    with pytest.raises(InputError, match=r"capsules takes images \(c, h, w\) of \(1, 8, 8\), not \(1, 9, 9\)"):
        measure_affine(networks, larger)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0, 0.27753), (10, 10, 0.72247, 1), (81, 263, 0.25529, 0.36621), (1, 2, 0.09453, 0.90547)],
)
def test_wilson_s_interval_is_the_published_one(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_has_no_interval(right, n):
    with pytest.raises(InputError, match=f"not {right} of {n}"):
        wilson(right, n)


def test_a_share_of_no_images_is_unknown():
    assert share(0, 0) == {"n": 0, "right": 0, "accuracy": None, "low": None, "high": None}


NUMBERS = {"n": 20, "seed": 7}
NUMBERS |= {
    change: {
        name: [{"amount": amount, **accuracy(correct, 20)} for amount, correct in zip((-1, 0, 1), counts, strict=True)]
        for name, counts in {"capsules": (10, 20, k), "plain": (8, 19, k + 1)}.items()
    }
    for k, change in enumerate(CHANGES)
}
NUMBERS["random"] = {
    "rotation": 30.0,
    "shift": 2,
    "networks": {"capsules": accuracy(15, 20), "plain": accuracy(20, 20)},
}


def test_every_network_has_its_curve_in_every_panel(pages, tmp_path):
    figures = pages(affine)
    plot_affine(NUMBERS, tmp_path / "a.png")
    for k, axes in enumerate(figures[0].axes):
        curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
        assert curves == {"capsules": [50, 100, 5 * k], "plain": [40, 95, 5 * (k + 1)]}
    assert [axes.get_xlabel().split()[0] for axes in figures[0].axes] == ["rotation", "shift", "scale,", "shear"]


def test_networks_differ_in_colour_dashes_and_marker(pages, tmp_path):
    figures = pages(affine)
    plot_affine(NUMBERS, tmp_path / "a.png")
    one, two = figures[0].axes[0].lines
    assert one.get_color() != two.get_color()
    assert one.get_linestyle() != two.get_linestyle()
    assert one.get_marker() != two.get_marker()


def test_the_legend_has_the_accuracy_after_random_changes_with_its_interval(pages, tmp_path):
    figures = pages(affine)
    plot_affine(NUMBERS, tmp_path / "a.png")
    [legend] = figures[0].legends
    assert "rotated by up to ±30° and shifted by up to ±2 pixels" in legend.get_title().get_text()
    low, high = wilson(15, 20)
    assert legend.get_texts()[0].get_text() == f"capsules: 75.0 % ({100 * low:.1f} to {100 * high:.1f})"


def test_the_numbers_next_to_the_curves_are_those_measured(pages, tmp_path):
    pages(affine)
    numbers = json.loads(plot_affine(NUMBERS, tmp_path / "a.png").with_suffix(".json").read_text())
    assert (numbers["n"], numbers["seed"]) == (20, 7)
    low, high = wilson(8, 20)
    measured = {"n": 20, "correct": 8, "accuracy": 0.4, "low": low, "high": high}
    assert numbers["shear"]["plain"][0] == {"amount": -1} | measured
    assert (numbers["random"]["rotation"], numbers["random"]["shift"]) == (30, 2)
    assert numbers["random"]["networks"]["plain"]["accuracy"] == 1


def test_the_same_result_makes_the_same_bytes(tmp_path):
    one, two = (plot_affine(NUMBERS, tmp_path / name) for name in ("one.png", "two.png"))
    assert one.read_bytes() == two.read_bytes()


def test_changed_images_have_the_prediction_and_length_of_the_network_itself(network, images, pages, tmp_path):
    figures = pages(affine)
    path = plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", count=2)
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert (numbers["n"], numbers["labels"]) == (2, [0, 1])
    turned = (255 * transformed(images.images[:2] / 255, rotation=30)).round() / 255
    column = numbers["changes"].index("rotated 30° to the left")
    with torch.no_grad():
        lengths, predictions = network(turned).lengths.max(dim=-1)
    for row, axes in enumerate(figures[0].axes):
        assert numbers["predictions"][row][column] == predictions[row]
        assert numbers["lengths"][row][column] == pytest.approx(float(lengths[row]), abs=1e-5)
        mark = "✗ " if predictions[row] != row else ""
        assert axes.texts[column].get_text() == f"{mark}{CLASSES[predictions[row]]}\n{lengths[row]:.2f}"


def test_every_error_under_a_change_has_a_frame(network, images, pages, tmp_path):
    figures = pages(affine)
    path = plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", count=3)
    numbers = json.loads(path.with_suffix(".json").read_text())
    for axes, label, predictions in zip(figures[0].axes, numbers["labels"], numbers["predictions"], strict=True):
        assert len(axes.patches) == sum(prediction != label for prediction in predictions)
    assert 0 < sum(len(axes.patches) for axes in figures[0].axes) < 3 * len(numbers["changes"])


def test_the_label_takes_no_part_in_predictions_and_reconstructions(network, images, tmp_path, pages):
    figures = pages(affine)
    for labels in (images.labels, (images.labels + 1) % 3):
        plot_reconstructions(network, ImageSet(images.images, labels), CLASSES, tmp_path / "a.png", count=1)
    one, two = (torch.as_tensor(figure.axes[0].images[0].get_array()) for figure in figures)
    assert torch.equal(one, two)


def test_the_same_seed_makes_the_same_bytes(network, images, tmp_path):
    one, two = (
        plot_reconstructions(network, images, CLASSES, tmp_path / name, count=1) for name in ("one.png", "two.png")
    )
    assert one.read_bytes() == two.read_bytes()


def test_a_network_without_decoder_has_no_reconstructions(images, tmp_path):
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3, decoder="none")
    with pytest.raises(InputError, match=r"no decoder, .* train one with --decoder dense"):
        plot_reconstructions(network, images, CLASSES, tmp_path / "a.png")


@pytest.mark.parametrize(("n", "count"), [(0, 4), (12, 0)])
def test_a_figure_of_no_images_is_refused(network, images, tmp_path, n, count):
    with pytest.raises(InputError, match="a figure has at least one image, not 0"):
        plot_reconstructions(network, images.select(torch.arange(n)), CLASSES, tmp_path / "a.png", count=count)
