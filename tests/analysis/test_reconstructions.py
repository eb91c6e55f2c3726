"""The figure of reconstructions shows what the network made from its own predictions."""

import json

import pytest
import torch
from PIL import Image

from capsnet.analysis import reconstructions
from capsnet.analysis.reconstructions import plot_reconstructions
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.models import CapsNet

from .conftest import CLASSES
from .test_style import grey, tile


def predict(network, images):
    """Predicted classes, capsules and their lengths, by the network itself."""
    with torch.no_grad():
        lengths, capsules, _ = network(images.images / 255)
    return lengths.argmax(dim=-1), capsules, lengths


def titles(figure):
    """The titles of the images, in order."""
    return [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]


def words(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def frames(figure):
    """How many images are framed."""
    return sum(len(axes.patches) for axes in figure.axes)


def numbers(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_the_same_network_and_images_make_the_same_bytes(network, images, tmp_path):
    one, two = (plot_reconstructions(network, images, CLASSES, tmp_path / name, count=3) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_first_images_are_shown_in_order(network, images, tmp_path, pages):
    drawn = pages(reconstructions)
    plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", count=4, columns=3)
    first, second = drawn[0].axes
    shown = [grey(first, 0, 0), grey(first, 0, 1), grey(first, 0, 2), grey(second, 0, 0)]
    torch.testing.assert_close(torch.stack(shown), images.images[:4, 0] / 255)


def test_the_reconstruction_is_masked_by_the_prediction_and_never_by_the_label(network, images, tmp_path, pages):
    predictions, capsules, _ = predict(network, images)
    of_predictions, of_labels = (network.decode(capsules, k)[:, 0].detach() for k in (predictions, images.labels))
    drawn = pages(reconstructions)
    plot_reconstructions(network, images, CLASSES, tmp_path / "a.png")
    shown = torch.stack([grey(axes, 1, k) for axes, n in zip(drawn[0].axes, (10, 2), strict=True) for k in range(n)])
    torch.testing.assert_close(shown, of_predictions, atol=1 / 255, rtol=0)
    assert (shown - of_labels).abs().max() > 0.1
    assert "reconstructed from the capsule of the predicted class" in words(drawn[0])


def test_a_title_tells_label_prediction_and_length_and_an_error_is_marked(network, images, tmp_path, pages):
    predictions, _, lengths = predict(network, images)
    drawn = pages(reconstructions)
    plot_reconstructions(network, images, ("0", "1", "2"), tmp_path / "a.png")
    assert frames(drawn[0]) == 2 * int((predictions != images.labels).sum())
    for title, label, prediction, length in zip(titles(drawn[0]), images.labels, predictions, lengths, strict=True):
        mark = "" if label == prediction else "✗ "
        assert title == f"{mark}{label} → {prediction}  {length.max():.2f}"


def test_only_errors_are_shown_when_only_errors_are_asked_for(network, images, tmp_path, pages):
    wrong = int((predict(network, images)[0] != images.labels).sum())
    assert 0 < wrong < 12
    drawn = pages(reconstructions)
    plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", predictions=predict(network, images)[0])
    assert len(titles(drawn[0])) == wrong
    assert all(title.startswith("✗") for title in titles(drawn[0]))
    assert f"All {wrong} misclassified of n = 12 images" in words(drawn[0])


def test_an_error_has_the_reconstructions_from_the_prediction_and_from_the_label(network, images, tmp_path, pages):
    predictions, capsules, _ = predict(network, images)
    k = int((predictions != images.labels).nonzero()[0])
    drawn = pages(reconstructions)
    plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", predictions=predict(network, images)[0], count=1)
    axes = drawn[0].axes[0]
    torch.testing.assert_close(grey(axes, 0, 0), images.images[k, 0] / 255)
    for row, classes in ((1, predictions), (2, images.labels)):
        made = network.decode(capsules, classes)[k, 0].detach()
        torch.testing.assert_close(grey(axes, row, 0), made, atol=1 / 255, rtol=0)
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["image", "from the\npredicted class", "from the\ntrue class"]
    assert "that of the predicted class and that of the true class" in words(drawn[0])


@pytest.mark.parametrize("errors_only", [False, True])
def test_the_numbers_are_those_of_the_reconstructions(network, images, tmp_path, pages, errors_only):
    predictions, capsules, lengths = predict(network, images)
    pages(reconstructions)
    options = {"predictions": predictions} if errors_only else {}
    path = plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", **options)
    kept = numbers(path)
    assert kept["n"] == 12
    wrong = (predictions != images.labels).nonzero().flatten().tolist()
    assert [one["place"] for one in kept["shown"]] == (wrong if errors_only else list(range(12)))
    for one in kept["shown"]:
        k, label = one["place"], int(images.labels[one["place"]])
        assert (one["label"], one["prediction"]) == (label, int(predictions[k]))
        assert one["length"] == pytest.approx(float(lengths[k].max()))
        assert one["length_of_label"] == pytest.approx(float(lengths[k, label]))
        made = network.decode(capsules, predictions)[k].detach()
        assert one["squared_error"] == pytest.approx(float((made - images.images[k] / 255).square().sum()))
        assert ("squared_error_of_label" in one) == errors_only


def test_no_more_errors_are_shown_than_asked_for(network, images, tmp_path, pages):
    drawn = pages(reconstructions)
    plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", predictions=predict(network, images)[0], count=2)
    assert len(titles(drawn[0])) == 2
    assert "The first 2 misclassified of n = 12 images" in words(drawn[0])


def test_without_errors_the_figure_says_so(network, images, tmp_path, pages):
    right = ImageSet(images.images, predict(network, images)[0])
    drawn = pages(reconstructions)
    plot_reconstructions(network, right, CLASSES, tmp_path / "a.png", predictions=predict(network, images)[0])
    assert words(drawn[0]) == "no errors in n = 12 images"
    assert numbers(tmp_path / "a.png") == {"n": 12, "errors_only": True, "shown": []}


@pytest.mark.parametrize(("count", "columns", "width", "height"), [(12, 10, 2000, 1000), (2, 1, 1200, 1000)])
def test_the_figure_has_room_for_its_bands(network, images, tmp_path, count, columns, width, height):
    with Image.open(
        plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", count=count, columns=columns)
    ) as shown:
        assert width < shown.width < 1.4 * width
        assert height < shown.height < 1.4 * height


def test_colour_images_are_shown_in_colour(tmp_path, pages):
    network = CapsNet((3, 8, 10), 2, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3)
    images = ImageSet(torch.randint(256, (2, 3, 8, 10), dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    drawn = pages(reconstructions)
    plot_reconstructions(network, images, ("a", "b"), tmp_path / "a.png")
    assert torch.equal(tile(drawn[0].axes[0], 0, 0, 8, 10), images.images[0].permute(1, 2, 0) / 255)


def test_a_network_in_training_stays_so(network, images, tmp_path):
    network.train()
    plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", count=1, predictions=predict(network, images)[0])
    assert network.training


def test_a_network_without_decoder_is_refused(images, tmp_path):
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3, decoder="none")
    with pytest.raises(InputError, match=r"no decoder.*: train one with --decoder dense"):
        plot_reconstructions(network, images, CLASSES, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_set_without_images_is_refused(network, images, tmp_path):
    with pytest.raises(InputError, match="there are no images to plot"):
        plot_reconstructions(network, images.select(torch.arange(0)), CLASSES, tmp_path / "a.png")


@pytest.mark.parametrize(("count", "columns"), [(0, 10), (20, 0)])
def test_a_figure_without_place_for_an_image_is_refused(network, images, tmp_path, count, columns):
    with pytest.raises(InputError, match=f"at least one image and one column, not {count} and {columns}"):
        plot_reconstructions(network, images, CLASSES, tmp_path / "a.png", count=count, columns=columns)
