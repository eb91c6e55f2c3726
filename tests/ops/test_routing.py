"""Routing without the votes is its twin: as equal as its arithmetic allows, in less memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capsnet.errors import InputError
from capsnet.ops import routing
from capsnet.ops.reference import dynamic_routing, vote
from capsnet.ops.routing import route
from tests.ops.gradients import with_gradients


def twin(children, weight, *args, **options):
    return dynamic_routing(vote(children, weight), *args, **options)


def inputs(b, i, j, d, e, dtype=torch.float64):
    """Children [b, i, d] and a weight [i, j, d, e] of such a size that the parents are neither long nor short."""
    children, weight = torch.randn(b, i, d), torch.randn(i, j, d, e) * (j / (i * d)) ** 0.5
    return children.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize(
    ("b", "i", "j", "d", "e"),
    [
        (1, 1, 1, 1, 1),
        (2, 7, 3, 5, 8),
        (3, 1, 3, 8, 16),
        (2, 7, 1, 5, 33),
        (5, 1, 100, 1, 33),
        (2, 7, 100, 16, 5),
        (2, 7, 3, 33, 33),
        (1, 1153, 1, 33, 1),
        (1, 1153, 100, 1, 1),
        (3, 1153, 3, 8, 16),
    ],
)
def test_parents_and_gradients_are_the_twins_at_odd_shapes(b, i, j, d, e, gradient):
    pair = inputs(b, i, j, d, e)
    routed = with_gradients(lambda *pair: route(*pair, gradient=gradient), *pair)
    torch.testing.assert_close(routed, with_gradients(lambda *pair: twin(*pair, gradient=gradient), *pair))


def autocast(function):
    """The function with its products in bf16, as in mixed precision."""

    def cast(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*args)

    return cast


# So many images that the mean error is no matter of luck; i and d are above 1, since autocast leaves a twin that sums
# nothing in float32.
@pytest.mark.parametrize("arithmetic", ["float32", "bf16", "autocast to bf16"])
@pytest.mark.parametrize(
    ("b", "i", "j", "d", "e"),
    [
        (64, 7, 3, 5, 8),
        (64, 7, 1, 5, 33),
        (32, 7, 100, 16, 5),
        (32, 7, 3, 33, 33),
        (64, 7, 3, 16, 1),
        (8, 1153, 3, 8, 16),
    ],
)
def test_errors_are_at_most_twice_the_twins(b, i, j, d, e, arithmetic):
    pair = inputs(b, i, j, d, e, torch.bfloat16 if arithmetic == "bf16" else torch.float32)
    exact = with_gradients(twin, *(t.double() for t in pair))
    cast = autocast if arithmetic == "autocast to bf16" else lambda function: function
    routed, twins = with_gradients(cast(route), *pair), with_gradients(cast(twin), *pair)
    for name, truth, ours, its in zip(("parents", "children", "weight"), exact, routed, twins, strict=True):
        assert (ours - truth).abs().mean() <= 2 * (its - truth).abs().mean(), name


def test_first_and_second_derivatives_are_those_of_finite_differences():
    children, weight = (t.requires_grad_() for t in inputs(2, 3, 2, 2, 3))
    prior, bias = torch.randn(3, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    parameters = (children, weight, prior.requires_grad_(), bias.requires_grad_())

    def routed(children, weight, prior, bias):
        return route(children, weight, prior=prior, bias=bias, leaky=True)

    assert torch.autograd.gradcheck(routed, parameters)
    assert torch.autograd.gradgradcheck(routed, parameters)


def test_an_empty_batch_has_empty_parents_and_zero_gradients():
    parents, grad_children, grad_weight = with_gradients(route, *inputs(0, 7, 3, 5, 8))
    assert parents.shape == (0, 3, 8)
    assert grad_children.shape == (0, 7, 5)
    assert not grad_weight.any()


def test_the_layout_in_memory_does_not_matter():
    children, weight = inputs(2, 7, 3, 5, 8)
    turned = children.transpose(0, 2).contiguous().transpose(0, 2), weight.transpose(1, 3).contiguous().transpose(1, 3)
    assert not any(t.is_contiguous() for t in turned)
    torch.testing.assert_close(route(*turned), route(children, weight))


def test_a_weight_may_be_repeated_without_a_copy():
    children, weight = inputs(2, 1, 3, 5, 8)
    children = children.expand(2, 7, 5)
    routed = with_gradients(lambda *pair: route(pair[0], pair[1].expand(7, 3, 5, 8)), children, weight)
    torch.testing.assert_close(
        routed, with_gradients(lambda *pair: twin(pair[0], pair[1].expand(7, 3, 5, 8)), children, weight)
    )


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_r_iterations_are_r_weighted_sums(iterations, monkeypatch):
    squashed = []
    monkeypatch.setattr(routing, "squash", lambda s: squashed.append(s) or s)
    route(*inputs(2, 7, 3, 5, 8), iterations)
    assert len(squashed) == iterations


class LargestTensor(TorchDispatchMode):
    """Watches every operation, those of the backward pass too, for the most bytes that a result occupies."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("leaky", [False, True])
def test_nothing_of_the_size_of_the_votes_is_ever_made(leaky, gradient):
    b, i, j, d, e = 40, 50, 10, 4, 16
    children, weight = (t.requires_grad_() for t in inputs(b, i, j, d, e))
    votes, logits = b * i * j * e, b * i * (j + leaky)
    with LargestTensor() as largest:
        twin(children, weight, leaky=leaky, gradient=gradient)
    assert largest.nbytes >= votes * weight.itemsize
    with LargestTensor() as largest:
        route(children, weight, leaky=leaky, gradient=gradient).sum().backward()
    assert largest.nbytes == max(weight.numel(), logits) * weight.itemsize


@pytest.mark.parametrize("iterations", [0, -1])
def test_fewer_than_one_iteration_is_refused(iterations):
    with pytest.raises(InputError, match=f"routing takes at least one iteration, not {iterations}"):
        route(*inputs(2, 7, 3, 5, 8), iterations)


def test_an_unknown_gradient_is_refused():
    with pytest.raises(InputError, match="gradient is 'all' or 'last', not 'first'"):
        route(*inputs(2, 7, 3, 5, 8), gradient="first")


@pytest.mark.parametrize(
    ("children", "weight"),
    [((2, 6, 5), (7, 3, 5, 8)), ((2, 7, 4), (7, 3, 5, 8)), ((7, 5), (7, 3, 5, 8)), ((2, 7, 5), (7, 5, 8))],
)
def test_children_and_a_weight_that_do_not_fit_are_refused_with_their_shapes(children, weight):
    with pytest.raises(InputError, match="do not fit") as refusal:
        route(torch.randn(children), torch.randn(weight))
    assert str(list(children)) in str(refusal.value)
    assert str(list(weight)) in str(refusal.value)


@pytest.mark.parametrize(
    ("option", "shape", "message"),
    [
        ("prior", (3, 7), r"prior \[i, j\] must be \[7, 3\] for this weight, not \[3, 7\]"),
        ("bias", (8,), r"bias \[j, e\] must be \[3, 8\] for this weight, not \[8\]"),
    ],
)
def test_a_prior_or_bias_that_does_not_fit_is_refused(option, shape, message):
    with pytest.raises(InputError, match=message):
        route(*inputs(2, 7, 3, 5, 8), **{option: torch.zeros(shape, dtype=torch.float64)})
