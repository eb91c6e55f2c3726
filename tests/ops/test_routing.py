"""Routing without the votes is its twin on every path: as equal as its arithmetic allows, in less memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capsnet.errors import InputError
from capsnet.ops import fused, native, streaming
from capsnet.ops.paths import choose_path, routing_path
from capsnet.ops.reference import dynamic_routing, vote
from capsnet.ops.routing import route
from tests.ops.gradients import with_gradients

no_compiler = pytest.mark.skipif(native.compiled(torch.float32, 8, 16) is None, reason="there is no C compiler")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
PATHS = ["streaming", pytest.param("native", marks=no_compiler), pytest.param("triton", marks=no_gpu)]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Every path but the twin in turn, with tiles so small that several are needed."""
    monkeypatch.setattr(streaming, "CACHE", 512)
    with routing_path(request.param):
        yield request.param


def on_device(tensors, path):
    """Tensors where the path runs, as leaves of their own."""
    device = "cuda" if path == "triton" else "cpu"
    return [t.to(device).detach().requires_grad_(t.requires_grad) for t in tensors]


def twin(children, weight, *args, **options):
    return dynamic_routing(vote(children, weight), *args, **options)


def inputs(b, i, j, d, e, dtype=torch.float64):
    """Children [b, i, d] and a weight [i, j, d, e] of such a size that the parents are neither long nor short."""
    children, weight = torch.randn(b, i, d), torch.randn(i, j, d, e) * (j / (i * d)) ** 0.5
    return children.to(dtype), weight.to(dtype)


SHAPES = [
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
    (1, 7, 1000, 5, 8),
    (33, 7, 3, 8, 16),
]


@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parents_and_gradients_are_the_twins_at_odd_shapes(shape, gradient, path):
    pair = on_device(inputs(*shape), path)
    routed = with_gradients(lambda *pair: route(*pair, gradient=gradient), *pair)
    torch.testing.assert_close(routed, with_gradients(lambda *pair: twin(*pair, gradient=gradient), *pair))


