"""Compiled routing multiplies numbers of bf16 in pairs, which adds no error but that of rounding the results."""

import pytest
import torch

from capsnet.ops import native, streaming
from capsnet.ops.dispatch import routing_backend
from capsnet.ops.routing import route
from tests.ops.helpers import inputs, no_compiler

pytestmark = no_compiler
SHAPES = [
    (1, 1, 1, 2, 2),
    (33, 7, 1, 8, 16),
    (16, 5, 3, 2, 34),
    (130, 3, 10, 8, 16),
    (40, 19, 4, 64, 6),
    (9, 6, 5, 10, 8),
]
ODD = [(33, 7, 3, 5, 16), (33, 7, 3, 8, 5)]  # whose capsules do not come in pairs


def passes(shape, none_of_the_above, with_prior):
    """The native backend in bf16 and the streaming backend in float64, for the same numbers."""
    children, weight = (t.bfloat16() for t in inputs(*shape))
    prior = torch.randn(shape[1:3]) if with_prior else None
    exact = streaming.Streaming(
        *(None if t is None else t.double() for t in (children, weight, prior)), none_of_the_above
    )
    return native.Native(children, weight, prior, none_of_the_above), exact


def parents(shape, *many):
    b, _, j, _, e = shape
    return torch.randn(*many, b, j, e)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("none_of_the_above", [False, True])
@pytest.mark.parametrize("shape", SHAPES + ODD, ids=str)
def test_sums_of_bf16_are_as_exact_as_those_of_float32(shape, none_of_the_above, with_prior):
    ours, exact = passes(shape, none_of_the_above, with_prior)
    parent_sum, grad = parents(shape), parents(shape)
    for found, expected in (
        (ours.uniform_sum(), exact.uniform_sum()),
        (ours.weighted_sum(parent_sum), exact.weighted_sum(parent_sum)),
        (ours.agreement_gradient(parent_sum, grad), exact.agreement_gradient(parent_sum, grad)),
    ):
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "needs", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("through_agreement", [False, True])
@pytest.mark.parametrize("shape", SHAPES + ODD, ids=str)
def test_gradients_of_bf16_are_exact_but_for_rounding(shape, through_agreement, needs):
    ours, exact = passes(shape, False, True)
    parent_sum, grad, grad_uniform = parents(shape, 2), parents(shape, 2), parents(shape)
    found = ours.gradients(parent_sum, grad, grad_uniform, through_agreement, needs)
    expected = exact.gradients(parent_sum.double(), grad.double(), grad_uniform.double(), through_agreement, needs)
    for name, ours, its in zip(("children", "weight", "prior"), found, expected, strict=True):
        assert (ours is None) == (its is None), name
        if ours is not None:
            assert (ours - its).norm() <= 2**-8 * its.norm(), name


@pytest.mark.parametrize("b", [20, 40])
def test_children_of_bf16_may_be_anywhere_in_memory(b):
    children, weight = (t.bfloat16() for t in inputs(b, 7, 3, 8, 16))
    moved = torch.empty(children.numel() + 1, dtype=torch.bfloat16)[1:].view(children.shape).copy_(children)
    assert moved.storage_offset() % 2
    with routing_backend("native"):
        assert torch.equal(route(moved, weight), route(children, weight))
        transposed = children.mT.contiguous().mT, weight.mT.contiguous().mT
        assert torch.equal(route(*transposed), route(children, weight))


def test_nan_in_bf16_is_not_hidden():
    children, weight = (t.bfloat16().requires_grad_() for t in inputs(20, 7, 3, 8, 16))
    with torch.no_grad():
        children[4, 2, 5] = torch.nan
    with routing_backend("native"):
        routed = route(children, weight)
        to_children, to_weight = torch.autograd.grad(routed.sum(), (children, weight))
    assert routed.isnan().flatten(1).any(dim=1).nonzero().tolist() == [[4]]
    assert to_children.isnan().flatten(1).any(dim=1).nonzero().tolist() == [[4]]
    assert to_weight.isnan().flatten(1).any(dim=1).all()
