"""Helpers of the tests of routing: its backends, inputs, the reference, and a measurement of its memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capsnet.ops import native
from capsnet.ops.reference import dynamic_routing, vote
from tests.ops.gradients import with_gradients

no_compiler = pytest.mark.skipif(native.compiled(torch.float32, 8, 16) is None, reason="there is no C compiler")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
BACKENDS = ["streaming", pytest.param("native", marks=no_compiler), pytest.param("triton", marks=no_gpu)]


def inputs(b, i, j, d, e, dtype=torch.float64, device="cpu"):
    """Children [b, i, d] and a weight [i, j, d, e] of such a size that the parents are neither long nor short."""
    children, weight = torch.randn(b, i, d), torch.randn(i, j, d, e) * (j / (i * d)) ** 0.5
    return children.to(device, dtype), weight.to(device, dtype)


def arguments(shape, *extras, backend="streaming", dtype=torch.float64):
    """Arguments of `route` by name: children and a weight of shape (b, i, j, d, e); the extras are prior and bias."""
    device = "cuda" if backend == "triton" else "cpu"
    children, weight = inputs(*shape, dtype, device)
    _, i, j, _, e = shape
    shapes = {"prior": (i, j), "bias": (j, e)}
    return {"children": children, "weight": weight} | {
        name: torch.randn(shapes[name]).to(device, dtype) for name in extras
    }


def reference(children, weight, *args, **options):
    return dynamic_routing(vote(children, weight), *args, **options)


def by(function, tensors, **options):
    """A function's result for tensors by name, and their gradients."""
    return with_gradients(
        lambda *values: function(**dict(zip(tensors, values, strict=True)), **options), *tensors.values()
    )


# i and d are above 1: under autocast, the reference stays in float32 where it has nothing to sum.
ERROR_SHAPES = [
    (64, 7, 3, 5, 8),
    (64, 7, 1, 5, 33),
    (32, 7, 100, 16, 5),
    (32, 7, 3, 33, 33),
    (64, 7, 50, 16, 1),
    (8, 1153, 3, 8, 16),
]


# In some draws one image's routing is so ill-conditioned that its error dominates. Whether our or the reference's error
# is then larger is chance: in 40 draws of one shape the ratio was 0.6 to 3.9, and typically 1.1.
DRAWS = 8


def assert_errors_at_most_twice_the_references(ours, its, draw, dtype):
    """Compare the errors of `ours` and `its` for tensors made by `draw`: geometric means over draws of the mean error.

    Both are compared with the reference in float64: the parents, and the gradient for each tensor.
    """
    errors = []
    for _ in range(DRAWS):
        tensors = draw()
        exact = by(reference, {name: t.double() for name, t in tensors.items()})
        results = by(ours, tensors), by(its, tensors)
        assert {t.dtype for t in results[0]} == {dtype}
        errors.append([[(t - truth).abs().mean() for t, truth in zip(r, exact, strict=True)] for r in results])
    found, expected = torch.tensor(errors, dtype=torch.float64).log().mean(dim=0).exp()  # over draws
    for name, error, bound in zip(["parents", *tensors], found, 2 * expected, strict=True):
        assert error <= bound, name


class LargestTensor(TorchDispatchMode):
    """Records the most bytes of any operation's result, also in the backward pass.

    Views of the known tensors do not count.
    """

    def __init__(self, *known):
        super().__init__()
        self.nbytes, self.known = 0, {t.untyped_storage().data_ptr() for t in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result
