"""The networks have the paper's sizes, take any image, and every option does what it says."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from capsnet.baselines import ConvBaseline
from capsnet.errors import InputError
from capsnet.models import CapsNet

SMALL = {"conv_channels": 8, "conv_kernel": 3, "primary_types": 2, "primary_kernel": 3, "capsule_dim": 6}


def small(image_shape=(1, 12, 12), classes=3, **options):
    """A network that is quick to make and to run: 2 types of capsules on a 4x4 grid."""
    torch.manual_seed(0)
    return CapsNet(image_shape, classes, **SMALL | options)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def shapes(network):
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 8_215_568),
        ({"bias": True}, 8_215_728),
        ({"image_shape": (1, 36, 36), "bias": True}, 11_361_968),
        ({"decoder": "none"}, 6_804_224),
    ],
    ids=str,
)
def test_a_capsnet_has_as_many_parameters_as_the_papers(options, count):
    with torch.device("meta"):
        assert parameters(CapsNet(**options)) == count


def test_each_part_has_as_many_parameters_as_the_papers():
    with torch.device("meta"):
        parts = {name: parameters(part) for name, part in CapsNet().named_children()}
    assert parts == {"conv1": 20_992, "primary_caps": 5_308_672, "digit_caps": 1_474_560, "decoder": 1_411_344}


def test_the_baseline_has_as_many_parameters_as_the_papers():
    with torch.device("meta"):
        assert parameters(ConvBaseline()) == 35_445_522


@pytest.mark.parametrize("image_shape", [(1, 12, 12), (3, 12, 17), (2, 5, 31), (4, 40, 6)], ids=str)
@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("decoder", ["dense", "conv"])
def test_a_network_takes_images_of_any_shape_and_any_number_of_classes(image_shape, classes, decoder):
    lengths, capsules, reconstruction = small(image_shape, classes, decoder=decoder)(torch.rand(2, *image_shape))
    assert lengths.shape == (2, classes)
    assert capsules.shape == (2, classes, 6)
    assert reconstruction.shape == (2, *image_shape)


@pytest.mark.parametrize("size", ["paper", "small"])
def test_a_baseline_takes_images_of_any_shape_and_any_number_of_classes(size):
    assert ConvBaseline((3, 9, 14), 7, size)(torch.rand(2, 3, 9, 14)).shape == (2, 7)


def test_the_smallest_image_is_as_large_as_both_kernels_together():
    small((1, 5, 5))(torch.rand(1, 1, 5, 5))
    with pytest.raises(InputError, match="an image of 5x4 is too small for kernels of 3 and 3, which need 5 pixels"):
        small((1, 5, 4))


def test_an_image_too_small_for_a_baselines_pooling_is_refused():
    with pytest.raises(InputError, match="an image of 3x9 is too small: the baseline pools 4x4 places"):
        ConvBaseline((1, 3, 9), size="small")


def test_a_single_class_is_refused():
    with pytest.raises(InputError, match="classes must be greater than or equal to 2, not 1"):
        small(classes=1)


@pytest.mark.parametrize("options", [{"iterations": 0}, {"gradient": "first"}], ids=str)
def test_a_routing_that_cannot_be_is_refused_when_the_network_is_made(options):
    with pytest.raises(InputError, match=r"iterations must be greater than|gradient must be"):
        small(**options)


@pytest.mark.parametrize("option", ["decoder", "initialisation"])
def test_an_unknown_name_is_refused_with_the_known_ones(option):
    with pytest.raises(InputError, match="not 'other'"):
        small(**{option: "other"})


OTHER_PARAMETERS = {
    "image_shape": ((2, 12, 14), {"conv1.weight": (8, 2, 3, 3), "digit_caps.weight": (40, 3, 8, 6)}),
    "classes": (4, {"digit_caps.weight": (32, 4, 8, 6), "decoder.layers.0.weight": (512, 24)}),
    "conv_channels": (5, {"conv1.weight": (5, 1, 3, 3), "primary_caps.conv.weight": (16, 5, 3, 3)}),
    "conv_kernel": (5, {"conv1.weight": (8, 1, 5, 5), "digit_caps.weight": (18, 3, 8, 6)}),
    "primary_types": (3, {"primary_caps.conv.weight": (24, 8, 3, 3), "digit_caps.weight": (48, 3, 8, 6)}),
    "primary_dim": (5, {"primary_caps.conv.weight": (10, 8, 3, 3), "digit_caps.weight": (32, 3, 5, 6)}),
    "primary_kernel": (5, {"primary_caps.conv.weight": (16, 8, 5, 5), "digit_caps.weight": (18, 3, 8, 6)}),
    "primary_stride": (3, {"digit_caps.weight": (18, 3, 8, 6)}),
    "capsule_dim": (7, {"digit_caps.weight": (32, 3, 8, 7), "decoder.layers.0.weight": (512, 21)}),
    "prior": (True, {"digit_caps.prior": (32, 3)}),
    "bias": (True, {"digit_caps.bias": (3, 6)}),
    "shared": (True, {"digit_caps.weight": (2, 3, 8, 6)}),
    "decoder": ("conv", {"decoder.layers.1.weight": (128, 64, 4, 4)}),
}


@pytest.mark.parametrize("option", OTHER_PARAMETERS)
def test_an_option_of_size_changes_the_parameters_that_it_names(option):
    value, expected = OTHER_PARAMETERS[option]
    before, after = shapes(small()), shapes(small(**{option: value}))
    assert all(before.get(name) != shape for name, shape in expected.items())
    assert expected.items() <= after.items()
    assert small(**{option: value})(torch.rand(2, *small(**{option: value}).image_shape)).lengths.isfinite().all()


OTHER_MATHEMATICS = {"iterations": 1, "primary_scale": 1 / 32, "none_of_the_above": True, "negative_slope": 0.2}


@pytest.mark.parametrize("option", OTHER_MATHEMATICS)
def test_an_option_of_mathematics_changes_the_capsules_of_the_same_parameters(option):
    images, plain, other = torch.rand(2, 1, 12, 12), small(), small(**{option: OTHER_MATHEMATICS[option]})
    nn.init.normal_(plain.digit_caps.weight)  # so that the parents are long enough to change the couplings
    other.load_state_dict(plain.state_dict())
    assert (plain.encode(images) - other.encode(images)).abs().max() > 0.01


def test_the_gradient_option_changes_the_gradients_and_nothing_else():
    images, all_iterations, last_iteration = torch.rand(2, 1, 12, 12), small(), small(gradient="last")
    capsules = [network.encode(images) for network in (all_iterations, last_iteration)]
    assert torch.equal(*capsules)
    for parents in capsules:
        parents.square().sum().backward()
    assert not torch.allclose(all_iterations.digit_caps.weight.grad, last_iteration.digit_caps.weight.grad)


@pytest.mark.parametrize("option", ["prior", "bias"])
def test_a_learned_prior_or_bias_is_the_paper_until_it_is_trained(option):
    images, plain, other = torch.rand(2, 1, 12, 12), small(), small(**{option: True})
    other.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(other.encode(images), plain.encode(images))
    nn.init.normal_(getattr(other.digit_caps, option))
    assert not torch.allclose(other.encode(images), plain.encode(images))


def test_the_slope_is_that_of_conv1_below_zero():
    images, network = torch.rand(2, 1, 12, 12), small(negative_slope=0.2)
    x = network.conv1(images)
    assert (x < 0).any()
    children = network.primary_caps(torch.where(x < 0, 0.2 * x, x))
    torch.testing.assert_close(network.encode(images), network.digit_caps(children))


def test_the_official_initialisation_is_that_of_the_authors_code():
    network = CapsNet((1, 28, 28), conv_channels=64, bias=True, prior=True, initialisation="official")
    spread = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))  # of N(0, 1) within ±2
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0.1).all(), name
        elif name.endswith("prior"):
            assert (parameter == 0).all(), name
        else:
            sigma = 0.05 if name == "conv1.weight" else 0.1
            assert parameter.abs().max() <= 2 * sigma, name
            assert parameter.std().item() == pytest.approx(sigma * spread, rel=0.03), name


def test_no_option_is_untested():
    tested = {*OTHER_PARAMETERS, *OTHER_MATHEMATICS, "gradient", "initialisation"}
    assert set(inspect.signature(CapsNet).parameters) == tested


def test_a_network_without_a_decoder_classifies_and_refuses_to_reconstruct():
    network = small(decoder="none")
    lengths, capsules, reconstruction = network(torch.rand(2, 1, 12, 12))
    assert lengths.shape == (2, 3)
    assert reconstruction is None
    with pytest.raises(InputError, match="this network has no decoder, so it cannot reconstruct"):
        network.decode(capsules, torch.tensor([0, 1]))


def test_lengths_are_those_of_the_capsules_and_below_1():
    lengths, capsules, _ = small()(torch.rand(4, 1, 12, 12))
    torch.testing.assert_close(lengths, capsules.square().sum(dim=-1).sqrt())
    assert (lengths < 1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_network_computes_in_the_dtype_of_its_parameters(dtype):
    lengths, capsules, reconstruction = small().to(dtype)(torch.rand(2, 1, 12, 12, dtype=dtype))
    assert lengths.dtype == capsules.dtype == reconstruction.dtype == dtype


def test_an_image_has_the_same_output_alone_as_in_a_batch():
    network, images = small().double(), torch.rand(4, 1, 12, 12, dtype=torch.float64)
    alone = [network(image) for image in images.split(1)]
    for together, parts in zip(network(images), zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(parts))


def test_the_reconstruction_depends_on_the_chosen_capsule_only():
    network, capsules, classes = small(), torch.randn(2, 3, 6), torch.tensor([0, 2])
    reconstruction = network.decode(capsules, classes)
    chosen = F.one_hot(classes, 3).bool().unsqueeze(-1)
    assert torch.equal(network.decode(capsules.masked_fill(~chosen, 7), classes), reconstruction)
    assert torch.equal(network.decoder(capsules.masked_fill(~chosen, 0)), reconstruction)
    assert not torch.allclose(network.decode(capsules.masked_fill(chosen, 7), classes), reconstruction)


def test_the_given_classes_are_reconstructed_or_else_the_longest_capsules():
    network, images = small(), torch.rand(5, 1, 12, 12)
    lengths, capsules, reconstruction = network(images)
    assert torch.equal(reconstruction, network.decode(capsules, lengths.argmax(dim=-1)))
    labels = (lengths.argmax(dim=-1) + 1) % 3
    assert torch.equal(network(images, labels).reconstruction, network.decode(capsules, labels))


@pytest.mark.parametrize(
    "network",
    [
        lambda: small(),
        lambda: small(
            (3, 14, 9), 4, prior=True, bias=True, none_of_the_above=True, negative_slope=0.1, shared=True, iterations=2
        ),
        lambda: small(decoder="conv", primary_scale=1 / 32, gradient="last", initialisation="official"),
        lambda: small(decoder="none"),
        lambda: ConvBaseline((3, 9, 14), 7, "small"),
    ],
    ids=["plain", "a long image and routing options", "decoder options", "no decoder", "baseline"],
)
def test_a_saved_network_comes_back_bit_for_bit(network, tmp_path):
    saved = network().eval()
    saved.save_pretrained(tmp_path)
    loaded = type(saved).from_pretrained(tmp_path).eval()
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    assert loaded.image_shape == saved.image_shape
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())
    images = torch.rand(2, *saved.image_shape)
    for before, after in zip(saved(images), loaded(images), strict=True):
        assert (before is None and after is None) or torch.equal(before, after)


def test_a_state_dict_reads_like_figure_1():
    parts = [name.split(".")[0] for name in small(prior=True, bias=True).state_dict()]
    assert list(dict.fromkeys(parts)) == ["conv1", "primary_caps", "digit_caps", "decoder"]


@pytest.mark.parametrize("other", [{"classes": 4}, {"image_shape": (1, 14, 12)}, {"prior": True}], ids=str)
def test_the_weights_of_another_network_are_refused(other):
    with pytest.raises(RuntimeError, match="digit_caps"):
        small().load_state_dict(small(**other).state_dict())
