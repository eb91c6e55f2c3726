"""The mask matrix shows the reconstruction from every capsule alone."""

import json

import pytest
import torch

from capsnet.analysis import masks
from capsnet.analysis.masks import first_of_each, plot_masks, reconstruct_each
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.models import CapsNet

from .conftest import CLASSES
from .test_style import grey


@pytest.fixture
def drawn(network, images, tmp_path, pages):
    """A matrix of an image of each class: its axes and its numbers."""
    figures = pages(masks)
    path = plot_masks(network, images, CLASSES, tmp_path / "a.png", per_class=1)
    return figures[0].axes[0], json.loads(path.with_suffix(".json").read_text())


def test_the_reconstruction_of_the_predicted_class_is_the_networks_own(network, images):
    with torch.no_grad():
        output = network(images.images / 255)
        lengths, made = reconstruct_each(network, images.images / 255)
    torch.testing.assert_close(lengths, output.lengths)
    torch.testing.assert_close(made[range(12), output.lengths.argmax(dim=-1)], output.reconstruction)


def test_every_other_reconstruction_is_a_decode_of_that_capsule_alone(network, images):
    with torch.no_grad():
        capsules = network.encode(images.images / 255)
        _, made = reconstruct_each(network, images.images / 255)
        for k in range(3):
            alone = torch.zeros_like(capsules)
            alone[:, k] = capsules[:, k]
            torch.testing.assert_close(made[:, k], network.decoder(alone))
    assert (made[:, 0] - made[:, 1]).abs().max() > 0.1


def test_images_are_above_and_the_rows_below_are_the_classes(drawn, network, images):
    axes, _ = drawn
    _, made = reconstruct_each(network, images.images[:3] / 255)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["image", *CLASSES]
    for k in range(3):
        torch.testing.assert_close(grey(axes, 0, k), images.images[k, 0] / 255)
        for j in range(3):
            torch.testing.assert_close(grey(axes, 1 + j, k), made[k, j, 0], atol=1 / 255, rtol=0)


def test_the_true_class_is_framed_and_the_predicted_one_where_it_is_another(network, images, tmp_path, pages):
    figures = pages(masks)
    with torch.no_grad():
        predictions = network(images.images / 255).lengths.argmax(dim=-1)
    pair = [int((predictions == images.labels).nonzero()[0]), int((predictions != images.labels).nonzero()[0])]
    plot_masks(network, images.select(torch.tensor(pair)), CLASSES, tmp_path / "a.png")
    axes = figures[0].axes[0]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    columns = [next(k for k, tick in enumerate(ticks) if tick.startswith("✗") == wrong) for wrong in (False, True)]
    framed = {(round(p.get_y() + 0.46), round(p.get_x() + 0.46), p.get_linestyle()) for p in axes.patches}
    labels = images.labels[pair].tolist()
    assert framed == {
        (1 + labels[0], columns[0], "-"),
        (1 + labels[1], columns[1], "-"),
        (1 + int(predictions[pair[1]]), columns[1], "--"),
    }


def test_the_numbers_are_those_of_every_cell(drawn, network, images):
    _, numbers = drawn
    lengths, made = reconstruct_each(network, images.images[:3] / 255)
    assert numbers["n"] == 12
    for k, column in enumerate(numbers["shown"]):
        assert (column["place"], column["label"], column["prediction"]) == (k, k, int(lengths[k].argmax()))
        assert column["lengths"] == pytest.approx(lengths[k].tolist())
        errors = (made[k] - images.images[k] / 255).square().flatten(1).sum(dim=-1)
        assert column["squared_errors"] == pytest.approx(errors.tolist())


def test_the_lengths_are_written_in_the_cells(drawn):
    axes, numbers = drawn
    written = [text.get_text() for text in axes.texts[:9]]
    assert written == [f"{length:.2f}" for column in numbers["shown"] for length in column["lengths"]]


def test_the_first_images_of_each_class_are_taken_class_by_class():
    labels = torch.tensor([2, 0, 2, 2, 0, 5])
    assert first_of_each(labels, 2).tolist() == [1, 4, 0, 2, 5]


def test_there_are_no_more_than_twenty_columns_and_the_title_says_which(tmp_path, pages):
    network = CapsNet((1, 8, 8), 30, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3)
    images = ImageSet(torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8), torch.arange(60) % 30)
    figures = pages(masks)
    plot_masks(network, images, tuple(f"class {k}" for k in range(30)), tmp_path / "a.png", per_class=2)
    axes = figures[0].axes[0]
    assert len(axes.get_xticks()) == 20
    assert len(axes.get_yticks()) == 31
    assert "first 2 images of each of the first 10 of 30 classes" in axes.get_title(loc="left").replace("\n", " ")


def test_the_same_network_and_images_make_the_same_bytes(network, images, tmp_path):
    one, two = (plot_masks(network, images, CLASSES, tmp_path / name, per_class=1) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("per_class", [0, 21])
def test_a_matrix_without_room_for_a_class_is_refused(network, images, tmp_path, per_class):
    with pytest.raises(InputError, match=f"has 1 to 20 images of a class, not {per_class}"):
        plot_masks(network, images, CLASSES, tmp_path / "a.png", per_class=per_class)


def test_a_set_without_images_is_refused(network, images, tmp_path):
    with pytest.raises(InputError, match="there are no images to plot"):
        plot_masks(network, images.select(torch.arange(0)), CLASSES, tmp_path / "a.png")


def test_a_network_without_decoder_is_refused(images, tmp_path):
    network = CapsNet((1, 8, 8), 3, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3, decoder="none")
    with pytest.raises(InputError, match=r"no decoder.*: train one with --decoder dense"):
        plot_masks(network, images, CLASSES, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
