"""Routing's three passes on a processor, compiled for it from `native.c` by the machine's C compiler.

The compiler is asked once for each dtype and size of the capsules. Without a compiler, or for what it is not worth,
`streaming` does the same in plain PyTorch.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from capsnet.ops import passes
from capsnet.ops.compiler import address, aligned, library_for_this_cpu
from capsnet.ops.passes import Gradients
from capsnet.ops.squash import sum_dtype
from capsnet.ops.streaming import empty_gradients

SOURCE = Path(__file__).with_suffix(".c")
FUNCTIONS = ("lanes", "per_word", "scratch_size", "even_sum", "weighted_sum", "gradients")
WIDEST = 64  # dimensions of a capsule, of which a matrix fits the registers


class Shape(ctypes.Structure):
    """How many of everything there are: the struct of the same name in `native.c`."""

    _fields_ = [(name, ctypes.c_long) for name in ("children", "parents", "blocks", "none_of_the_above", "workers")]


class Passes(passes.Passes):
    """See `passes.Passes`."""

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        super().__init__(weight, prior, none_of_the_above)
        self.exact = sum_dtype(children)
        library = compiled(_dtype_of(children, weight), *weight.shape[2:])
        assert library is not None  # as `lacking` has found
        self.library, self.images, self.lanes = library, len(children), library.lanes()
        self.pairs = library.per_word() == 2
        children, weight = (t if self.pairs else t.to(self.exact) for t in (children, weight))
        self.weight = aligned(weight)
        self.words = torch.stack((weight[:, :, ::2], weight[:, :, 1::2]), dim=-1) if self.pairs else self.weight
        self.prior = None if prior is None else aligned(prior.to(self.exact))
        self.x = self._in_lanes(
            aligned(children).view(torch.int32) if self.pairs else children
        )  # [blocks, i, d, lanes]
        blocks, i = self.x.shape[:2]
        sums = blocks * self.lanes * weight.shape[1] * weight.shape[3]
        most = max(1, (self.x.numel() + weight.numel()) // max(1, sums))  # whose sums take no more than what is given
        self.shape = Shape(i, weight.shape[1], blocks, none_of_the_above, min(torch.get_num_threads(), i, most))

    def even_sum(self) -> Tensor:
        """See `passes.Passes.even_sum`."""
        sums = self._empty_sums()
        self._call("even_sum", self.x, self.words, sums)
        return self._in_rows(sums.sum(dim=0))  # over workers

    def weighted_sum(self, agreed: Tensor) -> Tensor:
        """See `passes.Passes.weighted_sum`."""
        return self._sum(agreed, None)

    def pull(self, agreed: Tensor, grad: Tensor) -> Tensor:
        """See `passes.Passes.pull`."""
        return self._sum(agreed, self._in_lanes(grad))

    def gradients(
        self, agreed: Tensor, grad: Tensor, even: Tensor | None, through: bool, needs: Sequence[bool]
    ) -> Gradients:
        """See `passes.Passes.gradients`."""
        times, (agreed, grad) = len(grad), (self._in_lanes(many) for many in (agreed, grad))
        even = None if even is None else self._in_lanes(even)
        given = self.x, self.words, self.weight, agreed, self.prior, grad, even
        to_x = torch.empty_like(self.x) if needs[0] else None
        _, *others = empty_gradients((None, self.weight, self.prior), needs, self.exact)
        self._call("gradients", times, int(through), *given, to_x, *others, self._scratch(times))
        return None if to_x is None else self._in_rows(to_x).view(self.weight.dtype), others[0], others[1]

    def _sum(self, agreed: Tensor, grad: Tensor | None) -> Tensor:
        sums = self._empty_sums()
        given = self.x, self.words, self._in_lanes(agreed), self.prior, grad
        self._call("weighted_sum", *given, sums, self._scratch(1))
        return self._in_rows(sums.sum(dim=0))  # over workers

    def _empty_sums(self) -> Tensor:
        workers, blocks, (_, j, _, e) = self.shape.workers, self.shape.blocks, self.weight.shape
        return self.x.new_zeros(workers, blocks, j, e, self.lanes, dtype=self.exact)

    def _scratch(self, times: int) -> Tensor:
        size = self.library.scratch_size(ctypes.byref(self.shape), ctypes.c_long(times))
        return self.x.new_empty(self.shape.workers, size, self.lanes, dtype=self.exact)

    def _call(self, name: str, *given: Tensor | int | None) -> None:
        numbers = (ctypes.c_long(a) if isinstance(a, int) else address(a) for a in given)
        getattr(self.library, name)(ctypes.byref(self.shape), *numbers)

    def _in_lanes(self, rows: Tensor) -> Tensor:
        """Images side by side, with zeros to fill the last block: [..., b, n, m] → [..., blocks, n, m, lanes]."""
        if missing := -self.images % (self.lanes * (1 + self.pairs)):
            rows = pad(rows, (0, 0, 0, 0, 0, missing))
        return aligned(rearrange(rows, "... (blocks lanes) n m -> ... blocks n m lanes", lanes=self.lanes))

    def _in_rows(self, blocks: Tensor) -> Tensor:
        """The images again: [blocks, n, m, lanes] → [b, n, m]."""
        return rearrange(blocks, "blocks n m lanes -> (blocks lanes) n m")[: self.images]


def lacking(children: Tensor, weight: Tensor) -> str:
    """What keeps compiled code from routing these tensors, in words; nothing where it can."""
    d, e = weight.shape[2:]
    if children.device.type != "cpu":
        return f"it takes the processor, and the children are on {children.device.type}"
    if not (children.numel() and weight.numel()):
        return "there is nothing to route"
    if max(d, e) > WIDEST:
        return f"capsules of {d} and {e} dimensions are wider than {WIDEST}"
    found = compiled(_dtype_of(children, weight), d, e)
    return "" if found is not None else "there is no C compiler that works"


def _dtype_of(children: Tensor, weight: Tensor) -> torch.dtype:
    """What code is compiled for: bf16, whose numbers it takes in pairs where the processor can, or the sums' dtype."""
    in_pairs = children.dtype == torch.bfloat16 and not any(size % 2 for size in weight.shape[2:])
    return torch.bfloat16 if in_pairs else sum_dtype(children)


@cache
def compiled(dtype: torch.dtype, d: int, e: int) -> ctypes.CDLL | None:
    """The library for capsules of d and e dimensions, or None, with one warning, where no compiler can make it."""
    single = ("-DREAL=float", "-DSINGLE")
    real = {torch.bfloat16: (*single, "-DPAIRS"), torch.float32: single, torch.float64: ("-DREAL=double",)}[dtype]
    library = library_for_this_cpu(SOURCE, [*real, f"-DD={d}", f"-DE={e}"], FUNCTIONS, "routing")
    if library is not None:
        library.scratch_size.restype = ctypes.c_long
    return library
