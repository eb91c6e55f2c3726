"""Tensors that a network or a loss cannot take are refused with the value and the remedy, and never passed through."""

from contextlib import nullcontext

import pytest
import torch
from torch.func import vmap
from torch.nn.functional import cross_entropy

from capsnet.baselines import ConvBaseline
from capsnet.build import losses
from capsnet.errors import InputError
from capsnet.losses import margin_loss
from capsnet.models import CapsNet
from capsnet.recipes import Recipe

SMALL = {"conv_channels": 8, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3, "capsule_dim": 6}
NETWORKS = {
    "capsnet": lambda: CapsNet((1, 12, 12), 3, **SMALL),
    "baseline": lambda: ConvBaseline((1, 12, 12), 3, "small"),
}
IMAGES = {
    "one image": (torch.rand(1, 12, 12), r"\(1, 12, 12\), not \[1, 12, 12\]: give one image as images.unsqueeze\(0\)"),
    "no channels": (torch.rand(2, 12, 12), r"takes images \[b, c, h, w\] of \(1, 12, 12\), not \[2, 12, 12\]"),
    "an axis too many": (torch.rand(1, 2, 1, 12, 12), r"of \(1, 12, 12\), not \[1, 2, 1, 12, 12\]"),
    "another size": (torch.rand(2, 1, 12, 13), r"of \(1, 12, 12\), not \[2, 1, 12, 13\]"),
    "a number": (torch.rand(()), r"of \(1, 12, 12\), not \[\]"),
    "bytes": (
        torch.zeros(2, 1, 12, 12, dtype=torch.uint8),
        r"images are torch.uint8: convert them to floats from 0 to 1, as images.float\(\) / 255 does",
    ),
    "whole numbers": (torch.zeros(2, 1, 12, 12, dtype=torch.int64), "images are torch.int64: convert them to floats"),
    "float64": (
        torch.rand(2, 1, 12, 12, dtype=torch.float64),
        r"images are torch.float64 and the network's weights torch.float32: give images.to\(torch.float32\)",
    ),
    "bf16": (torch.rand(2, 1, 12, 12).bfloat16(), "images are torch.bfloat16 and the network's weights torch.float32"),
    "another device": (
        torch.empty(2, 1, 12, 12, device="meta"),
        "images are on meta and the network on cpu: move both to one device",
    ),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("images", "message"), IMAGES.values(), ids=IMAGES)
def test_images_that_a_network_does_not_take_are_refused(network, images, message):
    with pytest.raises(InputError, match=message):
        network()(images)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_images_in_half_precision_are_taken(network, dtype):
    with torch.autocast("cpu", torch.bfloat16):
        network()(torch.rand(2, 1, 12, 12).to(dtype))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_autocast_casts_no_float64(network):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match=r"images are torch\.float64"):
        network()(torch.rand(2, 1, 12, 12, dtype=torch.float64))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_network_takes_an_empty_batch(network):
    output = network()(torch.rand(0, 1, 12, 12))
    assert len(output if isinstance(output, torch.Tensor) else output.lengths) == 0


LABELS = {
    "too large": (torch.tensor([0, 3]), r"{} are classes from 0 to 2, not 3"),
    "negative": (torch.tensor([-1, 2]), r"{} are classes from 0 to 2, not -1"),
    "floats": (torch.tensor([0.0, 1.0]), r"{} are torch.float32: give whole numbers, as {}.long\(\) does"),
    "bools": (torch.tensor([True, False]), r"{} are torch.bool: give whole numbers, as {}.long\(\) does"),
    "too many": (torch.tensor([0, 1, 2]), r"{} are one number per image, \[2\], not \[3\]"),
    "rows": (
        torch.tensor([[0, 1, 0], [1, 0, 0]]),
        r"{} are (one number per image, \[2\], not|whole numbers \[2\], or multi-hot .* of shape) \[2, 3\]",
    ),
    "a number": (torch.tensor(1), r"{} are one number per image, \[2\], not \[\]"),
}
USES = {
    "margin loss": ("labels", lambda labels: margin_loss(torch.rand(2, 3), labels)),
    "baseline's loss": (
        "labels",
        lambda labels: losses(lambda images: torch.rand(2, 3), torch.rand(2, 1, 2, 2), labels, Recipe(network="cnn")),
    ),
    "decode": ("classes", lambda classes: NETWORKS["capsnet"]().decode(torch.rand(2, 3, 6), classes)),
    "forward": ("classes", lambda classes: NETWORKS["capsnet"]()(torch.rand(2, 1, 12, 12), classes)),
}


@pytest.mark.parametrize(("name", "use"), USES.values(), ids=USES)
@pytest.mark.parametrize(("labels", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_are_no_classes_are_refused(name, use, labels, message):
    with pytest.raises(InputError, match=message.replace("{}", name)):
        use(labels)


@pytest.mark.parametrize(("name", "use"), [USES["margin loss"], USES["decode"], USES["forward"]])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_labels_are_whole_numbers_of_any_dtype(name, use, dtype):
    use(torch.tensor([2, 0], dtype=dtype))


def test_lengths_that_are_no_floats_for_each_image_and_class_are_refused():
    with pytest.raises(InputError, match=r"lengths are floats \[b, j\], not torch.float32 of shape \[3\]"):
        margin_loss(torch.rand(3), torch.tensor(1))
    with pytest.raises(InputError, match=r"lengths are floats \[b, j\], not torch.int64 of shape \[1, 3\]"):
        margin_loss(torch.ones(1, 3, dtype=torch.int64), torch.tensor([1]))


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_loss_of_checked_inputs_compiles_without_a_break(network, precision, compiled):
    recipe, made = Recipe(network="capsnet" if network == "capsnet" else "cnn"), NETWORKS[network]().eval()
    images, labels = torch.rand(4, 1, 12, 12), torch.tensor([0, 1, 2, 1])

    def loss(images, labels):
        return losses(made, images, labels, recipe)["loss"]

    function = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    with torch.autocast("cpu", torch.bfloat16) if precision == torch.bfloat16 else nullcontext():
        found = function(images, labels)
    expected = loss(images, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5 if precision == torch.float32 else 0.05, atol=0)


def test_a_capsnet_and_its_losses_are_mapped_over_rows_of_images():
    network = NETWORKS["capsnet"]().double()
    images, labels = torch.rand(3, 2, 1, 12, 12).double(), torch.tensor([[0, 1], [2, 2], [1, 0]])

    def loss(images, labels):
        lengths, _, reconstruction = network(images, labels)
        return margin_loss(lengths, labels) + reconstruction.sum() + network(images).reconstruction.sum()

    torch.testing.assert_close(vmap(loss)(images, labels), torch.stack([*map(loss, images, labels)]))
    torch.testing.assert_close(
        vmap(loss, (0, None))(images, labels[0]), torch.stack([loss(row, labels[0]) for row in images])
    )


def test_the_margin_loss_is_mapped_over_labels_of_the_same_lengths():
    lengths, labels = torch.rand(2, 3), torch.tensor([[0, 1], [2, 2]])
    found = vmap(margin_loss, (None, 0))(lengths, labels)
    torch.testing.assert_close(found, torch.stack([margin_loss(lengths, row) for row in labels]))


def test_a_baselines_loss_is_cross_entropy_still():
    scores, labels = torch.rand(2, 3), torch.tensor([2, 0])
    found = losses(lambda images: scores, torch.rand(2, 1, 2, 2), labels, Recipe(network="cnn"))["loss"]
    assert torch.equal(found, cross_entropy(scores, labels))
