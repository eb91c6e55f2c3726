"""The squash is Eq. 1 of the paper, along the last axis and smooth at zero."""

import pytest
import torch

from capsnet.ops.squash import squash


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


def test_a_zero_vector_spoils_no_gradient_beside_it():
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
