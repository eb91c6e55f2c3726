"""Compiled code is called only with tensors in a CPU's memory, whatever the default device and the tracers."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from capsnet.ops import fourier
from capsnet.ops.convolution import strided_conv2d
from capsnet.ops.routing import route
from capsnet.ops.squash import squash

CALLS = {
    "squash": (squash, [(1024, 8, 16)]),
    "route": (route, [(32, 288, 8), (288, 10, 8, 16)]),
    "convolution": (lambda *given: strided_conv2d(*given, stride=2), [(32, 64, 20, 20), (64, 64, 9, 9)]),
}


not_of_route = pytest.mark.parametrize("call", ["squash", "convolution"], indirect=True)


@pytest.fixture(params=CALLS)
def call(request):
    """A function with compiled code, and its arguments."""
    fourier._find_waves.cache_clear()
    function, shapes = CALLS[request.param]
    return function, [torch.randn(shape) / 8 for shape in shapes]


def test_the_default_device_may_be_another(call):
    function, given = call
    with torch.device("meta"):
        found = function(*given)
    torch.testing.assert_close(found, function(*given), rtol=0, atol=0)


def test_fake_tensors_have_a_shape_and_do_not_change_later_results(call):
    function, given = call
    with FakeTensorMode() as mode:
        shape = function(*map(mode.from_tensor, given)).shape
    assert function(*given).shape == shape


@not_of_route  # make_fx cannot trace its autograd function
def test_a_traced_graph_computes_the_same(call):
    function, given = call
    other = [torch.randn_like(tensor) / 8 for tensor in given]
    traced = make_fx(function)(*given)
    torch.testing.assert_close(traced(*other), function(*other), rtol=1e-4, atol=1e-5)


@not_of_route  # its backward pass writes in place
def test_many_gradients_may_be_taken_at_once(call):
    function, given = call
    given[0].requires_grad_()
    result = function(*given)
    grads = torch.randn(2, *result.shape)
    found = torch.autograd.grad(result, given[0], grads, retain_graph=True, is_grads_batched=True)[0]
    for grad, row in zip(grads, found, strict=True):
        expected = torch.autograd.grad(result, given[0], grad, retain_graph=True)[0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_a_negated_view_is_read_with_its_sign(call):
    function, given = call
    expected = function(*(-tensor for tensor in given))
    torch.testing.assert_close(function(*map(torch._neg_view, given)), expected, rtol=0, atol=0)
