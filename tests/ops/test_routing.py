"""Every backend of routing equals the reference, as closely as its arithmetic allows, at any shape and layout."""

from contextlib import nullcontext

import pytest
import torch

from capsnet.ops import autograd, passes, streaming
from capsnet.ops.dispatch import routing_backend
from capsnet.ops.routing import route
from tests.ops.helpers import ERROR_SHAPES, arguments, assert_errors_at_most_twice_the_references, by, inputs, reference

SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 1, 3, 8, 16),
    (5, 1, 1000, 1, 33),
    (2, 7, 1, 5, 33),
    (2, 7, 3, 33, 33),
    (2, 7, 1000, 16, 5),
    (1, 1153, 1, 33, 1),
    (3, 1153, 3, 8, 16),
    (1, 1153, 1000, 1, 1),
    (33, 7, 3, 5, 8),
]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("gradient", "extras"), [("all", ()), ("all", ("prior", "bias")), ("last", ("prior", "bias"))], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parents_and_gradients_equal_the_references_at_odd_shapes(shape, gradient, extras, backend, monkeypatch):
    _, _, j, d, _ = shape
    monkeypatch.setattr(streaming, "CACHE", max(512, 50 * j * d))  # about 50 children in a tile
    tensors = arguments(shape, *extras, backend=backend)
    torch.testing.assert_close(by(route, tensors, gradient=gradient), by(reference, tensors, gradient=gradient))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("none_of_the_above", [False, True], ids=["softmax", "none_of_the_above"])
@pytest.mark.parametrize("extras", [(), ("prior",), ("bias",), ("prior", "bias")], ids=str)
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_routing_with_any_options_equals_the_reference(iterations, extras, none_of_the_above, gradient, backend):
    tensors = arguments((5, 7, 3, 5, 8), *extras, backend=backend)
    options = {"iterations": iterations, "none_of_the_above": none_of_the_above, "gradient": gradient}
    torch.testing.assert_close(by(route, tensors, **options), by(reference, tensors, **options))


def test_an_image_is_routed_the_same_alone_as_in_a_batch(backend):
    children, weight = arguments((5, 7, 3, 5, 8), backend=backend).values()
    alone = torch.cat([route(image, weight) for image in children.split(1)])
    torch.testing.assert_close(route(children, weight), alone)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("asked", ["streaming", None])
def test_an_empty_batch_has_empty_parents_and_zero_gradients(asked):
    tensors = arguments((0, 7, 3, 5, 8), "prior", "bias")
    with routing_backend(asked) if asked else nullcontext():
        parents, *gradients = by(route, tensors)
    assert parents.shape == (0, 3, 8)
    assert [g.shape for g in gradients] == [t.shape for t in tensors.values()]
    assert not any(g.any() for g in gradients)


def transposed(tensor):
    """The same tensor with another layout in memory."""
    other = tensor.mT.contiguous().mT
    assert not other.is_contiguous()
    return other


def test_the_layout_in_memory_does_not_matter(backend):
    tensors = arguments((2, 7, 3, 5, 8), "prior", backend=backend)
    others = {name: transposed(t).requires_grad_() for name, t in tensors.items()}
    grad = torch.randn(2, 3, 8).to(tensors["children"])
    found = torch.autograd.grad(parents := route(**others), list(others.values()), transposed(grad))
    straight = [t.requires_grad_() for t in tensors.values()]
    torch.testing.assert_close(parents, expected := reference(*straight[:2], prior=straight[2]))
    torch.testing.assert_close(found, torch.autograd.grad(expected, straight, grad))


def test_a_gradient_may_be_one_number_repeated(backend):
    children, weight = (t.requires_grad_() for t in arguments((2, 7, 3, 5, 8), backend=backend).values())
    found = torch.autograd.grad(route(children, weight).sum(), (children, weight))
    torch.testing.assert_close(found, torch.autograd.grad(reference(children, weight).sum(), (children, weight)))


