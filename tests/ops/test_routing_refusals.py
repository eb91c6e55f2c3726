"""Inputs that routing cannot take are refused before any work, with the value and the remedy."""

import pytest
import torch

from capsnet.errors import InputError
from capsnet.ops.routing import route
from tests.ops.helpers import arguments, inputs

SHAPE = (2, 7, 3, 5, 8)


@pytest.mark.parametrize("iterations", [0, -1])
def test_fewer_than_one_iteration_is_refused(iterations):
    with pytest.raises(InputError, match=f"routing takes at least one iteration, not {iterations}"):
        route(*inputs(*SHAPE), iterations)


def test_an_unknown_gradient_is_refused():
    with pytest.raises(InputError, match="gradient is 'all' or 'last', not 'first'"):
        route(*inputs(*SHAPE), gradient="first")


@pytest.mark.parametrize(
    ("children", "weight"),
    [((2, 6, 5), (7, 3, 5, 8)), ((2, 7, 4), (7, 3, 5, 8)), ((7, 5), (7, 3, 5, 8)), ((2, 7, 5), (7, 5, 8))],
)
def test_children_and_a_weight_that_do_not_match_are_refused_with_their_shapes(children, weight):
    with pytest.raises(InputError, match="do not match") as refusal:
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
def test_a_prior_or_bias_of_the_wrong_shape_is_refused(option, shape, message):
    with pytest.raises(InputError, match=message):
        route(*inputs(*SHAPE), **{option: torch.zeros(shape, dtype=torch.float64)})


@pytest.mark.parametrize("name", ["weight", "prior", "bias"])
def test_devices_that_differ_are_refused(name):
    tensors = arguments(SHAPE, "prior", "bias")
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(InputError, match=f"children are on cpu and {name} on meta: move both to one device"):
        route(**tensors)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", ["children", "weight", "prior", "bias"])
def test_tensors_that_are_not_floating_point_are_refused(name, dtype):
    tensors = arguments(SHAPE, "prior", "bias")
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(InputError, match=f"{name} must be floating-point numbers, not {dtype}"):
        route(**tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_children_and_a_weight_of_two_dtypes_are_refused(dtype):
    children, weight = inputs(*SHAPE, dtype=torch.float32)
    message = f"children are torch.float32 and weight {dtype}: convert both to one dtype"
    with pytest.raises(InputError, match=message):
        route(children, weight.to(dtype))


def test_autocast_casts_no_float64():
    children, weight = inputs(*SHAPE)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="convert both to one dtype"):
        route(children, weight.float())


@pytest.mark.parametrize("name", ["prior", "bias"])
def test_a_prior_or_bias_that_would_be_rounded_is_refused(name):
    tensors = arguments(SHAPE, name, dtype=torch.float32)
    tensors[name] = tensors[name].double()
    with pytest.raises(InputError, match=f"{name} is torch.float64, but sums are torch.float32 for these children"):
        route(**tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_prior_and_a_bias_may_be_of_the_childrens_dtype_or_of_the_sums(dtype):
    tensors = arguments(SHAPE, "prior", "bias", dtype=torch.bfloat16)
    parents = route(**tensors)
    assert parents.dtype == torch.bfloat16
    assert torch.equal(route(**tensors | {name: tensors[name].to(dtype) for name in ("prior", "bias")}), parents)
