"""Under autocast, products are in its dtype, sums and parents in float32, and gradients in the parameters' dtype."""

import pytest
import torch

from capsnet.layers import RoutedCaps
from capsnet.models import CapsNet
from capsnet.ops import streaming
from capsnet.ops.dispatch import routing_backend
from capsnet.ops.routing import route
from tests.ops.helpers import (
    ERROR_SHAPES,
    arguments,
    assert_errors_at_most_twice_the_references,
    by,
    no_compiler,
    reference,
)


@pytest.fixture(params=["reference", "streaming", pytest.param("native", marks=no_compiler)])
def backend(request):
    """Every backend of a CPU."""
    with routing_backend(request.param):
        yield request.param


def cast(function):
    """The function with its products in bf16, as in mixed precision."""

    def call(*args, **options):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*args, **options)

    return call


@pytest.mark.parametrize("shape", ERROR_SHAPES, ids=str)
def test_errors_are_at_most_twice_the_references(shape, backend, monkeypatch):
    monkeypatch.setattr(streaming, "CACHE", 1 << 13)
    assert_errors_at_most_twice_the_references(
        cast(route), cast(reference), lambda: arguments(shape, "prior", "bias", dtype=torch.float32), torch.float32
    )


def test_children_in_bf16_may_have_a_weight_in_float32(backend):
    tensors = arguments((2, 7, 3, 5, 8), "prior", "bias", dtype=torch.float32)
    tensors["children"] = tensors["children"].bfloat16()
    parents, *gradients = by(cast(route), tensors)
    assert parents.dtype == torch.float32
    assert [g.dtype for g in gradients] == [t.dtype for t in tensors.values()]


def test_float64_stays_float64(backend):
    tensors = arguments((2, 7, 3, 5, 8), "prior", "bias")
    torch.testing.assert_close(by(cast(route), tensors), by(route, tensors), rtol=0, atol=0)


def test_a_backward_pass_is_the_same_under_autocast(backend):
    if backend == "reference":
        pytest.skip("the reference's products are PyTorch's own")
    tensors = [t.requires_grad_() for t in arguments((20, 7, 3, 5, 8), "prior", dtype=torch.float32).values()]
    parents = route(*tensors[:2], prior=tensors[2]).square().sum()
    expected = torch.autograd.grad(parents, tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, torch.autograd.grad(parents, tensors), expected))


def test_compiled_capsules_are_the_same_without_a_graph_break(backend):
    if backend == "reference":
        pytest.skip("compiled code stores no votes")
    layer = RoutedCaps(7, 3, 5, 8, prior=True, bias=True)
    children = torch.randn(4, 7, 5)
    compiled = torch.compile(cast(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        by(lambda children: compiled(children), {"children": children}),
        by(lambda children: cast(layer)(children), {"children": children}),
    )


def test_a_network_has_float32_capsules_and_gradients(backend):
    network = CapsNet((1, 28, 28), classes=3)
    output = cast(network)(torch.rand(2, 1, 28, 28))
    output.lengths.sum().backward()
    assert output.capsules.dtype == torch.float32
    assert network.digit_caps.weight.grad.dtype == torch.float32
    assert network.digit_caps.weight.grad.any()