def test_a_weight_may_be_repeated_without_a_copy(backend):
    tensors = arguments((2, 1, 3, 5, 8), backend=backend)

    def repeated(function):
        return lambda children, weight: function(children.expand(2, 7, 5), weight.expand(7, 3, 5, 8))

    torch.testing.assert_close(by(repeated(route), tensors), by(repeated(reference), tensors))


@pytest.fixture
def threads():
    """Use two threads, among which a CPU backend divides the children."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("poisoned", "threads")
@pytest.mark.parametrize("i", [1, 2, 51], ids=lambda i: f"{i} children")
def test_threads_may_share_the_children(i, backend):
    tensors = arguments((20, i, 3, 5, 8), "prior", backend=backend)
    torch.testing.assert_close(by(route, tensors), by(reference, tensors))


@pytest.mark.usefixtures("threads")
def test_the_same_inputs_have_the_same_bits(backend):
    tensors = arguments((20, 50, 5, 8, 16), "prior", "bias", backend=backend, dtype=torch.float32)
    once, *more = (by(route, tensors) for _ in range(3))
    assert all(torch.equal(a, b) for again in more for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", ERROR_SHAPES, ids=str)
def test_errors_are_at_most_twice_the_references(shape, dtype, backend, monkeypatch):
    monkeypatch.setattr(streaming, "CACHE", 1 << 13)
    assert_errors_at_most_twice_the_references(
        route, reference, lambda: arguments(shape, "prior", "bias", backend=backend, dtype=dtype), dtype
    )


def test_logits_beyond_the_exponential_overflow_nothing(backend):
    tensors = arguments((20, 7, 3, 5, 8), "prior", backend=backend, dtype=torch.float32)
    tensors["prior"] *= 1000
    torch.testing.assert_close(by(route, tensors), by(reference, tensors))


def test_derivatives_are_those_of_finite_differences(backend):
    tensors = arguments((2, 3, 2, 2, 3), "prior", "bias", backend=backend)

    def routed(children, weight, prior, bias):
        return route(children, weight, prior=prior, bias=bias, none_of_the_above=True)

    assert torch.autograd.gradcheck(routed, [t.requires_grad_() for t in tensors.values()])


@pytest.mark.parametrize("extras", [(), ("prior",), ("prior", "bias")], ids=str)
def test_the_operations_pass_torchs_opcheck(extras, backend):
    tensors = {name: t.requires_grad_() for name, t in arguments((2, 3, 2, 2, 3), *extras, backend=backend).items()}
    children, weight, prior, bias = (tensors.get(name) for name in ("children", "weight", "prior", "bias"))
    torch.library.opcheck(autograd.route_op, (children, weight, prior, bias, 3, False, True))
    with torch.no_grad():
        parents, sums = autograd.route_op(children, weight, prior, bias, 3, False, True)
        constants = [None if t is None else t.detach() for t in (children, weight, prior)]
        options = torch.randn_like(parents), False, True, [True] * 4
        torch.library.opcheck(autograd.route_backward_op, (*constants, sums, *options))


@pytest.mark.parametrize("gradient", ["all", "last"])
def test_it_compiles_without_a_graph_break(gradient, backend):
    tensors = arguments((2, 3, 2, 2, 3), "prior", "bias", backend=backend)

    def doubled(**tensors):
        return route(**tensors, gradient=gradient) * 2

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(by(compiled, tensors), by(doubled, tensors))


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_r_iterations_are_r_weighted_sums(iterations, monkeypatch):
    squashed = []
    monkeypatch.setattr(passes, "squash", lambda s: squashed.append(s) or s)
    with routing_backend("streaming"):
        route(*inputs(2, 7, 3, 5, 8), iterations)
    assert len(squashed) == iterations


def test_a_nan_in_the_prior_is_not_hidden(backend):
    tensors = arguments((20, 7, 3, 5, 8), "prior", backend=backend, dtype=torch.float32)
    tensors["prior"][2, 1] = torch.nan
    assert route(**tensors).isnan().all()
