"""An implementation of routing is timed only if its results are those of naive PyTorch."""

import pytest
import torch

from implementations import Implementation, Shape, check, implementations, inputs
from measuring import WrongResult, in_turns, median_ratio
from naive import naive_route
from routing import route_peak

CPU = torch.device("cpu")
SMALL = Shape(2, 7, 3, 5, 8)


def with_wrong_parents(children, weight):
    return 1.001 * naive_route(children, weight)


def with_wrong_gradients(children, weight):
    return naive_route(children, weight) + 0.01 * (children - children.detach()).sum()


def wrong_in_float32(children, weight):
    return naive_route(children, weight) * (1 if children.dtype == torch.float64 else 1.001)


def nan_in_float32(children, weight):
    return naive_route(children, weight) * (1 if children.dtype == torch.float64 else torch.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["naive", "auto", "streaming"])
def test_what_the_package_has_is_accepted(name, dtype):
    check(name, implementations(SMALL, CPU)[name], SMALL, dtype, CPU)


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (with_wrong_parents, "wrong in float64: parents"),
        (with_wrong_gradients, "wrong in float64: gradient for the children"),
        (wrong_in_float32, r"wrong in torch\.float32: parents"),
        (nan_in_float32, r"wrong in torch\.float32: parents off by nan"),
    ],
)
def test_a_fake_backend_with_a_wrong_result_is_refused(fake, words):
    with pytest.raises(WrongResult, match=rf"fake routes \(2, 7, 3, 5, 8\) {words}"):
        check("fake", Implementation(fake), SMALL, torch.float32, CPU)


def test_a_backend_that_cannot_run_here_is_left_out():
    assert "triton" not in implementations(SMALL, CPU)


def test_the_same_shape_has_the_same_inputs():
    for one, other in zip(inputs(SMALL, torch.float32, CPU), inputs(SMALL, torch.float32, CPU), strict=True):
        assert torch.equal(one, other)


def test_every_call_is_made_once_a_round_after_a_first_call_that_does_not_count():
    calls = []
    results = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert {name: len(of) for name, of in results.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_over_rounds_so_that_one_disturbed_round_does_not_count():
    assert median_ratio([4.0, 4.0, 4.0], [1.0, 9.0, 1.0]) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory is measured on the GPU where there is one")
def test_the_peak_of_naive_pytorch_holds_its_votes():
    shape = Shape(32, 1152, 20)
    assert route_peak("naive", shape) > 4 * shape.votes
