"""The Triton backend equals the reference: on a GPU if there is one, else under Triton's interpreter."""

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context

import pytest
import torch
from einops import einsum

from capsnet.errors import InputError
from capsnet.ops.reference import couple, vote
from tests.ops.helpers import LargestTensor, arguments, by
from tests.ops.helpers import reference as routed_reference

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

GPU = torch.cuda.is_available()
FUNCTIONS = ("weighted_sum", "agreement_gradient", "gradients")


@pytest.fixture(scope="module")
def worker():
    """Where the kernels run: here with a GPU, so that large tensors need not move, and else in a process of its own.

    Triton decides at its import whether to interpret, for the whole process.
    """
    if GPU:
        _fill_with_nan()
        yield None
        torch.use_deterministic_algorithms(False)
        return
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_interpret) as pool:
        yield pool


@pytest.fixture
def call(worker):
    """Calls a pass of the backend by its name, on the GPU if there is one; options are constants of the module."""
    return lambda name, *args, **constants: _in(worker, _call, name, args, constants)


def _in(worker, function, *args):
    return (
        function(*args)
        if worker is None
        else pickle.loads(worker.submit(_there, function, pickle.dumps(args)).result())
    )


def _there(function, args):
    return pickle.dumps(function(*pickle.loads(args)))


def _interpret():
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    _fill_with_nan()


def _fill_with_nan():
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN


@contextmanager
def _with(constants):
    """The module of the kernels, with other constants."""
    from capsnet.ops import triton as kernels

    kept = {constant: getattr(kernels, constant) for constant in constants}
    vars(kernels).update(constants)
    try:
        yield kernels
    finally:
        vars(kernels).update(kept)


def _call(name, args, constants):
    args = (_placed(t) if isinstance(t, torch.Tensor) else t for t in args)
    children, weight, parent_sum, prior, none_of_the_above, *others = args
    with _with(constants) as kernels:
        backend = kernels.Triton(children, weight, prior, none_of_the_above)
        if name == "gradients":
            grad, through_agreement, needs = (*others, True, (True,) * 3)[:3]
            dtypes = (backend.plan.sum_dtype,) * 3
            results = backend.gradients(parent_sum, grad, 0, False, through_agreement, needs, dtypes)
        else:
            grad = others[0] if name == "agreement_gradient" else None
            results = [backend.partial_sums(parent_sum, grad, 0).sum(dim=0)]  # over splits of the children
    return [t if t is None else t.cpu() for t in results]


def _placed(tensor):
    """The same tensor on the device and, if it is contiguous, surrounded by NaN in memory."""
    tensor = tensor.cuda() if GPU else tensor
    if not tensor.is_contiguous():
        return tensor
    memory = tensor.new_full((tensor.numel() + 512,), torch.nan)
    return memory[256:-256].view(tensor.shape).copy_(tensor)


def _route(tensors, options, constants):
    from capsnet.ops import dispatch
    from capsnet.ops.routing import route

    if not GPU:
        dispatch._triton_unavailable = lambda *_: ""  # the interpreter replaces the device
    with _with(constants), dispatch.routing_backend("triton"):
        results = by(route, {name: _placed(t) for name, t in tensors.items()}, **options)
    return [t.cpu() for t in results]


def _largest(name, args):
    with LargestTensor() as largest:
        _call(name, args, {})
    return largest.nbytes


def reference(children, weight, parent_sum, prior, none_of_the_above):
    """The weighted sum of stored votes: Procedure 1, lines 4 and 5."""
    votes = vote(children, weight)
    logits = votes.new_zeros(votes.shape[:3])
    logits = logits if prior is None else logits + prior
    logits = logits if parent_sum is None else logits + einsum(votes, parent_sum, "b i j e, b j e -> b i j")
    return einsum(couple(logits, none_of_the_above), votes, "b i j, b i j e -> b j e")


def reference_results(name, children, weight, parent_sum, prior, none_of_the_above, grad=None):
    """The expected results of the pass of this name, by the reference and autograd."""
    if name == "weighted_sum":
        return [reference(children, weight, parent_sum, prior, none_of_the_above)]
    if name == "agreement_gradient":
        parent_sum = (torch.zeros_like(grad) if parent_sum is None else parent_sum.clone()).requires_grad_()
        total = reference(children, weight, parent_sum, prior, none_of_the_above)
        return list(torch.autograd.grad(total, parent_sum, grad))
    leaves = [None if t is None else t.clone().requires_grad_() for t in (children, weight, prior)]
    parent_sum = [None] * len(grad) if parent_sum is None else parent_sum
    sums = [reference(leaves[0], leaves[1], v, leaves[2], none_of_the_above) for v in parent_sum]
    found = iter(torch.autograd.grad(sums, [t for t in leaves if t is not None], list(grad)))
    return [None if t is None else next(found) for t in leaves]


