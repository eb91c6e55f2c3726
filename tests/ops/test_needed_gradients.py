"""A gradient that is not needed is not computed, and the others have the same bits without it."""

from itertools import combinations, product

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from capsnet.models import CapsNet
from capsnet.ops import autograd, streaming
from capsnet.ops.convolution import fourier_conv2d
from capsnet.ops.routing import route
from tests.ops.helpers import LargestTensor, arguments, by, reference

SHAPE = (5, 7, 3, 5, 8)
INPUTS = ("children", "weight", "prior", "bias")
SUBSETS = [names for count in range(1, 5) for names in combinations(INPUTS, count)]


def gradients_for(names, function, tensors, **options):
    """The gradients for the tensors of these names, with the others frozen."""
    leaves = {name: t.detach().requires_grad_(name in names) for name, t in tensors.items()}
    result = function(**leaves, **options)
    weights = torch.arange(1, result.numel() + 1, device=result.device).sin().reshape(result.shape)
    return torch.autograd.grad(result, [leaves[name] for name in names], weights.to(result.dtype))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_the_needed_gradients_of_routing_have_the_bits_that_they_have_among_all(names, gradient, backend):
    tensors = arguments(SHAPE, "prior", "bias", backend=backend)
    found = gradients_for(names, route, tensors, gradient=gradient)
    together = dict(zip(INPUTS, by(route, tensors, gradient=gradient)[1:], strict=True))
    for name, ours, expected in zip(
        names, found, gradients_for(names, reference, tensors, gradient=gradient), strict=True
    ):
        assert torch.equal(ours, together[name]), name
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("names", [("children",), ("weight",), ("bias",), ("weight", "bias")], ids="+".join)
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_needed_gradients_without_a_prior_have_the_bits_that_they_have_among_all(names, iterations, backend):
    tensors = arguments(SHAPE, "bias", backend=backend)
    together = dict(zip(tensors, by(route, tensors, iterations=iterations)[1:], strict=True))
    for name, ours in zip(names, gradients_for(names, route, tensors, iterations=iterations), strict=True):
        assert torch.equal(ours, together[name]), name


def test_backward_makes_nothing_of_the_size_of_a_frozen_weight(backend, monkeypatch):
    monkeypatch.setattr(streaming, "CACHE", 1 << 10)
    tensors = arguments((8, 64, 16, 8, 8), "prior", backend=backend)
    weight = tensors["weight"]
    parents = route(**{name: t.requires_grad_(t is not weight) for name, t in tensors.items()})
    with LargestTensor(weight) as largest:
        parents.sum().backward()
    assert largest.nbytes < weight.nbytes


def flops(names, tensors):
    """The FLOP of the matrix products in a backward pass that computes these gradients."""
    parents = route(**{name: t.detach().requires_grad_(name in names) for name, t in tensors.items()})
    with FlopCounterMode(display=False) as counter:
        parents.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backend", ["streaming"], indirect=True)
def test_the_matrix_products_of_frozen_tensors_are_skipped(backend):
    b, i, j, d, e = SHAPE
    tensors = arguments(SHAPE, "prior", "bias", backend=backend)
    product_ = 2 * b * i * j * d * e  # FLOP of one product of the votes' size
    assert flops(INPUTS, tensors) - flops(("children", "prior", "bias"), tensors) == 6 * product_  # 2 of each iteration
    assert flops(("bias",), tensors) == 2 * 3 * product_  # through the agreements of the last two iterations alone


@pytest.mark.parametrize("needs", list(product([False, True], repeat=4)), ids=str)
def test_the_backward_operation_passes_torchs_opcheck(needs, backend):
    children, weight, prior, bias = arguments(SHAPE, "prior", "bias", backend=backend).values()
    parents, sums = autograd.route_op(children, weight, prior, bias, 3, False, True)
    args = children, weight, prior, sums, torch.randn_like(parents), False, True, list(needs)
    torch.library.opcheck(autograd.route_backward_op, args)
    assert [bool(t.numel()) for t in autograd.route_backward_op(*args)] == list(needs)


@pytest.mark.parametrize("names", [("children",), ("weight",), ("prior", "bias")], ids="+".join)
def test_compiled_code_computes_the_needed_gradients_alone(names, backend):
    backward = []

    def compile_forward(graph, _):
        return make_boxed_func(graph)

    def compile_backward(graph, _):
        backward.extend(node.args for node in graph.graph.nodes if "route_backward" in str(node.target))
        return make_boxed_func(graph)

    def doubled(**tensors):
        return route(**tensors) * 2

    tensors = arguments(SHAPE, "prior", "bias", backend=backend)
    backend = aot_autograd(fw_compiler=compile_forward, bw_compiler=compile_backward)
    compiled = torch.compile(doubled, fullgraph=True, backend=backend)
    found = gradients_for(names, compiled, tensors)
    assert [args[-1] for args in backward] == [[name in names for name in INPUTS]]
    for ours, expected in zip(found, gradients_for(names, doubled, tensors), strict=True):
        torch.testing.assert_close(ours, expected)


class Watched(TorchDispatchMode):
    """Counts the matrix products, and records which gradients each convolution's backward computes."""

    def __init__(self):
        super().__init__()
        self.products, self.convolutions = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func is torch.ops.aten.bmm.default
        if func is torch.ops.aten.convolution_backward.default:
            self.convolutions.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("needs", "products"), [((True, False), 1), ((False, True), 1), ((True, True), 2)], ids=str)
def test_the_fourier_convolution_multiplies_once_for_each_needed_gradient(needs, products):
    tensors = [torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3), torch.randn(4)]
    together = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(fourier_conv2d(*together, 2).square().sum(), together)
    leaves = [t.requires_grad_(need) for t, need in zip(tensors, needs, strict=False)]
    result = fourier_conv2d(*leaves, tensors[2], 2).square().sum()
    with Watched() as watched:
        result.backward()
    assert watched.products == products
    for leaf, need, gradient in zip(leaves, needs, expected, strict=False):
        assert torch.equal(leaf.grad, gradient) if need else leaf.grad is None


def test_an_attack_on_a_frozen_network_computes_no_weights_gradient_and_training_no_images():
    network, images = CapsNet((1, 28, 28), conv_channels=64, primary_types=8), torch.rand(32, 1, 28, 28)
    products = []
    for frozen in (True, False):
        network.requires_grad_(not frozen)
        children = network.primary_capsules(images.detach().requires_grad_(frozen))
        with Watched() as watched:
            children.sum().backward()
        assert watched.convolutions == ([] if frozen else [[False, True, True]])  # [] as conv1 is a matrix product
        products.append(watched.products)
    assert products == [2, 2]  # for the images of both convolutions; for images and weight of the second
