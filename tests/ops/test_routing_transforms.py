"""Derivatives by torch.func equal the reference's, or the error says that only the reference has them."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from capsnet.errors import InputError
from capsnet.ops import autograd
from capsnet.ops.dispatch import routing_backend
from capsnet.ops.routing import route
from tests.ops.helpers import arguments, inputs

# PyTorch's own warning, when it loads its forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SHAPE = (2, 3, 4, 5, 2)
WAY_OUT = r"only the reference backend has second derivatives and forward-mode .* routing_backend\(\"reference\"\)"


@pytest.fixture
def pair(backend):
    """Children and a weight, on the backend's device."""
    return tuple(arguments(SHAPE, backend=backend).values())


@pytest.fixture
def rows(backend):
    """Six of such children, weights, priors and biases."""
    many = [arguments(SHAPE, "prior", "bias", backend=backend).values() for _ in range(6)]
    return [torch.stack(row) for row in zip(*many, strict=True)]


def loss(children, weight, prior=None, bias=None):
    return route(children, weight, prior=prior, bias=bias).square().sum()


def equals_the_reference(function, *args):
    found = function(*args)
    with routing_backend("reference"):
        torch.testing.assert_close(found, function(*args))


@pytest.mark.parametrize("transform", [lambda: grad(loss, argnums=(0, 1)), lambda: jacrev(route, argnums=(0, 1))])
def test_gradients_by_torch_func_equal_the_references(transform, pair):
    equals_the_reference(transform(), *pair)


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)], ids=["children", "weight", "both"])
def test_vmap_routes_each_row_as_alone(in_dims, rows, pair):
    args = [alone if dim is None else many for many, alone, dim in zip(rows, pair, in_dims, strict=False)]
    found = vmap(route, in_dims)(*args)
    for v in range(6):
        torch.testing.assert_close(
            found[v], route(*(a if dim is None else a[v] for a, dim in zip(args, in_dims, strict=True)))
        )


def test_vmap_may_go_over_any_axis_and_over_prior_and_bias(rows):
    children, weight, prior, bias = rows
    moved = children.movedim(0, 2), weight[0], prior.movedim(0, 1), bias
    found = vmap(lambda *args: route(*args[:2], prior=args[2], bias=args[3]), (2, None, 1, 0))(*moved)
    one = [route(c, weight[0], prior=p, bias=q) for c, p, q in zip(children, prior, bias, strict=True)]
    torch.testing.assert_close(found, torch.stack(one))


def test_rows_of_children_are_routed_as_one_batch(rows, pair, monkeypatch):
    make, batches = autograd._backend, []

    def watched(children, *others):
        batches.append(len(children))
        return make(children, *others)

    monkeypatch.setattr(autograd, "_backend", watched)
    vmap(route, (0, None))(rows[0], pair[1])
    assert batches == [rows[0].shape[0] * rows[0].shape[1]]


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (0, 0, 0, 0)], ids=str)
def test_gradients_of_each_row_equal_the_references(in_dims, rows):
    args = [many if dim == 0 else many[0] for many, dim in zip(rows, in_dims, strict=False)]
    equals_the_reference(vmap(grad(loss, argnums=tuple(range(len(args)))), in_dims), *args)


def test_the_gradient_of_many_rows_equals_the_references(rows):
    equals_the_reference(grad(lambda *rows: vmap(loss)(*rows).sum(), argnums=(0, 1, 2, 3)), *rows)
    equals_the_reference(grad(lambda cs, w: vmap(loss, (0, None))(cs, w).sum(), argnums=(0, 1)), rows[0], rows[1][0])


BEYOND = {
    "jvp": lambda children, weight: jvp(lambda c: route(c, weight), (children,), (children,)),
    "jacfwd": jacfwd(route, argnums=1),
    "hessian": hessian(loss),
    "grad of grad": grad(lambda *pair: grad(loss)(*pair).sum(), argnums=(0, 1)),
    "grad of vmap of grad": grad(lambda *pair: vmap(lambda c: grad(loss)(c[None], pair[1]))(pair[0]).sum()),
}


@pytest.mark.parametrize("function", BEYOND.values(), ids=BEYOND)
def test_torch_func_is_refused_what_only_the_reference_has(function, pair):
    with pytest.raises(InputError, match=WAY_OUT):
        function(*pair)
    with routing_backend("reference"):
        assert function(*pair) is not None


def test_a_second_derivative_is_refused_when_it_is_taken_and_not_before(pair):
    children, weight = (t.requires_grad_() for t in pair)
    (gradient,) = torch.autograd.grad(loss(children, weight), children, create_graph=True)
    with pytest.raises(InputError, match=WAY_OUT):
        gradient.sum().backward()


def test_a_gradient_that_may_be_differentiated_equals_the_references(pair):
    pair = [t.requires_grad_() for t in pair]
    equals_the_reference(lambda *pair: torch.autograd.grad(loss(*pair), pair, create_graph=True), *pair)


def test_the_reference_has_second_derivatives():
    pair = [t.requires_grad_() for t in inputs(2, 3, 2, 2, 3)]
    with routing_backend("reference"):
        assert torch.autograd.gradgradcheck(route, pair)


def test_few_votes_have_second_derivatives_by_default():
    children, weight = inputs(*SHAPE)
    with routing_backend("reference"):
        expected = hessian(loss)(children, weight)
    torch.testing.assert_close(hessian(loss)(children, weight), expected)


def test_a_dual_number_is_refused_and_never_taken_for_a_constant(pair):
    children, weight = pair
    with forward_ad.dual_level(), pytest.raises(InputError, match=WAY_OUT):
        route(forward_ad.make_dual(children, children), weight)


# The compiler runs refused code in eager mode, and then traces its parts.
@pytest.mark.filterwarnings("ignore:Dynamo :UserWarning")
def test_forward_mode_is_refused_in_compiled_code_too(pair):
    compiled = torch.compile(BEYOND["jvp"], backend="aot_eager")
    with pytest.raises(InputError, match=WAY_OUT):
        compiled(*pair)


def test_vmap_compiles_without_a_graph_break(rows, pair):
    compiled = torch.compile(vmap(route, (0, None)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(rows[0], pair[1]), vmap(route, (0, None))(rows[0], pair[1]))
