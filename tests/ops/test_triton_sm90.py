"""The kernels compiled for an H100, without one: they compile, fit its resources and take few launches."""

import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.helpers import arguments

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

PROGRAMS = Path(__file__).parents[2] / "benchmarks"
PAPER = (128, 1152, 10, 8, 16)
SHARED = 227 * 1024  # bytes that a program of an H100 may have, less the one KiB that each takes besides
NO_LAUNCH = {
    *("view", "_unsafe_view", "expand", "permute", "transpose", "t", "select", "slice", "unsqueeze", "detach", "alias"),
    *(
        "empty",
        "new_empty",
        "empty_like",
        "empty_strided",
        "new_empty_strided",
        "unbind",
        "is_same_size",
        "promote_types",
    ),
}


@pytest.fixture(scope="module")
def worker():
    """A process in which Triton compiles for an H100."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_start) as pool:
        yield lambda function, *args: pickle.loads(pool.submit(function, *args).result())


def _start():
    sys.path.insert(0, str(PROGRAMS))
    torch.set_num_threads(1)


def _rows(shape, dtype, prior):
    import kernels as program

    return pickle.dumps([row for row, _ in program.launched(program.Shape(*shape), dtype, prior)])


def _variants(shapes, dtype, prior):
    """How many variants of each kernel were compiled, by its optional tensors."""
    import kernels as program

    found = {}
    for shape in shapes:
        with program.compiling() as launches:
            program.route_and_back(program.Shape(*shape), dtype, prior)
        for launch in launches:
            found.setdefault((launch.kernel, launch.given), set()).add(launch.compiled.hash)
    return pickle.dumps({key: len(hashes) for key, hashes in found.items()})


class Launches(TorchDispatchMode):
    """Records the operations that launch a kernel on a GPU: all but views and allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in NO_LAUNCH:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _launches(tensors, dtype):
    """Triton's launches and the names of PyTorch's, of routing forward and backward."""
    import kernels as program
    from capsnet.ops import dispatch
    from capsnet.ops.routing import route

    dispatch._triton_unavailable = lambda *_: ""  # launches are compiled instead; tensors stay on the CPU
    leaves = {name: t.to(dtype).requires_grad_() for name, t in tensors.items()}
    with program.compiling() as launches, dispatch.routing_backend("triton"):
        with Launches() as forward:
            parents = route(**leaves)
        grad = torch.ones_like(parents)
        with Launches() as backward:
            torch.autograd.grad(parents, list(leaves.values()), grad)
    return pickle.dumps((len(launches), forward.names, backward.names))


@pytest.mark.parametrize(
    ("shape", "dtype", "prior"),
    [
        *product([PAPER], [torch.bfloat16, torch.float32], [False, True]),
        (PAPER, torch.float16, False),
        (PAPER, torch.float64, True),
        ((128, 1152, 10, 16, 32), torch.bfloat16, True),
        ((1, 7, 1, 1, 5), torch.bfloat16, True),
        ((128, 7, 3, 5, 8), torch.float32, False),
        ((2, 1153, 3, 33, 33), torch.float32, True),
    ],
    ids=str,
)
def test_every_kernel_compiles_for_an_h100_and_fits_its_registers_and_shared_memory(shape, dtype, prior, worker):
    rows = worker(_rows, shape, dtype, prior)
    assert {row["kernel"] for row in rows} == {
        *("statistics", "partial_sums", "children_gradient", "weight_gradient"),
        *("forward_step", "backward_start", "backward_step"),
    }
    for row in rows:
        assert row["shared"] < SHARED, row
        assert row["slots"] >= 132, row  # one program at least on each multiprocessor
        assert row["spills"] <= (256 if shape == PAPER and dtype.itemsize == 2 else 512), row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_at_the_papers_shape_no_kernel_has_just_more_programs_than_run_at_once(dtype, worker):
    rows = worker(_rows, PAPER, dtype, False)
    assert [row for row in rows if 1 < row["programs"] / row["slots"] < 1.4] == []


@pytest.mark.parametrize(
    ("images", "d", "e", "prior"), [((1, 5, 16), 8, 16, False), ((64, 65, 128), 5, 33, True)], ids=str
)
def test_kernels_are_compiled_once_for_all_counts_of_images_children_and_parents(images, d, e, prior, worker):
    shapes = [(b, i, j, d, e) for b, i, j in product(images, (1, 16, 17, 1152, 1153), (1, 10, 16))]
    variants = worker(_variants, shapes, torch.bfloat16, prior)
    assert {key: count for key, count in variants.items() if count != 1} == {}


@pytest.mark.parametrize("extras", [(), ("bias",), ("prior", "bias")], ids=str)
def test_three_iterations_forward_and_backward_are_at_most_20_launches(extras, worker):
    triton, forward, backward = worker(_launches, arguments(PAPER, *extras), torch.float32)
    assert triton + len(forward) + len(backward) <= 20, (triton, forward, backward)


def test_in_bfloat16_only_the_parents_their_gradient_and_the_bias_are_converted(worker):
    triton, forward, backward = worker(_launches, arguments(PAPER, "bias"), torch.bfloat16)
    assert sorted(forward + backward) == ["_to_copy"] * 4 + ["sum"]
    assert triton <= 17