def inputs(b, i, j, d, e, *, t=2, prior=True, none_of_the_above=False, dtype=torch.float64):
    """Arguments of each pass, for which the softmax over the parents is neither flat nor steep."""
    children, weight = torch.randn(b, i, d), torch.randn(i, j, d, e) * d**-0.5
    parent_sum, grad = torch.randn(t, b, j, e) * e**-0.5, torch.randn(t, b, j, e)
    start = torch.randn(i, j) if prior else None
    children, weight, parent_sum, start, grad = (
        x if x is None else x.to(dtype) for x in (children, weight, parent_sum, start, grad)
    )
    return {
        "weighted_sum": (children, weight, parent_sum[0], start, none_of_the_above),
        "agreement_gradient": (children, weight, parent_sum[0], start, none_of_the_above, grad[0]),
        "gradients": (children, weight, parent_sum, start, none_of_the_above, grad),
    }


ODD = [
    (1, 1, 1, 1, 1),
    (2, 7, 3, 5, 8),
    (3, 1, 10, 8, 16),
    (33, 9, 2, 8, 16),
    (2, 2, 2, 33, 33),
    (1, 1153, 1, 1, 5),
    pytest.param((2, 1153, 1000, 8, 16), marks=pytest.mark.skipif(not GPU, reason="an hour under the interpreter")),
]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_sums_and_gradients_equal_the_references_at_odd_shapes_surrounded_by_nan(name, shape, call):
    args = inputs(*shape, t=1)[name]
    torch.testing.assert_close(call(name, *args), reference_results(name, *args))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("parent_sum", [False, True], ids=["no agreement", "agreement"])
@pytest.mark.parametrize("prior", [False, True], ids=["no prior", "prior"])
@pytest.mark.parametrize("none_of_the_above", [False, True], ids=["softmax", "none_of_the_above"])
def test_sums_and_gradients_of_any_logits_equal_the_references(name, parent_sum, prior, none_of_the_above, call):
    children, weight, v, *others = inputs(2, 3, 2, 2, 3, prior=prior, none_of_the_above=none_of_the_above)[name]
    args = (children, weight, v if parent_sum else None, *others)
    torch.testing.assert_close(call(name, *args), reference_results(name, *args))


@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("extras", [(), ("bias",), ("prior", "bias")], ids=str)
@pytest.mark.parametrize("iterations", [1, 3])
def test_routing_by_the_kernels_equals_the_reference(iterations, extras, gradient, worker):
    tensors = arguments((2, 3, 2, 5, 3), *extras)
    options = {"iterations": iterations, "gradient": gradient, "none_of_the_above": True}
    torch.testing.assert_close(_in(worker, _route, tensors, options, {}), by(routed_reference, tensors, **options))


