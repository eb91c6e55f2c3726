"""The native backend: the passes of routing in C (`native.c`), compiled for this CPU by the machine's C compiler.

The compiler runs once for each dtype and size of the capsules. `streaming` takes over where it does not work.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from capsnet.ops.compiler import address, aligned, library_for_this_cpu
from capsnet.ops.passes import Gradients, Passes
from capsnet.ops.squash import sum_dtype
from capsnet.ops.streaming import empty_gradients

SOURCE = Path(__file__).with_suffix(".c")
FUNCTIONS = ("lanes", "per_word", "scratch_size", "uniform_sum", "weighted_sum", "gradients")
WIDEST = 64  # dimensions of a capsule whose matrix fits the registers


class Shape(ctypes.Structure):
    """The struct of the same name in `native.c`: how many children, parents, blocks of images and threads there are."""

    _fields_ = [(name, ctypes.c_long) for name in ("children", "parents", "blocks", "none_of_the_above", "workers")]


class Native(Passes):
    """See `Passes`."""

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        super().__init__(weight, prior, none_of_the_above)
        self.sum_dtype = sum_dtype(children)
        library = compiled(_compiled_dtype(children, weight), *weight.shape[2:])
        assert library is not None  # as `unavailable` has found
        self.library, self.images, self.lanes = library, len(children), library.lanes()
        self.pairs = library.per_word() == 2
        children, weight = (t if self.pairs else t.to(self.sum_dtype) for t in (children, weight))
        self.weight = aligned(weight)
        self.words = torch.stack((weight[:, :, ::2], weight[:, :, 1::2]), dim=-1) if self.pairs else self.weight
        self.prior = None if prior is None else aligned(prior.to(self.sum_dtype))
        # [blocks, i, d, lanes], where two neighbours of d are one number if they come in pairs
        self.x = self._to_lanes(aligned(children).view(torch.int32) if self.pairs else children)
        blocks, i = self.x.shape[:2]
        sums = blocks * self.lanes * weight.shape[1] * weight.shape[3]
        most = max(1, (self.x.numel() + weight.numel()) // max(1, sums))  # so that sums are no larger than the inputs
        self.shape = Shape(i, weight.shape[1], blocks, none_of_the_above, min(torch.get_num_threads(), i, most))

    def uniform_sum(self) -> Tensor:
        """See `Passes.uniform_sum`."""
        sums = self._zero_sums()
        self._call("uniform_sum", self.x, self.words, sums)
        return self._from_lanes(sums.sum(dim=0))  # over workers

    def weighted_sum(self, parent_sum: Tensor) -> Tensor:
        """See `Passes.weighted_sum`."""
        return self._sum(parent_sum, None)

    def agreement_gradient(self, parent_sum: Tensor, grad: Tensor) -> Tensor:
        """See `Passes.agreement_gradient`."""
        return self._sum(parent_sum, self._to_lanes(grad))

    def gradients(
        self,
        parent_sums: Tensor,
        grad: Tensor,
        grad_uniform: Tensor | None,
        through_agreement: bool,
        needs: Sequence[bool],
    ) -> Gradients:
        """See `Passes.gradients`."""
        times, (parent_sums, grad) = len(grad), (self._to_lanes(many) for many in (parent_sums, grad))
        grad_uniform = None if grad_uniform is None else self._to_lanes(grad_uniform)
        given = self.x, self.words, self.weight, parent_sums, self.prior, grad, grad_uniform
        grad_x = torch.empty_like(self.x) if needs[0] else None
        _, grad_weight, grad_prior = empty_gradients((None, self.weight, self.prior), needs, self.sum_dtype)
        results = grad_x, grad_weight, grad_prior
        self._call("gradients", times, int(through_agreement), *given, *results, self._scratch(times))
        grad_children = None if grad_x is None else self._from_lanes(grad_x).view(self.weight.dtype)
        return grad_children, grad_weight, grad_prior

    def _sum(self, parent_sum: Tensor, grad: Tensor | None) -> Tensor:
        sums = self._zero_sums()
        given = self.x, self.words, self._to_lanes(parent_sum), self.prior, grad
        self._call("weighted_sum", *given, sums, self._scratch(1))
        return self._from_lanes(sums.sum(dim=0))  # over workers

    def _zero_sums(self) -> Tensor:
        workers, blocks, (_, j, _, e) = self.shape.workers, self.shape.blocks, self.weight.shape
        return self.x.new_zeros(workers, blocks, j, e, self.lanes, dtype=self.sum_dtype)

    def _scratch(self, times: int) -> Tensor:
        size = self.library.scratch_size(ctypes.byref(self.shape), ctypes.c_long(times))
        return self.x.new_empty(self.shape.workers, size, self.lanes, dtype=self.sum_dtype)

    def _call(self, name: str, *given: Tensor | int | None) -> None:
        numbers = (ctypes.c_long(a) if isinstance(a, int) else address(a) for a in given)
        getattr(self.library, name)(ctypes.byref(self.shape), *numbers)

    def _to_lanes(self, rows: Tensor) -> Tensor:
        """One image per lane, zeros in the last block's padding: [..., b, n, m] → [..., blocks, n, m, lanes]."""
        if missing := -self.images % (self.lanes * (1 + self.pairs)):
            rows = pad(rows, (0, 0, 0, 0, 0, missing))
        return aligned(rearrange(rows, "... (blocks lanes) n m -> ... blocks n m lanes", lanes=self.lanes))

    def _from_lanes(self, blocks: Tensor) -> Tensor:
        """The inverse, without the padding: [blocks, n, m, lanes] → [b, n, m]."""
        return rearrange(blocks, "blocks n m lanes -> (blocks lanes) n m")[: self.images]


def unavailable(children: Tensor, weight: Tensor) -> str:
    """Why compiled code cannot route these tensors; an empty string if it can."""
    d, e = weight.shape[2:]
    if children.device.type != "cpu":
        return f"it needs a CPU, and the children are on {children.device.type}"
    if not (children.numel() and weight.numel()):
        return "there is nothing to route"
    if max(d, e) > WIDEST:
        return f"capsules of {d} and {e} dimensions are wider than {WIDEST}"
    found = compiled(_compiled_dtype(children, weight), d, e)
    return "" if found is not None else "there is no C compiler that works"


def _compiled_dtype(children: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype to compile for: bf16 where its numbers come in pairs, else the dtype of the sums."""
    in_pairs = children.dtype == torch.bfloat16 and not any(size % 2 for size in weight.shape[2:])
    return torch.bfloat16 if in_pairs else sum_dtype(children)


@cache
def compiled(dtype: torch.dtype, d: int, e: int) -> ctypes.CDLL | None:
    """The library for capsules of d and e dimensions; None, with one warning, if it cannot be compiled."""
    single = ("-DREAL=float", "-DSINGLE")
    real = {torch.bfloat16: (*single, "-DPAIRS"), torch.float32: single, torch.float64: ("-DREAL=double",)}[dtype]
    library = library_for_this_cpu(SOURCE, [*real, f"-DD={d}", f"-DE={e}"], FUNCTIONS, "routing")
    if library is not None:
        library.scratch_size.restype = ctypes.c_long
    return library