@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_gradients_of_prior_and_bias_are_the_twins(iterations, leaky, gradient, path):
    prior, bias = torch.randn(7, 3, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    tensors = on_device((*inputs(5, 7, 3, 5, 8), prior, bias), path)

    def by(function):
        def call(children, weight, prior, bias):
            options = {"prior": prior, "bias": bias, "leaky": leaky, "gradient": gradient}
            return function(children, weight, iterations, **options)

        return with_gradients(call, *tensors)

    torch.testing.assert_close(by(route), by(twin))


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
def test_errors_are_at_most_twice_the_twins(b, i, j, d, e, arithmetic, path):
    if arithmetic == "autocast to bf16" and path == "triton":
        pytest.skip("autocast is the processor's here")
    pair = on_device(inputs(b, i, j, d, e, torch.bfloat16 if arithmetic == "bf16" else torch.float32), path)
    exact = with_gradients(twin, *(t.double() for t in pair))
    cast = autocast if arithmetic == "autocast to bf16" else lambda function: function
    routed, twins = with_gradients(cast(route), *pair), with_gradients(cast(twin), *pair)
    for name, truth, ours, its in zip(("parents", "children", "weight"), exact, routed, twins, strict=True):
        assert (ours - truth).abs().mean() <= 2 * (its - truth).abs().mean(), name


def test_derivatives_are_those_of_finite_differences(path):
    children, weight = inputs(2, 3, 2, 2, 3)
    prior, bias = torch.randn(3, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    parameters = [t.requires_grad_() for t in on_device((children, weight, prior, bias), path)]

    def routed(children, weight, prior, bias):
        return route(children, weight, prior=prior, bias=bias, leaky=True)

    assert torch.autograd.gradcheck(routed, parameters)


def test_the_operation_is_what_torch_expects_of_one(path):
    children, weight = on_device(inputs(2, 3, 2, 2, 3), path)
    prior = torch.randn(3, 2, dtype=torch.float64, device=children.device)
    for given in (None, prior):
        arguments = children.requires_grad_(), weight.requires_grad_(), given, None, 3, False, True
        torch.library.opcheck(fused.routed, arguments)


def test_compiling_takes_it_without_a_break(path):
    children, weight = on_device(inputs(2, 3, 2, 2, 3), path)
    compiled = torch.compile(lambda *pair: route(*pair) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(compiled, children, weight), with_gradients(lambda *p: route(*p) * 2, children, weight)
    )


def test_the_same_inputs_have_the_same_bits(path):
    pair = on_device(inputs(20, 50, 10, 8, 16, torch.float32), path)
    once, again = (with_gradients(route, *pair) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_second_derivative_is_the_twin_s_or_refused(path):
    children, weight = (t.requires_grad_() for t in on_device(inputs(2, 3, 2, 2, 3), path))
    (gradient,) = torch.autograd.grad(route(children, weight).sum(), children, create_graph=True)
    with pytest.raises(RuntimeError, match=r"autograd|grad_fn"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [((1, 7, 3, 5, 8), "twin"), ((64, 1152, 10, 8, 16), "native"), ((64, 1152, 10, 65, 16), "streaming")],
)
@no_compiler
def test_the_door_takes_the_fastest_path_there_is(shape, chosen):
    b, i, j, d, e = shape
    assert choose_path(torch.empty(b, i, d), torch.empty(i, j, d, e)) == chosen


def test_an_unknown_path_is_refused():
    with (
        pytest.raises(InputError, match="a routing path is one of twin, streaming, native, triton, not 'slow'"),
        routing_path("slow"),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_path_that_cannot_run_says_why():
    with (
        routing_path("triton"),
        pytest.raises(InputError, match="routing by triton cannot run: it takes a CUDA device"),
    ):
        route(*inputs(2, 7, 3, 5, 8))


@no_compiler
def test_without_a_compiler_routing_is_streamed(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CC", str(tmp_path / "no compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.compiled.cache_clear()
    try:
        assert choose_path(torch.empty(64, 1152, 8), torch.empty(1152, 10, 8, 16)) == "streaming"
    finally:
        native.compiled.cache_clear()
    assert "routing is not compiled and runs in plain PyTorch" in caplog.text


def test_an_empty_batch_has_empty_parents_and_zero_gradients():
    with routing_path("streaming"):
        parents, grad_children, grad_weight = with_gradients(route, *inputs(0, 7, 3, 5, 8))
    assert parents.shape == (0, 3, 8)
    assert grad_children.shape == (0, 7, 5)
    assert not grad_weight.any()


def test_the_layout_in_memory_does_not_matter(path):
    children, weight = on_device(inputs(2, 7, 3, 5, 8), path)
    turned = children.transpose(0, 2).contiguous().transpose(0, 2), weight.transpose(1, 3).contiguous().transpose(1, 3)
    assert not any(t.is_contiguous() for t in turned)
    torch.testing.assert_close(route(*turned), route(children, weight))


def test_a_weight_may_be_repeated_without_a_copy(path):
    children, weight = on_device(inputs(2, 1, 3, 5, 8), path)
    children = children.expand(2, 7, 5)
    routed = with_gradients(lambda *pair: route(pair[0], pair[1].expand(7, 3, 5, 8)), children, weight)
    torch.testing.assert_close(
        routed, with_gradients(lambda *pair: twin(pair[0], pair[1].expand(7, 3, 5, 8)), children, weight)
    )


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_r_iterations_are_r_weighted_sums(iterations, monkeypatch):
    squashed = []
    monkeypatch.setattr(fused, "squash", lambda s: squashed.append(s) or s)
    with routing_path("streaming"):
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
def test_nothing_of_the_size_of_the_votes_or_the_logits_is_ever_made(leaky, gradient, path):
    b, i, j, d, e = 48, 50, 40, 4, 16
    children, weight = (t.requires_grad_() for t in on_device(inputs(b, i, j, d, e), path))
    with LargestTensor() as largest:
        twin(children, weight, leaky=leaky, gradient=gradient)
    assert largest.nbytes >= b * i * j * e * weight.itemsize
    with LargestTensor() as largest:
        route(children, weight, leaky=leaky, gradient=gradient).sum().backward()
    assert largest.nbytes <= 3 * max(children.numel(), weight.numel(), 3 * b * j * e) * weight.itemsize


def test_what_backward_keeps_is_of_the_size_of_inputs_and_parents(path):
    b, i, j, d, e = 8, 50, 10, 4, 16
    children, weight = (t.requires_grad_() for t in on_device(inputs(b, i, j, d, e), path))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        route(children, weight)
    assert sum(kept) <= b * i * d + i * j * d * e + 3 * b * j * e


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
