"""The figure and the animation of perturbations show the reconstructions, and say what they are made from."""

import json

import pytest
import torch
from PIL import Image

from capsnet.analysis import perturbations
from capsnet.analysis.perturbations import animate_perturbations, plot_perturbations
from capsnet.analysis.perturbations.effects import EFFECTS
from capsnet.analysis.perturbations.measure import measure_perturbations
from capsnet.analysis.subject import Context
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.models import CapsNet

from ..conftest import CLASSES


def small(shape=(1, 8, 8), classes=3, **options):
    return CapsNet(shape, classes, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3, **options)


def plot(network, images, classes, path, **options):
    return plot_perturbations(measure_perturbations(network, images, **options), classes, path)


def animate(network, images, classes, path, **options):
    return animate_perturbations(measure_perturbations(network, images, **options), classes, path)


def numbers(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_the_figure_names_offsets_dimensions_changes_and_effects(network, images, tmp_path, pages):
    plotted = pages(perturbations)
    path = plot(network, images, CLASSES, tmp_path / "a.png", label=1, image=5)
    found, kept = measure_perturbations(network, images, label=1, image=5), numbers(path)
    axes, image = plotted[0].axes
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == [f"dim {k}   change {change:.1f}" for k, change in zip(found.dimensions, found.change, strict=True)]
    columns = [text.get_text() for text in axes.get_xticklabels()]
    assert columns == ["-0.25", "-0.2", "-0.15", "-0.1", "-0.05", "0", "+0.05", "+0.1", "+0.15", "+0.2", "+0.25"]
    words = [text.get_text().split("  ")[0] for text in axes.texts]
    assert words == [effect for effect in found.effects if effect]
    assert image.images
    assert "Image 5 of n = 12 images: label owl" in plotted[0].texts[0].get_text()
    assert kept["offsets"] == found.offsets
    assert (kept["n"], kept["images"], kept["image"], kept["label"], kept["capsule"]) == (1, 12, 5, "owl", "dog")
    assert [row["dimension"] for row in kept["dimensions"]] == found.dimensions
    assert all(len(sizes) == 11 for row in kept["dimensions"] for sizes in row["sizes"].values())


def test_an_effect_that_is_clear_is_named_with_its_first_and_last_length(network, images, tmp_path, pages, monkeypatch):
    monkeypatch.setattr("capsnet.analysis.perturbations.measure.clear_effect", lambda images, sizes, offsets: "slant")
    plotted = pages(perturbations)
    path = plot(network, images, CLASSES, tmp_path / "a.png", dimensions=[3])
    slant = measure_perturbations(network, images, dimensions=[3]).sizes[0, :, EFFECTS.index("slant")]
    assert [text.get_text() for text in plotted[0].axes[0].texts] == [f"slant  {slant[0]:.1f} → {slant[-1]:.1f}"]
    assert numbers(path)["dimensions"][0]["effect"] == "slant"


def test_the_frame_is_around_the_column_with_nothing_added(network, images, tmp_path, pages):
    plotted = pages(perturbations)
    plot(network, images, CLASSES, tmp_path / "a.png", extent=0.3, step=0.1)
    (frame,) = plotted[0].axes[0].patches
    assert (frame.get_x(), frame.get_width()) == (2.5, 1)


@pytest.mark.parametrize("make", [plot, animate])
def test_the_same_network_and_images_make_the_same_bytes(network, images, tmp_path, make):
    one, two = (make(network, images, CLASSES, tmp_path / name, dimensions=[0, 1]) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_animation_shows_every_offset_there_and_back_for_ever(network, images, tmp_path):
    path = animate(network, images, CLASSES, tmp_path / "a.gif", extent=0.3, step=0.1)
    with Image.open(path) as moving:
        assert moving.n_frames == 12  # seven there, and five back to the second
        assert moving.info["loop"] == 0
        frames = []
        for k in range(12):
            moving.seek(k)
            frames.append(moving.convert("L").tobytes())
    assert frames[7:] == frames[5:0:-1]
    assert len(set(frames)) == 7


def test_colour_images_that_are_not_square_are_plotted_in_colour(tmp_path):
    network = small((3, 8, 12), 2, decoder="conv")
    images = ImageSet(torch.randint(256, (2, 3, 8, 12), dtype=torch.uint8), torch.tensor([0, 1]))
    with Image.open(animate(network, images, ("a", "b"), tmp_path / "a.gif", dimensions=[0])) as moving:
        red, _, blue = moving.convert("RGB").split()
        assert red.tobytes() != blue.tobytes()
    assert plot(network, images, ("a", "b"), tmp_path / "a.png", dimensions=[0]).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 3}, "there is no class 3: this network has classes 0 to 2"),
        ({"label": -1}, "there is no class -1"),
        ({"dimensions": [2, 16]}, "there is no dimension 16: this network's capsules have 0 to 15"),
        ({"dimensions": [-1]}, "there is no dimension -1"),
        ({"dimensions": []}, "there is no dimension to perturb: choose from 0 to 15"),
        ({"image": 12}, "there is no image 12: the set has images 0 to 11"),
        ({"image": -1}, "there is no image -1"),
        ({"extent": 0.25, "step": 0.1}, "steps of 0.1 do not lead from 0 to 0.25: choose for example steps of 0.125"),
        ({"extent": 0.25, "step": 0.5}, "steps of 0.5 do not lead from 0 to 0.25: choose for example steps of 0.25"),
        ({"extent": 0.25, "step": 0.005}, "0.25 in steps of 0.005 are more than 25 each way: choose larger steps"),
        ({"extent": 1e300, "step": 1e-300}, "more than 25 each way"),
        ({"extent": 0.0}, "above 0, not 0 and 0.05"),
        ({"step": -0.05}, "above 0, not 0.25 and -0.05"),
        ({"step": float("nan")}, "above 0, not 0.25 and nan"),
        ({"extent": float("inf")}, "above 0, not inf and 0.05"),
    ],
)
@pytest.mark.parametrize("make", [plot, animate])
def test_what_there_is_not_is_refused_in_one_line(network, images, tmp_path, make, options, message):
    with pytest.raises(InputError, match=message) as refused:
        make(network, images, CLASSES, tmp_path / "a", **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "a").exists()


