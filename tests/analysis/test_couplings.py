"""The figure of the couplings shows the routing of an image, by iteration."""

import json
from math import log2

import pytest
import torch

from capsnet.analysis import couplings as module
from capsnet.analysis.couplings import entropy, maps, plot_couplings, shares, trace_routing
from capsnet.errors import InputError
from capsnet.models import CapsNet

from .conftest import CLASSES

SMALL = {"conv_channels": 4, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3}


def make(**options):
    """A network whose capsules agree so much that couplings are not uniform."""
    network = CapsNet((1, 8, 8), 3, **SMALL, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
    return network


@pytest.fixture
def plot(images, tmp_path, pages):
    """A network's figure and its numbers."""
    plotted = pages(module)

    def plot(network, **options):
        path = plot_couplings(network, images, CLASSES, tmp_path / "a.png", **options)
        return plotted[-1], json.loads(path.with_suffix(".json").read_text())

    return plot


def words(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


@pytest.mark.parametrize("options", [{}, {"gradient": "last"}, {"prior": True, "bias": True}, {"shared": True}])
def test_each_child_shares_out_1_and_the_last_parents_are_the_networks_capsules(images, options):
    network, pixels = make(**options), images.images[:1] / 255
    routing = trace_routing(network, pixels)
    assert routing.couplings.shape == (3, 2 * 2 * 2, 3)
    torch.testing.assert_close(routing.couplings.sum(dim=-1), torch.ones(3, 8))
    torch.testing.assert_close(routing.parents[-1], network.encode(pixels)[0].detach())
    torch.testing.assert_close(routing.lengths, network(pixels).lengths[0].detach())


def test_with_a_none_of_the_above_logit_a_child_shares_out_less_than_1(images):
    routing = trace_routing(make(none_of_the_above=True), images.images[:1] / 255)
    assert (routing.couplings.sum(dim=-1) < 0.99).all()


def test_the_first_iterations_entropy_is_that_of_uniform_shares_and_the_last_ones_is_less(plot):
    _, numbers = plot(make())
    assert numbers["entropy"][0] == pytest.approx(log2(3), abs=1e-5)
    assert numbers["entropy"][2] < numbers["entropy"][1] < log2(3) - 1e-3
    assert numbers["greatest_entropy"] == log2(3)


def test_the_none_of_the_above_logit_is_one_more_parent(plot):
    _, numbers = plot(make(none_of_the_above=True))
    assert numbers["entropy"][0] == pytest.approx(2, abs=1e-5)
    assert numbers["greatest_entropy"] == 2
    assert numbers["uniform_share"] == 0.25
    assert sum(numbers["shares"][0]) == pytest.approx(0.75)


def test_the_entropy_of_a_child_that_gives_all_to_one_parent_is_0():
    couplings = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.25]])
    assert entropy(couplings[:2], none_of_the_above=False).tolist() == [0, 1]
    assert entropy(couplings, none_of_the_above=True).tolist() == [0, 1, 1.5]


def test_a_map_has_the_mean_over_the_types_at_each_place():
    couplings = torch.rand(3, 2 * 4 * 5, 6)  # two types on a grid of 4 rows and 5 columns
    mean = (couplings[1, 2 * 5 + 3, 4] + couplings[1, 20 + 2 * 5 + 3, 4]) / 2
    torch.testing.assert_close(maps(couplings, (4, 5))[1, 4, 2, 3], mean)


def test_children_count_by_their_lengths_in_the_share_of_their_type():
    couplings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]])
    lengths = torch.tensor([0.9, 0.1, 0.2, 0.5, 0.0, 0.0])
    torch.testing.assert_close(shares(couplings, lengths, 3), torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.0, 0.0]]))


def test_each_iteration_is_a_row_and_each_class_a_column_with_its_length(plot, images):
    network = make()
    figure, numbers = plot(network, image=5)
    lengths = network(images.images[5:6] / 255).lengths[0].tolist()
    assert (numbers["n"], numbers["image"], numbers["label"]) == (12, 5, 2)
    assert numbers["lengths"] == pytest.approx(lengths)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"iteration {k}" for k in (1, 2, 3)]
    titles = [label.get_text() for label in axes.get_xticklabels()]
    assert titles == [f"{name}\n{length:.2f}" for name, length in zip(CLASSES, lengths, strict=True)]
    assert {round(frame.get_x() + 0.46) for frame in axes.patches} == {numbers["prediction"]}
    assert "image 5 of n = 12" in axes.get_title(loc="left")


def test_a_cell_lies_in_the_middle_of_what_its_capsules_see(images):
    network = make()  # fields of 5x5 pixels, 2 apart: their middles are pixels 2 and 4 of 8
    colours = torch.zeros(1, 1, 2, 2, 4)
    colours[0, 0, 1, 0] = 1
    dark = module._overlaid(network, torch.zeros(1, 8, 8), colours)[0, 0, 0]
    light = (dark == dark.max()).nonzero()  # half pixels
    assert light.min(dim=0).values.tolist() == [7, 3]  # from the middle of pixel 3, and of pixel 1
    assert light.max(dim=0).values.tolist() == [10, 6]


def test_the_scale_is_white_at_a_uniform_share(plot):
    _, numbers = plot(make())
    colours = module._colours(torch.tensor(numbers["couplings_by_place"]), numbers["uniform_share"])
    assert min(colours.to_rgba(1 / 3)[:3]) > 0.95
    most = max(abs(share - 1 / 3) for share in torch.tensor(numbers["couplings_by_place"]).flatten().tolist())
    assert colours.get_clim() == pytest.approx((1 / 3 - most, 1 / 3 + most))


def test_the_bars_are_what_the_types_give_to_the_prediction(plot):
    figure, numbers = plot(make())
    bars = next(axes for axes in figure.axes if axes.get_xlabel() == "capsule type").patches
    given = [of[numbers["prediction"]] for of in numbers["last_shares_by_type"]]
    assert [bar.get_height() for bar in bars] == given
    assert len(given) == 2


def test_with_one_iteration_the_figure_says_that_nothing_is_routed(plot):
    figure, numbers = plot(make(iterations=1))
    assert "With one iteration nothing is routed: the couplings are uniform." in words(figure)
    assert len(numbers["entropy"]) == 1
    figure, _ = plot(make(iterations=1, prior=True))
    assert "nothing is routed: the couplings are those of the learned prior." in words(figure)


def test_with_many_classes_those_of_the_longest_capsules_are_shown(images, tmp_path, pages):
    plotted = pages(module)
    network = CapsNet((1, 8, 8), 25, **SMALL)
    names = tuple(f"class {k}" for k in range(25))
    path = plot_couplings(network, images, names, tmp_path / "a.png")
    lengths = json.loads(path.with_suffix(".json").read_text())["lengths"]
    shown = [label.get_text().split("\n")[0] for label in plotted[0].axes[0].get_xticklabels()]
    assert shown == [name for name, length in zip(names, lengths, strict=True) if length >= sorted(lengths)[5]]
    assert "the 20 classes of 25 with the longest capsules" in words(plotted[0])


def test_the_same_network_and_image_make_the_same_bytes(network, images, tmp_path):
    one, two = (plot_couplings(network, images, CLASSES, tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("image", [-1, 12])
def test_a_place_that_is_not_in_the_set_is_refused(network, images, tmp_path, image):
    with pytest.raises(InputError, match=f"there is no image {image} in a set of 12: indices start at 0"):
        plot_couplings(network, images, CLASSES, tmp_path / "a.png", image=image)
