"""Routing neither stores nor computes a tensor of the votes' size, as measured by its memory."""

import pytest
import torch

from capsnet.ops import streaming
from capsnet.ops.routing import route
from tests.ops.helpers import LargestTensor, arguments, reference


@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("extras", [(), ("prior", "bias")], ids=str)
def test_no_tensor_has_the_size_of_the_votes_or_the_logits(extras, gradient, backend, monkeypatch):
    monkeypatch.setattr(streaming, "CACHE", 1 << 13)
    b, i, j, d, e = 64, 64, 64, 1, 2
    tensors = {name: t.requires_grad_() for name, t in arguments((b, i, j, d, e), *extras, backend=backend).items()}
    with LargestTensor() as largest:
        reference(**tensors, gradient=gradient)
    assert largest.nbytes >= b * i * j * e * 8
    with LargestTensor() as largest:
        route(**tensors, gradient=gradient).sum().backward()
    assert 3 * b * j * e * 8 <= largest.nbytes <= 4 * max(b * i * d, i * j * d * e, 3 * b * j * e) * 8 < b * i * j * 8


def saved_bytes(function):
    """The bytes that a function saves for its backward pass."""
    tensors = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.setdefault(t.data_ptr(), t), lambda t: t):
        function()
    return sum(t.untyped_storage().nbytes() for t in tensors.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extras", [(), ("prior", "bias")], ids=str)
def test_the_backward_pass_saves_the_inputs_and_each_iterations_parents(extras, dtype, backend):
    b, i, j, d, e = 8, 50, 10, 4, 16
    tensors = arguments((b, i, j, d, e), *extras, backend=backend, dtype=dtype)
    tensors = {name: t.requires_grad_() for name, t in tensors.items()}
    exact = 8 if dtype == torch.float64 else 4
    bound = (b * i * d + i * j * d * e) * dtype.itemsize + (3 * b * j * e + i * j) * exact
    votes = b * i * j * e * dtype.itemsize
    assert saved_bytes(lambda: route(**tensors)) <= bound < votes <= saved_bytes(lambda: reference(**tensors))


def test_autocast_saves_children_and_weight_in_its_dtype(backend):
    if backend == "triton":
        pytest.skip("autocast is that of the CPU here")
    b, i, j, d, e = 8, 50, 10, 4, 16
    children, weight = (t.requires_grad_() for t in arguments((b, i, j, d, e), dtype=torch.float32).values())
    with torch.autocast("cpu", torch.bfloat16):
        nbytes = saved_bytes(lambda: route(children, weight))
    assert nbytes <= (b * i * d + i * j * d * e) * 2 + 3 * b * j * e * 4
