"""Routing uses the fastest backend that can run, or the forced one, or says why that cannot run."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from capsnet.errors import InputError
from capsnet.ops import autograd
from capsnet.ops.dispatch import choose_backend, choose_without_votes, routing_backend
from capsnet.ops.routing import route
from tests.ops.helpers import inputs, no_compiler

MANY = (64, 1152, 10, 8, 16)


def empties(b, i, j, d, e, device="cpu"):
    """Children and a weight whose numbers do not matter."""
    return torch.empty(b, i, d, device=device), torch.empty(i, j, d, e, device=device)


@pytest.mark.parametrize(
    ("shape", "chosen"),
    [
        ((1, 7, 3, 5, 8), "reference"),
        ((0, 7, 3, 5, 8), "reference"),
        (MANY, "native"),
        ((64, 1152, 10, 65, 16), "streaming"),
    ],
    ids=str,
)
@no_compiler
def test_the_fastest_backend_that_can_run_is_chosen(shape, chosen):
    assert choose_backend(*empties(*shape)) == chosen


@no_compiler
def test_where_votes_are_not_stored_streaming_replaces_the_reference_and_what_cannot_be_read_is_streamed():
    few, many = empties(1, 7, 3, 5, 8), empties(*MANY)
    assert choose_without_votes(*few) == "streaming"
    assert choose_without_votes(*many) == choose_backend(*many)
    with routing_backend("native"):
        assert choose_without_votes(*few) == "native"
        assert choose_without_votes(few[0].as_subclass(type("Wrapped", (torch.Tensor,), {})), few[1]) == "streaming"


def test_tensors_without_numbers_are_routed_too():
    children, weight = empties(*MANY, device="meta")
    assert route(children, weight).shape == (64, 10, 16)


@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_a_forced_backend_is_used_until_the_end_of_its_context(backend):
    before = choose_backend(*empties(*MANY))
    with routing_backend(backend):
        assert choose_backend(*empties(*MANY)) == backend
        with routing_backend("streaming"):
            assert choose_backend(*empties(*MANY)) == "streaming"
        assert choose_backend(*empties(*MANY)) == backend
    assert choose_backend(*empties(*MANY)) == before


def test_an_error_leaves_no_backend_forced():
    before = choose_backend(*empties(*MANY))
    with pytest.raises(ZeroDivisionError), routing_backend("reference"):
        _ = 1 / 0
    assert choose_backend(*empties(*MANY)) == before


def test_a_backward_pass_in_another_thread_uses_the_forced_backend(monkeypatch):
    taken = []
    monkeypatch.setattr(
        autograd, "backend_class", lambda name, found=autograd.backend_class: taken.append(name) or found(name)
    )
    children, weight = (t.requires_grad_() for t in inputs(2, 7, 3, 5, 8))
    with routing_backend("streaming"), ThreadPoolExecutor(1) as pool:
        pool.submit(route(children, weight).sum().backward).result()
    assert taken == ["streaming", "streaming"]


def test_an_unknown_backend_is_refused():
    with (
        pytest.raises(InputError, match="a routing backend is one of reference, streaming, native, triton, not 'slow'"),
        routing_backend("slow"),
    ):
        pass


CANNOT = {
    "native on meta": (
        "native",
        empties(2, 7, 3, 5, 8, "meta"),
        "it needs a CPU, and the children are on meta",
    ),
    "native, wide": ("native", empties(2, 7, 3, 65, 8), "capsules of 65 and 8 dimensions are wider than 64"),
    "native, empty": ("native", empties(0, 7, 3, 5, 8), "there is nothing to route"),
    "triton on a CPU": ("triton", empties(2, 7, 3, 5, 8), "it needs a CUDA device, and the children are on cpu"),
}


@pytest.mark.parametrize(("backend", "tensors", "reason"), CANNOT.values(), ids=CANNOT)
def test_a_backend_that_cannot_run_says_why(backend, tensors, reason):
    with (
        routing_backend(backend),
        pytest.raises(InputError, match=f"the {backend} backend of routing cannot run: {reason}"),
    ):
        route(*tensors)


@pytest.fixture
def no_compiler_at_hand(monkeypatch, nothing_compiled, tmp_path):
    """Set up a machine that has no C compiler and has never had one."""
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))


@pytest.mark.usefixtures("no_compiler_at_hand")
def test_without_a_compiler_routing_is_streamed_and_logs_so(caplog):
    assert choose_backend(*empties(*MANY)) == "streaming"
    assert "routing is not compiled and runs in plain PyTorch" in caplog.text


@pytest.mark.usefixtures("no_compiler_at_hand")
def test_without_a_compiler_the_native_backend_is_refused():
    with (
        routing_backend("native"),
        pytest.raises(InputError, match="the native backend of routing cannot run: there is no C compiler that works"),
    ):
        route(*inputs(2, 7, 3, 5, 8))