def test_a_class_without_images_is_refused(network, images, tmp_path):
    others = images.select((images.labels != 1).nonzero().flatten())
    with pytest.raises(InputError, match="no image of the set is of class 1: give the index of another image"):
        plot(network, others, CLASSES, tmp_path / "a.png", label=1)
    assert plot(network, others, CLASSES, tmp_path / "a.png", label=1, image=0, dimensions=[0]).exists()


def test_a_set_without_images_is_refused(network, images, tmp_path):
    with pytest.raises(InputError, match="there are no images to plot"):
        plot(network, images.select(torch.arange(0)), CLASSES, tmp_path / "a.png")


def test_a_network_without_decoder_is_refused(images, tmp_path):
    with pytest.raises(InputError, match=r"no decoder.*: train one with --decoder dense"):
        plot(small(decoder="none"), images, CLASSES, tmp_path / "a.png")


def test_names_for_other_than_the_networks_classes_are_refused(network, images, tmp_path):
    with pytest.raises(InputError, match="the network has 3 classes, but there are 2 names"):
        plot(network, images, CLASSES[:2], tmp_path / "a.png")


def test_a_class_is_perturbed_by_its_name_and_without_one_every_class_is(make_run, network, data):
    context = Context(make_run(), network, data)
    subject = perturbations.perturbations
    paths = subject(context, name="owl", dimensions=[0])
    assert [path.name for path in paths] == ["perturbations-2.png", "perturbations-2.gif"]
    names = {path.name for path in subject(context, dimensions=[0])}
    assert names == {f"perturbations-{k}.{kind}" for k in range(3) for kind in ("png", "gif")}


def test_a_class_that_the_data_do_not_have_is_refused(make_run, network, data):
    with pytest.raises(InputError, match="no class 'fox' in noise: its classes are cat, dog, owl"):
        perturbations.perturbations(Context(make_run(), network, data), name="fox")
