"""What the tests of routing share: its paths, inputs for them, the twin, and a watch on what it makes in memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capsnet.ops import native
from capsnet.ops.reference import dynamic_routing, vote
from tests.ops.gradients import with_gradients

no_compiler = pytest.mark.skipif(native.compiled(torch.float32, 8, 16) is None, reason="there is no C compiler")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
PATHS = ["streaming", pytest.param("native", marks=no_compiler), pytest.param("triton", marks=no_gpu)]


def inputs(b, i, j, d, e, dtype=torch.float64, device="cpu"):
    """Children [b, i, d] and a weight [i, j, d, e] of such a size that the parents are neither long nor short."""
    children, weight = torch.randn(b, i, d), torch.randn(i, j, d, e) * (j / (i * d)) ** 0.5
    return children.to(device, dtype), weight.to(device, dtype)


def arguments(shape, *extras, path="streaming", dtype=torch.float64):
    """What `route` takes, by name: children and a weight of shape (b, i, j, d, e); the extras are prior and bias."""
    device = "cuda" if path == "triton" else "cpu"
    children, weight = inputs(*shape, dtype, device)
    _, i, j, _, e = shape
    shapes = {"prior": (i, j), "bias": (j, e)}
    return {"children": children, "weight": weight} | {
        name: torch.randn(shapes[name]).to(device, dtype) for name in extras
    }


def twin(children, weight, *args, **options):
    return dynamic_routing(vote(children, weight), *args, **options)


def by(function, tensors, **options):
    """What a function gives for tensors by name, and their gradients."""
    return with_gradients(
        lambda *values: function(**dict(zip(tensors, values, strict=True)), **options), *tensors.values()
    )


# So many images that the mean error is no matter of luck; i and d are above 1, since autocast leaves a twin that sums
# nothing in float32.
ERROR_SHAPES = [
    (64, 7, 3, 5, 8),
    (64, 7, 1, 5, 33),
    (32, 7, 100, 16, 5),
    (32, 7, 3, 33, 33),
    (64, 7, 50, 16, 1),
    (8, 1153, 3, 8, 16),
]


def assert_errors_at_most_twice_the_twins(tensors, ours, its, dtype):
    """Hold parents and gradients of `tensors` to the twin's in float64."""
    exact = by(twin, {name: t.double() for name, t in tensors.items()})
    for name, truth, found, twins in zip(["parents", *tensors], exact, ours, its, strict=True):
        assert found.dtype == dtype, name
        assert (found - truth).abs().mean() <= 2 * (twins - truth).abs().mean(), name


class LargestTensor(TorchDispatchMode):
    """Watches every operation, those of the backward pass too, for the most bytes that a result has."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result