@pytest.mark.parametrize("needs", list(product([False, True], repeat=3)), ids=str)
def test_a_gradient_that_is_not_needed_is_not_computed_and_the_others_have_the_same_bits(needs, call):
    args = inputs(2, 9, 2, 2, 3)["gradients"]
    found, together = call("gradients", *args, True, needs), call("gradients", *args)
    for ours, expected, need in zip(found, together, needs, strict=True):
        assert torch.equal(ours, expected) if need else ours is None


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(2, 3, 2, 2, 3), (33, 9, 2, 8, 16), (2, 2, 2, 33, 33)], ids=str)
def test_tiles_that_order_depth_before_children_give_the_same(name, shape, call):
    args = inputs(*shape)[name]
    found = call(name, *args, DEPTH_FIRST=(torch.float64,))
    for ours, expected in zip(found, call(name, *args), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


# The shapes of benchmarks/routing.py, made small for the interpreter: every d and e, with children and parents for
# more than one tile; and every combination of its counts, with 7 and 17 in place of 1,153 children and 1,000
# parents, which would take hours.
SIZES = [(2, 9, 2, d, e) for d, e in product((1, 5, 8, 16, 33), repeat=2)]
COUNTS = [(b, i, j, 8, 16) for b, i, j in product((3, 16), (1, 7), (1, 3, 17))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shapes", "depth_first"), [(SIZES, False), (SIZES, True), (COUNTS, False)], ids=["sizes", "depth first", "counts"]
)
def test_routing_equals_the_reference_at_the_shapes_of_the_benchmarks(shapes, depth_first, worker):
    for shape in shapes:
        tensors = arguments(shape)
        dtypes = (torch.float64,) if depth_first else ()
        found = _in(worker, _route, tensors, {"iterations": 2}, {"DEPTH_FIRST": dtypes})
        torch.testing.assert_close(
            found, by(routed_reference, tensors, iterations=2), msg=lambda message, at=shape: f"{at}: {message}"
        )


@pytest.mark.parametrize("t", [2, 3])
def test_gradients_are_summed_over_the_iterations(t, call):
    args = inputs(2, 3, 2, 2, 3, t=t)["gradients"]
    torch.testing.assert_close(call("gradients", *args), reference_results("gradients", *args))


@pytest.mark.parametrize("name", ["weighted_sum", "agreement_gradient"])
@pytest.mark.parametrize("splits", [1, 2, 100], ids=["no split", "uneven splits", "a split a tile"])
def test_children_may_be_split_among_programs(name, splits, call):
    args = inputs(2, 33, 1, 8, 3)[name]  # five tiles of children, the last with one child
    torch.testing.assert_close(call(name, *args, SPLITS=splits), reference_results(name, *args))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_parent_whose_prior_is_minus_infinity_has_couplings_of_zero(name, call):
    children, weight, parent_sum, prior, *others = inputs(2, 3, 3, 2, 3)[name]
    prior[:, 0] = -torch.inf
    args = (children, weight, parent_sum, prior, *others)
    torch.testing.assert_close(call(name, *args), reference_results(name, *args))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logits_beyond_the_exponential_overflow_nothing(name, call):
    children, weight, parent_sum, prior, *others = inputs(2, 3, 3, 2, 3, dtype=torch.float32)[name]
    args = (children, weight, parent_sum, prior * 1000, *others)
    torch.testing.assert_close(call(name, *args), reference_results(name, *args))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_layout_in_memory_does_not_matter(name, call):
    args = inputs(2, 3, 2, 4, 3)[name]
    transposed = [t.mT.contiguous().mT if isinstance(t, torch.Tensor) else t for t in args]
    assert not any(t.is_contiguous() for t in transposed if isinstance(t, torch.Tensor))
    torch.testing.assert_close(call(name, *transposed), reference_results(name, *args))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_batch_has_empty_sums_and_zero_gradients(name, call):
    args = inputs(0, 7, 3, 5, 8)[name]
    torch.testing.assert_close(call(name, *args), reference_results(name, *args))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_are_at_most_twice_the_references_and_sums_are_float32(name, dtype, call):
    children, weight, parent_sum, prior, *others = inputs(64, 16, 3, 8, 16, dtype=dtype)[name]
    args = (children, weight, parent_sum, 10 * prior, *others)  # so that a logit's own rounding shows
    exact = reference_results(name, *(t.double() if isinstance(t, torch.Tensor) else t for t in args))
    for truth, ours, its in zip(exact, call(name, *args), reference_results(name, *args), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - truth).abs().mean() <= 2 * (its - truth).abs().mean()


def test_gradients_too_large_for_float16_are_finite(call):
    children, weight, parent_sum, prior, none_of_the_above, grad = inputs(2, 3, 2, 2, 3, dtype=torch.float16)[
        "gradients"
    ]
    found = call("gradients", children, weight, parent_sum, prior, none_of_the_above, grad.float() * 1e6)
    expected = call("gradients", children, weight, parent_sum, prior, none_of_the_above, grad)
    torch.testing.assert_close(found, [t * 1e6 for t in expected], rtol=1e-3, atol=1e2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_tensor_has_the_size_of_the_logits(name, worker):
    b, i, j, t = 64, 64, 8, 2
    args = inputs(b, i, j, 1, 2, t=t, prior=False, dtype=torch.float32)[name]
    largest = _in(worker, _largest, name, args)
    assert largest <= 3 * t * b * i * 4 < b * i * j * 4  # the statistics: three numbers per image, child and iteration


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_matrix_too_large_for_a_multiprocessor_is_refused_with_its_size(name, call):
    with pytest.raises(InputError, match="a vote's matrix of 129 x 128 numbers does not fit a GPU"):
        call(name, *inputs(1, 1, 1, 129, 128)[name])
