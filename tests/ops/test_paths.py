"""The door to routing takes the fastest path that can run, or the one that was asked for, or says why it cannot."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from capsnet.errors import InputError
from capsnet.ops import fused
from capsnet.ops.paths import choose_path, routing_path
from capsnet.ops.routing import route
from tests.ops.routes import inputs, no_compiler

MANY = (64, 1152, 10, 8, 16)


def empties(b, i, j, d, e, device="cpu"):
    """Children and a weight of which only the shape matters."""
    return torch.empty(b, i, d, device=device), torch.empty(i, j, d, e, device=device)


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [((1, 7, 3, 5, 8), "twin"), ((0, 7, 3, 5, 8), "twin"), (MANY, "native"), ((64, 1152, 10, 65, 16), "streaming")],
    ids=str,
)
@no_compiler
def test_the_door_takes_the_fastest_path_there_is(shape, chosen):
    assert choose_path(*empties(*shape)) == chosen


def test_tensors_without_numbers_have_a_path_too():
    children, weight = empties(*MANY, device="meta")
    assert route(children, weight).shape == (64, 10, 16)


@pytest.mark.parametrize("path", ["twin", "streaming"])
def test_the_path_that_is_asked_for_is_taken_until_no_more_is_asked(path):
    before = choose_path(*empties(*MANY))
    with routing_path(path):
        assert choose_path(*empties(*MANY)) == path
        with routing_path("streaming"):
            assert choose_path(*empties(*MANY)) == "streaming"
        assert choose_path(*empties(*MANY)) == path
    assert choose_path(*empties(*MANY)) == before


def test_an_error_leaves_no_path_behind():
    before = choose_path(*empties(*MANY))
    with pytest.raises(ZeroDivisionError), routing_path("twin"):
        _ = 1 / 0
    assert choose_path(*empties(*MANY)) == before


def test_a_backward_pass_in_another_thread_takes_the_path_that_is_asked_for(monkeypatch):
    taken = []
    monkeypatch.setattr(fused, "passes_of", lambda path, found=fused.passes_of: taken.append(path) or found(path))
    children, weight = (t.requires_grad_() for t in inputs(2, 7, 3, 5, 8))
    with routing_path("streaming"), ThreadPoolExecutor(1) as pool:
        pool.submit(route(children, weight).sum().backward).result()
    assert taken == ["streaming", "streaming"]


def test_an_unknown_path_is_refused():
    with (
        pytest.raises(InputError, match="a routing path is one of twin, streaming, native, triton, not 'slow'"),
        routing_path("slow"),
    ):
        pass


CANNOT = {
    "native on meta": (
        "native",
        empties(2, 7, 3, 5, 8, "meta"),
        "it takes the processor, and the children are on meta",
    ),
    "native, wide": ("native", empties(2, 7, 3, 65, 8), "capsules of 65 and 8 dimensions are wider than 64"),
    "native, empty": ("native", empties(0, 7, 3, 5, 8), "there is nothing to route"),
    "triton on a processor": ("triton", empties(2, 7, 3, 5, 8), "it takes a CUDA device, and the children are on cpu"),
}


@pytest.mark.parametrize(("path", "tensors", "reason"), CANNOT.values(), ids=CANNOT)
def test_a_path_that_cannot_run_says_why(path, tensors, reason):
    with routing_path(path), pytest.raises(InputError, match=f"routing by {path} cannot run: {reason}"):
        route(*tensors)


@pytest.fixture
def no_compiler_at_hand(monkeypatch, nothing_compiled, tmp_path):
    """A machine whose C compiler is not there, and where none has been before."""
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))


@pytest.mark.usefixtures("no_compiler_at_hand")
def test_without_a_compiler_routing_is_streamed_and_says_so(caplog):
    assert choose_path(*empties(*MANY)) == "streaming"
    assert "routing is not compiled and runs in plain PyTorch" in caplog.text


@pytest.mark.usefixtures("no_compiler_at_hand")
def test_without_a_compiler_compiled_code_that_is_asked_for_is_refused():
    with (
        routing_path("native"),
        pytest.raises(InputError, match="routing by native cannot run: there is no C compiler that works"),
    ):
        route(*inputs(2, 7, 3, 5, 8))
