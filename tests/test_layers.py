"""A capsule is what Figure 1 says: neighbouring channels at one place. Decoders return images of the right shape."""

import pytest
import torch
from einops import repeat
from torch import nn

from capsnet.errors import InputError
from capsnet.layers import ConvDecoder, DenseDecoder, PrimaryCaps, RoutedCaps
from capsnet.ops.reference import dynamic_routing, vote
from capsnet.ops.squash import squash

TYPES, DIM = 3, 8


def identity_caps(kernel_size=1, stride=1, **options):
    """Primary capsules whose convolution takes each channel as it is, at the corner of its kernel."""
    caps = PrimaryCaps(TYPES * DIM, TYPES, DIM, kernel_size, stride, **options)
    nn.init.zeros_(caps.conv.bias)
    nn.init.zeros_(caps.conv.weight)
    caps.conv.weight.data[:, :, 0, 0] = torch.eye(TYPES * DIM)
    return caps


@pytest.mark.parametrize(("type_", "dim", "y", "x"), [(0, 0, 0, 0), (1, 2, 0, 1), (2, 7, 3, 2), (0, 5, 2, 4)])
def test_a_bright_pixel_changes_one_dimension_of_the_capsule_of_its_type_and_place(type_, dim, y, x):
    features = torch.zeros(1, TYPES * DIM, 4, 5)
    features[0, type_ * DIM + dim, y, x] = 1
    children = identity_caps()(features)
    assert children.shape == (1, TYPES * 4 * 5, DIM)
    assert children.nonzero().tolist() == [[0, type_ * 4 * 5 + y * 5 + x, dim]]


def test_a_capsule_is_eight_channels_at_one_place_squashed():
    features = torch.randn(2, TYPES * DIM, 4, 5)
    children = identity_caps()(features).view(2, TYPES, 4, 5, DIM)
    for type_, y, x in [(0, 0, 0), (1, 3, 2), (2, 0, 4)]:
        vector = features[:, type_ * DIM : (type_ + 1) * DIM, y, x]
        torch.testing.assert_close(children[:, type_, y, x], squash(vector))


def test_the_stride_and_the_kernel_set_the_places():
    features = torch.randn(2, TYPES * DIM, 9, 8)
    children = identity_caps(kernel_size=3, stride=2)(features)  # a 4x3 grid
    assert children.shape == (2, TYPES * 4 * 3, DIM)
    torch.testing.assert_close(children[:, 1 * 12 + 2 * 3 + 1], squash(features[:, 8:16, 4, 2]))


def test_the_scale_multiplies_the_sums_before_the_squash():
    features = torch.randn(2, TYPES * DIM, 4, 5)
    torch.testing.assert_close(identity_caps(scale=1 / 32)(features), identity_caps()(features / 32))


@pytest.mark.parametrize("options", [{}, {"none_of_the_above": True}, {"gradient": "last"}, {"iterations": 1}], ids=str)
def test_routed_capsules_are_routed_votes(options):
    caps, children = RoutedCaps(12, 3, 4, 5, prior=True, bias=True, **options), torch.randn(2, 12, 4)
    for parameter in caps.parameters():
        nn.init.normal_(parameter)
    parents = dynamic_routing(vote(children, caps.weight), prior=caps.prior, bias=caps.bias, **options)
    torch.testing.assert_close(caps(children), parents)


def test_matrices_start_small_enough_for_the_capsules_to_learn():
    weight = RoutedCaps(1152, 10, 8, 16).weight
    assert abs(weight.mean()) < 1e-3
    assert 0.099 < weight.std() < 0.101


def test_prior_and_bias_start_at_zero_and_are_there_only_when_asked_for():
    assert set(RoutedCaps(12, 3, 4, 5).state_dict()) == {"weight"}
    caps = RoutedCaps(12, 3, 4, 5, prior=True, bias=True)
    assert torch.equal(caps.prior, torch.zeros(12, 3))
    assert torch.equal(caps.bias, torch.zeros(3, 5))


def test_shared_matrices_are_those_of_each_type_repeated_over_its_places():
    children = torch.randn(2, 12, 4)
    shared, unshared = RoutedCaps(12, 3, 4, 5, places=6), RoutedCaps(12, 3, 4, 5)
    assert shared.weight.shape == (2, 3, 4, 5)
    unshared.weight.data = repeat(shared.weight.data, "types j d e -> (types places) j d e", places=6)
    assert torch.equal(shared(children), unshared(children))


@pytest.mark.parametrize("places", [5, 24, 0, -1])
def test_children_that_are_not_a_multiple_of_the_places_are_refused(places):
    with pytest.raises(InputError, match=f"children must be a multiple of places, and 12 is none of {places}"):
        RoutedCaps(12, 3, 4, 5, places=places)


@pytest.mark.parametrize("gradient", ["all", "last"])
def test_the_gradients_of_the_trace_are_those_of_forward(gradient):
    caps, children = RoutedCaps(12, 3, 4, 5, gradient=gradient), torch.randn(2, 12, 4)
    nn.init.normal_(caps.weight)
    *_, (_, parents) = caps.trace(children)
    expected = torch.autograd.grad(caps(children).sum(), caps.weight)
    torch.testing.assert_close(torch.autograd.grad(parents.sum(), caps.weight), expected)


@pytest.mark.parametrize("decoder", [DenseDecoder, ConvDecoder])
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (1, 1, 1), (2, 17, 30), (4, 9, 7)], ids=str)
def test_a_reconstruction_has_the_images_shape_and_lies_between_0_and_1(decoder, image_shape):
    reconstruction = decoder(10, 16, image_shape)(torch.randn(2, 10, 16))
    assert reconstruction.shape == (2, *image_shape)
    assert reconstruction.min() >= 0
    assert reconstruction.max() <= 1


@pytest.mark.parametrize("decoder", [DenseDecoder, ConvDecoder])
def test_a_reconstruction_depends_on_every_dimension_of_every_capsule(decoder):
    capsules = torch.randn(1, 3, 4, requires_grad=True)
    decoder(3, 4, (1, 9, 7))(capsules).sum().backward()
    assert (capsules.grad != 0).all()
