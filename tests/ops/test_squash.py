"""The squash is Eq. 1 of the paper along the last axis, differentiable at zero; compiled code computes the same."""

import logging

import pytest
import torch

from capsnet.ops import squash as module
from capsnet.ops.squash import plain_squash, squash, squash_gradient
from tests.ops.gradients import with_gradients
from tests.ops.helpers import no_compiler

# PyTorch's own warning, when it loads its forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
WAYS = ["plain", pytest.param("compiled", marks=no_compiler)]


@pytest.fixture(autouse=True, params=WAYS)
def way(request, monkeypatch):
    """Run each test in plain PyTorch and by compiled code, even for few capsules."""
    monkeypatch.setattr(module, "MANY", 1 if request.param == "compiled" else float("inf"))
    return request.param


only_compiled = pytest.mark.parametrize("way", WAYS[1:], indirect=True)


def vectors(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("length", [1e-6, 0.01, 0.5, 1, 3, 1000])
def test_a_vector_of_length_s_becomes_one_of_length_s2_over_1_plus_s2(length):
    s = torch.nn.functional.normalize(vectors(20, 8), dim=-1) * length
    expected = torch.full((20,), length**2 / (1 + length**2), dtype=torch.float64)
    torch.testing.assert_close(squash(s).norm(dim=-1), expected, rtol=1e-12, atol=0)


def test_the_direction_is_kept():
    s = vectors(20, 8)
    v = squash(s)
    torch.testing.assert_close(v / v.norm(dim=-1, keepdim=True), s / s.norm(dim=-1, keepdim=True))


def test_each_vector_along_the_last_axis_is_squashed_on_its_own():
    s = vectors(4, 3, 5)
    together = squash(s)
    for b in range(4):
        for i in range(3):
            torch.testing.assert_close(together[b, i : i + 1], squash(s[b, i : i + 1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_at_a_zero_vector_the_result_and_the_gradient_are_exactly_zero(dtype):
    s = torch.zeros(2, 8, dtype=dtype, requires_grad=True)
    v = squash(s)
    v.sum().backward()
    assert v.dtype == dtype
    assert torch.equal(v, torch.zeros_like(v))
    assert torch.equal(s.grad, torch.zeros_like(s))


def test_a_zero_vector_changes_no_gradient_of_its_neighbours():
    s = vectors(3, 8)
    alone = torch.func.grad(lambda s: squash(s).sum())(s[1])
    s[0] = s[2] = 0
    assert torch.equal(torch.func.grad(lambda s: squash(s).sum())(s)[1], alone)


def test_first_and_second_derivatives_are_those_of_finite_differences():
    s = vectors(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(squash, s)
    assert torch.autograd.gradgradcheck(squash, s)


def test_a_long_vector_in_float16_comes_close_to_length_1():
    assert squash(torch.tensor([300.0, 400.0], dtype=torch.float16)).tolist() == pytest.approx([0.6, 0.8], rel=1e-3)


# The same capsules [b, n, m, e] in memory of other orders.
LAYOUTS = {
    "contiguous": lambda s: s,
    "as a convolution gives them": lambda s: s.movedim(1, 2).contiguous().movedim(2, 1),
    "with a capsule's numbers apart": lambda s: s.mT.contiguous().mT,
    "every second capsule": lambda s: s.repeat_interleave(2, dim=2)[:, :, ::2],
    "one capsule repeated": lambda s: s[:, :1].expand_as(s),
}


def exact_squash(s):
    """In float64, and then rounded."""
    return plain_squash(s.double()).to(s.dtype)


def of(function, layout):
    """A function of capsules in that order."""
    return lambda s: function(LAYOUTS[layout](s))


@only_compiled
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("e", [1, 2, 8, 33, 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_code_gives_what_plain_pytorch_gives(layout, e, dtype):
    s = vectors(3, 4, 5, e).to(dtype)
    assert type(squash(s.clone().requires_grad_()).grad_fn).__name__ == "CompiledSquashBackward"
    expected = with_gradients(of(exact_squash, layout), s)
    torch.testing.assert_close(with_gradients(of(squash, layout), s), expected)


@only_compiled
@pytest.mark.parametrize("shape", [(8,), (3, 8), (3, 4, 8), (2, 3, 4, 8), (2, 2, 3, 4, 8)], ids=str)
def test_capsules_may_have_any_number_of_axes(shape):
    s = vectors(*shape)
    torch.testing.assert_close(with_gradients(squash, s), with_gradients(plain_squash, s))


@only_compiled
def test_a_gradient_may_be_one_number_repeated():
    s = vectors(3, 5, 8).requires_grad_()
    found, expected = (torch.autograd.grad(f(s).sum(), s) for f in (squash, plain_squash))
    torch.testing.assert_close(found, expected)


@only_compiled
def test_the_gradient_has_the_strides_of_the_capsules():
    s = LAYOUTS["as a convolution gives them"](vectors(3, 4, 5, 8)).requires_grad_()
    (found,) = torch.autograd.grad(squash(s).sum(), s)
    assert found.stride() == s.stride() != torch.empty(s.shape).stride()


@only_compiled
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_errors_are_at_most_twice_those_of_plain_pytorch(dtype):
    s = vectors(50, 40, 8).to(dtype)
    exact = with_gradients(lambda s: plain_squash(s.double()), s)
    ours, its = (
        [(a - b).abs().mean() for a, b in zip(with_gradients(f, s), exact, strict=True)] for f in (squash, plain_squash)
    )
    assert all(error <= 2 * bound for error, bound in zip(ours, its, strict=True))


@only_compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_where_they_are(dtype):
    s = vectors(5, 8).to(dtype)
    s[1, 3], s[3, 0] = torch.nan, torch.inf
    found = with_gradients(squash, s)
    assert [t.isnan().any(dim=-1).tolist() for t in found] == [[False, True, False, True, False]] * 2


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_an_axis_of_vmap_may_stand_anywhere(rows):
    s = vectors(3, 4, 5, 8)
    found = torch.func.vmap(squash, in_dims=rows, out_dims=rows)(s)
    torch.testing.assert_close(found, plain_squash(s))


def test_derivatives_of_torch_func_are_those_of_plain_pytorch():
    s, tangent = vectors(3, 4), vectors(3, 4)
    for derive in (
        torch.func.jacrev,
        torch.func.jacfwd,
        torch.func.hessian,
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: torch.func.vmap(torch.func.grad(lambda s: f(s).sum())),
        lambda f: lambda s: torch.func.jvp(f, (s,), (tangent,)),
    ):
        torch.testing.assert_close(derive(squash)(s), derive(plain_squash)(s))


def test_derivatives_in_forward_mode_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(squash, vectors(3, 4).requires_grad_(), check_forward_ad=True)


def test_many_gradients_may_be_taken_at_once():
    s, grads = vectors(3, 4).requires_grad_(), vectors(6, 3, 4)
    found, expected = (torch.autograd.grad(f(s), s, grads, is_grads_batched=True) for f in (squash, plain_squash))
    torch.testing.assert_close(found, expected)


def test_it_compiles_without_a_graph_break():
    s = vectors(3, 8)
    compiled = torch.compile(squash, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled, s), with_gradients(plain_squash, s))


@only_compiled
def test_threads_may_share_the_capsules():
    s = vectors(5, 4, 8)
    alone = with_gradients(squash, s)
    torch.set_num_threads(2)
    try:
        assert all(torch.equal(a, b) for a, b in zip(alone, with_gradients(squash, s), strict=True))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_alone_is_that_of_the_squash(dtype):
    s, grad = vectors(2, 3, 8).to(dtype)
    (expected,) = torch.func.vjp(plain_squash, s.double())[1](grad.double())
    torch.testing.assert_close(squash_gradient(s, grad), expected.to(dtype))


@only_compiled
def test_without_a_compiler_it_runs_in_plain_pytorch_and_logs_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module._compiled.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            s = vectors(3, 8)
            assert torch.equal(squash(s), plain_squash(s))
        assert ["the squash is not compiled" in line for line in caplog.messages] == [True]
    finally:
        module._compiled.cache_clear()
