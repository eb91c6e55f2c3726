# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The Triton backend: routing on a GPU without stored votes, which are computed on chip like FlashAttention's scores.

A vote û_ij = x_i W_ij is needed twice: for its product with a parent's vector, and as a term of a weighted sum. Neither
needs the vote itself: û_ij·V_j = x_i·(W_ij V_j), and Σ_i c_ij û_ij = Σ_i (c_ij x_i) W_ij. For a tile of images and
children, both are one matrix product with the same tile of W, [images, e]·[e, children·d] and
[images, children·d]·[children·d, e], whatever the number of parents. The sum over the children needs the softmax over
all parents first. One pass over j computes its largest logit and its denominator, both of shape [b, i]. (Their
log-sum-exp would be one number, but loses digits where logits are large.) The programs that follow own one parent each.

On an H200, latency rather than arithmetic bounds a pass (the paper's network has 0.4 GFLOP a pass at b = 128, and W
fits in L2), so tiles are small and programs are many. 64 images by 64 rows of W (eight children of eight dimensions)
are the smallest tile that feeds a Hopper warpgroup's matrix instruction. Float32 is multiplied without that unit, and
without its rounding, in tiles of 32 images: a tile's numbers then stay in registers, and two to four programs share a
multiprocessor and hide each other's loads. If parents and images are too few for 132 multiprocessors, the children are
split too. There are no atomic additions, so equal inputs give equal bits. Bfloat16 is multiplied as it is; float16 is
multiplied as tf32, which has its digits and the range of float32 that gradients need. A launch costs as much as a pass
over a small batch, so one kernel does everything that follows a sum in an iteration, and an iteration takes at most
three launches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.passes import Gradients

INTERPRETED = triton.knobs.runtime.interpret
COUNT = tl.constexpr if INTERPRETED else int  # a loop's bound, which Triton's interpreter needs as a constant
SIDE = 16  # the smallest side of a matrix product
ROWS = 64  # rows of W in a tile, children · d, where votes are not too wide
LARGEST = 64 * 64  # numbers of W in a tile: more spill out of registers
MOST_CHILDREN = 8  # in a tile: with more, the logits and all arrays of their shape would spill
DEPTH_FIRST = (torch.bfloat16, torch.float16)  # dtypes whose products leave neighbouring columns in one thread
VECTORS = 128  # numbers of parents' vectors in a program that ends an iteration
TOGETHER = tl.constexpr(8)  # splits whose sums such a program loads at once
SPLITS = 64  # of the children, at most
MULTIPROCESSORS = 132  # of an H100; the same number on any GPU, so that sums have the same order
REGISTERS = 65536  # of a multiprocessor
# Registers that a thread may have, by kernel and bytes of a number, for tiles of at most SMALL numbers of W and for d
# and e that need no padding. Without the limit the compiler takes a few more, and one program fewer would run. What
# the limit spills is in results/kernels/sm_90.json.
SMALL = 64 * 16
MOST_REGISTERS = {
    "_statistics": {2: 128, 4: 96},
    "_partial_sums": {2: 128, 4: 168},
    "_children_gradient": {2: 168, 4: 168},
    "_weight_gradient": {2: 168, 4: 168},
}


class Shape(NamedTuple):
    """Numbers of images, children and parents; kernels are not specialised on them."""

    b: int
    i: int
    j: int


class Tile(NamedTuple):
    """What a program holds at once: images, children, and d and e, both padded to powers of two and as they are.

    With `depth_first` its rows of W list d before the children. That keeps a child's numbers in one thread where the
    tensor cores leave columns 0, 1, 8, 9, ... of a product in one thread. `vectors` is the number of parents in a
    program that ends an iteration.
    """

    images: int
    children: int
    depth: int
    width: int
    d: int
    e: int
    depth_first: bool
    vectors: int


class Arithmetic(NamedTuple):
    """The dtype of sums, the dtype of a matrix product's operands, and how the product may round them."""

    accumulator: tl.dtype
    operand: tl.dtype
    rounding: str


class Plan(NamedTuple):
    """Tile sizes and arithmetic, which follow from the shapes and dtypes of children and weight."""

    shape: Shape
    tile: Tile
    math: Arithmetic
    sum_dtype: torch.dtype
    size: int  # bytes of a number of children and weight
    warps: int  # of a program

    @property
    def blocks(self) -> int:
        """Tiles of children."""
        return int(triton.cdiv(self.shape.i, self.tile.children))

    @property
    def image_blocks(self) -> int:
        """Tiles of images."""
        return int(triton.cdiv(self.shape.b, self.tile.images))

    def most_registers(self, kernel: triton.JITFunction) -> int | None:
        """Registers that a thread of a kernel may have; None for no limit."""
        _, children, depth, width, d, e, *_ = self.tile
        small = (d, e) == (depth, width) and children * depth * width <= SMALL
        return MOST_REGISTERS.get(kernel.__name__, {}).get(self.size) if small else None

    def splits(self) -> tuple[int, int]:
        """Number of splits of the children with which all programs of `_partial_sums` run at once; tiles of a split."""
        slots = MULTIPROCESSORS * (REGISTERS // (32 * self.warps * (self.most_registers(_partial_sums) or 255)))
        splits = max(1, min(SPLITS, slots // max(1, self.shape.j * self.image_blocks)))
        tiles = triton.cdiv(self.blocks, splits)
        return max(1, triton.cdiv(self.blocks, max(1, tiles))), tiles


class Triton:
    """The backend: steps and passes over children [b, i, d] by weight [i, j, d, e], with logits that start at prior.

    Raises InputError if the matrix of one vote is too large for a multiprocessor.
    """

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        self.plan, self.none_of_the_above = _plan(children, weight), none_of_the_above
        self.children, self.weight = children.contiguous(), weight.contiguous()
        self.prior = self._to_sum_dtype(prior)

    def forward_step(
        self, iteration: int, parent_sum: Tensor | None, bias: Tensor | None, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.forward_step`."""
        partial, bias = self.partial_sums(parent_sum, None, 0), self._to_sum_dtype(bias)
        parents = torch.empty_like(sums[0])
        total = None if parent_sum is None else torch.empty_like(parents)
        self._end_iteration(_forward_step, partial, bias, parent_sum, sums, parents, total, iteration)
        return parents, parents if total is None else total

    def backward_start(self, sums: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend.backward_start`."""
        parent_sums, grad_sums = torch.empty_like(sums), torch.empty_like(sums)
        tensors = sums, self._to_sum_dtype(grad), parent_sums, grad_sums
        self._launch(_backward_start, self._ends(), *tensors, COUNT(len(sums)), warps=1)
        return parent_sums, grad_sums

    def backward_step(
        self, iteration: int, parent_sums: Tensor, grad_parent_sum: Tensor | None, sums: Tensor, grad_sums: Tensor
    ) -> Tensor:
        """See `Backend.backward_step`."""
        partial = self.partial_sums(parent_sums, grad_sums, iteration)
        total = torch.empty_like(sums[0])
        self._end_iteration(_backward_step, partial, grad_parent_sum, total, sums, grad_sums, iteration)
        return total

    def input_gradients(
        self, parent_sums: Tensor, grad_sums: Tensor, first: int, through_agreement: bool, needs: Sequence[bool]
    ) -> Gradients:
        """See `Backend.input_gradients`."""
        uniform = first == 0 and self.prior is None
        dtypes = self.children.dtype, self.weight.dtype, self.plan.sum_dtype
        return self.gradients(parent_sums, grad_sums, first + uniform, uniform, through_agreement, needs, dtypes)

    def partial_sums(self, parent_sum: Tensor | None, grad: Tensor | None, iteration: int) -> Tensor:
        """The weighted sum of the votes, or its gradient for the parent sum, over each split: [splits, b, j, e].

        Without `grad` it is s_j = Σ_i c_ij û_ij, where the logits are prior_ij + û_ij·V_j and V is parent_sum (None for
        zeros). With `grad` it is Σ_i p_ij û_ij, the gradient of Σ_j s_j·grad_j for parent_sum, where p_ij = c_ij
        (a_ij - Σ_k c_ik a_ik) is the gradient of the logits and a_ij = û_ij·grad_j. Both are in the sums' dtype.

        parent_sum and grad [t, b, j, e], of which one iteration is used, or [b, j, e] with iteration 0
        """
        plan, (b, i, j), flag = self.plan, self.plan.shape, self.none_of_the_above
        tensors = self.children, self.weight, self._to_sum_dtype(parent_sum), self.prior, self._to_sum_dtype(grad)
        splits, tiles = plan.splits()
        partial = self.children.new_empty(splits, b, j, plan.tile.e, dtype=plan.sum_dtype)
        statistics = self.children.new_empty(b, 3, i, dtype=plan.sum_dtype)
        if any(t is not None for t in tensors[2:]):  # else all couplings are equal
            programs = plan.image_blocks * plan.blocks
            self._launch(_statistics, programs, *tensors, statistics, iteration, NONE_OF_THE_ABOVE=flag)
        programs, outputs = plan.image_blocks * j * splits, (statistics, partial)
        self._launch(_partial_sums, programs, *tensors, *outputs, iteration, COUNT(tiles), NONE_OF_THE_ABOVE=flag)
        return partial

    def gradients(
        self,
        parent_sums: Tensor | None,
        grad: Tensor,
        first: int,
        uniform: bool,
        through_agreement: bool,
        needs: Sequence[bool],
        dtypes: Sequence[torch.dtype],
    ) -> Gradients:
        """The gradients of Σ_t Σ_j s_j^t·grad_j^t for children, weight and prior, in these dtypes.

        A vote's gradient is Σ_t (c_ij^t grad_j^t + p_ij^t V_j^t), with s, c, p and V as in `partial_sums`; without
        `through_agreement` its second term is left out. `needs` says which of the three gradients are computed; the
        others are None.

        parent_sums and grad [t, b, j, e]: the iterations from `first` on and, with `uniform`, also iteration 0, whose
        couplings are all equal
        """
        plan, (b, i, j), t = self.plan, self.plan.shape, len(grad)
        inputs = self.children, self.weight, self.prior
        grad_children, *others = (
            None if like is None or not need else torch.empty(like.shape, dtype=dtype, device=like.device)
            for like, need, dtype in zip(inputs, needs, dtypes, strict=True)
        )
        statistics = self.children.new_empty(t, b, 3, i, dtype=plan.sum_dtype)
        vectors = self._to_sum_dtype(parent_sums), self.prior, self._to_sum_dtype(grad)
        tensors, counts = (self.children, self.weight, *vectors, statistics), (COUNT(first), COUNT(t))
        flags = {"UNIFORM": uniform, "THROUGH_AGREEMENT": through_agreement}
        flags["NONE_OF_THE_ABOVE"] = self.none_of_the_above
        self._launch(_children_gradient, plan.image_blocks * plan.blocks, *tensors, grad_children, *counts, **flags)
        if any(t is not None for t in others):
            steps = COUNT(plan.image_blocks)
            self._launch(_weight_gradient, plan.blocks * j, *tensors, *others, *counts, steps, **flags)
        return grad_children, others[0], others[1]

    def _end_iteration(self, kernel: triton.JITFunction, partial: Tensor, *args: Tensor | int | None) -> None:
        self._launch(kernel, self._ends(), partial, *args, COUNT(len(partial)), warps=1)

    def _ends(self) -> int:
        """Programs that end an iteration."""
        return int(triton.cdiv(self.plan.shape.b * self.plan.shape.j, self.plan.tile.vectors))

    def _to_sum_dtype(self, tensor: Tensor | None) -> Tensor | None:
        """The same numbers, contiguous, in the dtype of the sums."""
        return None if tensor is None else tensor.to(self.plan.sum_dtype).contiguous()

    def _launch(
        self,
        kernel: triton.JITFunction,
        programs: int,
        *args: Tensor | int | None,
        warps: int | None = None,
        **flags: bool,
    ) -> None:
        plan, (b, i, j) = self.plan, self.plan.shape
        options = {"num_warps": warps or plan.warps, "maxnreg": plan.most_registers(kernel), "enable_fp_fusion": True}
        if programs:
            with torch.cuda.device_of(self.children):
                kernel[programs,](*args, b, COUNT(i), COUNT(j), **flags, TILE=plan.tile, MATH=plan.math, **options)


def _plan(children: Tensor, weight: Tensor) -> Plan:
    i, j, d, e = weight.shape
    depth, width = triton.next_power_of_2(max(d, 1)), triton.next_power_of_2(max(e, SIDE))
    rows = max(depth, SIDE, min(ROWS, LARGEST // width, MOST_CHILDREN * depth))
    if not fits(weight):
        raise InputError(
            f"a vote's matrix of {d} x {e} numbers does not fit a GPU's multiprocessor: "
            f"d x e, padded to powers of two and at least {SIDE}, may be at most {LARGEST}"
        )
    dtype = torch.promote_types(children.dtype, weight.dtype)
    most = 16 if max(rows, width) > ROWS else 64 if dtype.itemsize == 2 else 32
    images = min(triton.next_power_of_2(max(len(children), SIDE)), most)
    tile = Tile(images, rows // depth, depth, width, d, e, dtype in DEPTH_FIRST, max(1, VECTORS // width))
    sum_dtype = torch.promote_types(dtype, torch.float32)
    sums = tl.float64 if sum_dtype == torch.float64 else tl.float32
    operand = tl.bfloat16 if dtype == torch.bfloat16 and not INTERPRETED else sums
    math = Arithmetic(sums, operand, "tf32" if dtype == torch.float16 else "ieee")
    warps = 8 if rows * width > LARGEST // 2 else 4
    return Plan(Shape(len(children), i, j), tile, math, sum_dtype, dtype.itemsize, warps)


def fits(weight: Tensor) -> bool:
    """Whether the matrix of one vote fits a multiprocessor's registers."""
    depth, width = (triton.next_power_of_2(max(n, SIDE)) for n in weight.shape[2:])
    return bool(depth * width <= LARGEST)


# In the kernels a tile of children is flat, x [images, children · d], and so is a tile of W, w [children · d, e]; v and
# g are one parent's vectors of `parent_sum` and `grad`, [images, e]. An absent tensor is None, and Triton compiles no
# code for it. Padding is not loaded but zero in every tensor, so that it adds zero to every sum. NB, NI and NJ are the
# numbers of images, children and parents: Triton can be told not to specialise on arguments, but not on elements of a
# tuple. A row of a tensor [t, b, ...] is an image of one iteration. For the statistics [t, b, 3, i] see
# `_softmax_statistics`.


@triton.jit(do_not_specialize=["iteration", "NB", "NI", "NJ"])
def _statistics(
    children, weight, parent_sum, prior, grad, statistics, iteration, NB, NI, NJ,
    NONE_OF_THE_ABOVE: tl.constexpr, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Store what `_softmax_statistics` returns for each image and child [b, i]; the third is zero without `grad`."""
    shape = Shape(NB, NI, NJ)
    images, present, block = _program_tile(shape, TILE)
    rows = iteration * tl.cast(NB, tl.int64) + images
    x = _load_children(children, images, present, block, shape, TILE, MATH)
    found = _softmax_statistics(
        weight, parent_sum, prior, grad, x, rows, present, block, NONE_OF_THE_ABOVE, shape, TILE, MATH
    )
    _store_statistics(statistics, found, images, present, block, shape, TILE)


@triton.jit(do_not_specialize=["iteration", "share", "NB", "NI", "NJ"])
def _partial_sums(
    children, weight, parent_sum, prior, grad, statistics, partial, iteration, share, NB, NI, NJ,
    NONE_OF_THE_ABOVE: tl.constexpr, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """One parent's Σ_i c_ij û_ij (with `grad`: Σ_i p_ij û_ij) over one split of the children: [images, e]."""
    UNIFORM: tl.constexpr = parent_sum is None and prior is None and grad is None
    shape = Shape(NB, NI, NJ)
    images, present, rest = _program_tile(shape, TILE)
    j = rest % NJ
    split = rest // NJ
    rows = iteration * tl.cast(NB, tl.int64) + images
    v = _load_parents(parent_sum, rows, present, j, shape, TILE, MATH)
    g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
    total = tl.full((TILE.images, TILE.width), 0.0, MATH.accumulator)
    for step in range(share):
        block = split * share + step
        x = _load_children(children, images, present, block, shape, TILE, MATH)
        w = _load_matrices(weight, block, j, shape, TILE, MATH)
        if UNIFORM:
            scaled = x.to(MATH.operand)
        else:
            logits, a, _, _ = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
            c, p = _couplings(logits, a, statistics, images, present, block, grad is not None, shape, TILE)
            scaled = _scale(c if grad is None else p, x, TILE, MATH)
        total = tl.dot(scaled, w, total, input_precision=MATH.rounding, out_dtype=MATH.accumulator)
    if UNIFORM:
        total /= NJ + NONE_OF_THE_ABOVE
    rows = split.to(tl.int64) * NB + images
    e = tl.arange(0, TILE.width)[None, :]
    tl.store(partial + (rows[:, None] * NJ + j) * TILE.e + e, total, mask=present[:, None] & (e < TILE.e))


@triton.jit(do_not_specialize=["first", "iterations", "NB", "NI", "NJ"])
def _children_gradient(
    children, weight, parent_sum, prior, grad, statistics, grad_children, first, iterations, NB, NI, NJ,
    NONE_OF_THE_ABOVE: tl.constexpr, UNIFORM: tl.constexpr, THROUGH_AGREEMENT: tl.constexpr,
    TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Σ_t Σ_j W_ij (c_ij grad_j + p_ij V_j) of a tile of images and children, and the statistics [t, b, 3, i].

    Without grad_children it computes the statistics only.
    """
    shape = Shape(NB, NI, NJ)
    images, present, block = _program_tile(shape, TILE)
    x = _load_children(children, images, present, block, shape, TILE, MATH)
    total = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.accumulator)
    for iteration in range(first, iterations):
        rows = iteration * tl.cast(NB, tl.int64) + images
        found = _softmax_statistics(
            weight, parent_sum, prior, grad, x, rows, present, block, NONE_OF_THE_ABOVE, shape, TILE, MATH
        )
        _store_statistics(statistics, found, rows, present, block, shape, TILE)
        top, scale, average = found
        if grad_children is not None:
            for j in range(NJ):
                v = _load_parents(parent_sum, rows, present, j, shape, TILE, MATH)
                g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
                w = _load_matrices(weight, block, j, shape, TILE, MATH)
                logits, a, wv, wg = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
                couplings = tl.exp(logits - top) * scale
                total += _along_depth(couplings, TILE) * wg
                if THROUGH_AGREEMENT and parent_sum is not None:
                    total += _along_depth(couplings * (a - average), TILE) * wv
    if grad_children is not None:
        if UNIFORM:
            uniform = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.accumulator)
            for j in range(NJ):
                g = _load_parents(grad, images, present, j, shape, TILE, MATH)
                w = _load_matrices(weight, block, j, shape, TILE, MATH)
                uniform = tl.dot(g, tl.trans(w), uniform, input_precision=MATH.rounding, out_dtype=MATH.accumulator)
            total += uniform / (NJ + NONE_OF_THE_ABOVE)
        offsets, inside = _children_offsets(images, present, block, shape, TILE)
        tl.store(grad_children + offsets, _unfold(total, TILE), mask=inside)


@triton.jit(do_not_specialize=["first", "iterations", "image_blocks", "NB", "NI", "NJ"])
def _weight_gradient(
    children, weight, parent_sum, prior, grad, statistics, grad_weight, grad_prior,
    first, iterations, image_blocks, NB, NI, NJ,
    NONE_OF_THE_ABOVE: tl.constexpr, UNIFORM: tl.constexpr, THROUGH_AGREEMENT: tl.constexpr,
    TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Σ_b,t x_i ⊗ (c_ij grad_j + p_ij V_j) of a tile of children and one parent, and Σ_b,t p_ij for the prior.

    Each of the two is computed only if there is memory for it.
    """
    shape = Shape(NB, NI, NJ)
    block = tl.program_id(0) // NJ  # one axis: only the grid's first axis is long enough for any j
    j = tl.program_id(0) % NJ
    w = _load_matrices(weight, block, j, shape, TILE, MATH)
    total = tl.full((TILE.children * TILE.depth, TILE.width), 0.0, MATH.accumulator)
    prior_total = tl.full((TILE.children,), 0.0, MATH.accumulator)
    for iteration in range(first, iterations):
        for step in range(image_blocks):
            images = step * TILE.images + tl.arange(0, TILE.images)
            present = images < NB
            rows = iteration * tl.cast(NB, tl.int64) + images
            x = _load_children(children, images, present, block, shape, TILE, MATH)
            v = _load_parents(parent_sum, rows, present, j, shape, TILE, MATH)
            g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
            logits, a, _, _ = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
            c, p = _couplings(logits, a, statistics, rows, present, block, True, shape, TILE)
            if grad_weight is not None:
                scaled = tl.trans(_scale(c, x, TILE, MATH))
                total = tl.dot(scaled, g, total, input_precision=MATH.rounding, out_dtype=MATH.accumulator)
                if THROUGH_AGREEMENT and parent_sum is not None:
                    scaled = tl.trans(_scale(p, x, TILE, MATH))
                    total = tl.dot(scaled, v, total, input_precision=MATH.rounding, out_dtype=MATH.accumulator)
            prior_total += tl.sum(p, axis=0)  # over the images
    if grad_weight is not None:
        if UNIFORM:
            uniform = tl.full((TILE.children * TILE.depth, TILE.width), 0.0, MATH.accumulator)
            for step in range(image_blocks):
                images = step * TILE.images + tl.arange(0, TILE.images)
                x = _load_children(children, images, images < NB, block, shape, TILE, MATH).to(MATH.operand)
                g = _load_parents(grad, images, images < NB, j, shape, TILE, MATH)
                uniform = tl.dot(tl.trans(x), g, uniform, input_precision=MATH.rounding, out_dtype=MATH.accumulator)
            total += uniform / (NJ + NONE_OF_THE_ABOVE)
        offsets, inside = _matrix_offsets(block, j, shape, TILE)
        tl.store(grad_weight + offsets, total, mask=inside)
    if grad_prior is not None:
        i = block * TILE.children + tl.arange(0, TILE.children)
        tl.store(grad_prior + i.to(tl.int64) * NJ + j, prior_total, mask=i < NI)


@triton.jit(do_not_specialize=["iteration", "splits", "NB", "NI", "NJ"])
def _forward_step(
    partial, bias, parent_sum, sums, parents, total, iteration, splits, NB, NI, NJ,
    TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """The end of an iteration, for some parents: sums with the bias, the parents, and the next parent sum (total)."""
    offsets, present, row, e = _vector_offsets(NB, NJ, TILE)
    s = _sum_over_splits(partial, offsets, present, splits, NB, NJ, TILE, MATH)
    if bias is not None:
        s += tl.load(bias + row % NJ * TILE.e + e, mask=present, other=0.0)
    tl.store(sums + iteration * (tl.cast(NB, tl.int64) * NJ * TILE.e) + offsets, s, mask=present)
    v = _squash(s)
    tl.store(parents + offsets, v, mask=present)
    if parent_sum is not None:
        tl.store(total + offsets, tl.load(parent_sum + offsets, mask=present, other=0.0) + v, mask=present)


@triton.jit(do_not_specialize=["iterations", "NB", "NI", "NJ"])
def _backward_start(
    sums, grad, parent_sum, grad_sums, iterations, NB, NI, NJ, TILE: tl.constexpr, MATH: tl.constexpr
):  # fmt: skip
    """For some parents, the parent sum of each iteration, and the gradient of the last iteration's sums."""
    offsets, present, _, _ = _vector_offsets(NB, NJ, TILE)
    total = tl.full((TILE.vectors, TILE.width), 0.0, MATH.accumulator)
    s = total
    for _iteration in range(iterations):
        s = tl.load(sums + offsets, mask=present, other=0.0)
        tl.store(parent_sum + offsets, total, mask=present)
        total += _squash(s)
        offsets += tl.cast(NB, tl.int64) * NJ * TILE.e
    offsets -= tl.cast(NB, tl.int64) * NJ * TILE.e
    g = tl.load(grad + (offsets - (iterations - 1) * (tl.cast(NB, tl.int64) * NJ * TILE.e)), mask=present, other=0.0)
    tl.store(grad_sums + offsets, _squash_gradient(s, g), mask=present)


@triton.jit(do_not_specialize=["iteration", "splits", "NB", "NI", "NJ"])
def _backward_step(
    partial, grad_parent_sum, total, sums, grad_sums, iteration, splits, NB, NI, NJ,
    TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """For some parents, the gradient of the parent sum (total) and that of the previous iteration's sums."""
    offsets, present, _, _ = _vector_offsets(NB, NJ, TILE)
    g = _sum_over_splits(partial, offsets, present, splits, NB, NJ, TILE, MATH)
    if grad_parent_sum is not None:
        g += tl.load(grad_parent_sum + offsets, mask=present, other=0.0)
    tl.store(total + offsets, g, mask=present)
    before = (iteration - 1) * (tl.cast(NB, tl.int64) * NJ * TILE.e) + offsets
    s = tl.load(sums + before, mask=present, other=0.0)
    tl.store(grad_sums + before, _squash_gradient(s, g), mask=present)


@triton.jit
def _vector_offsets(NB, NJ, TILE: tl.constexpr):
    """The offsets of this program's vectors in [b, j, e], their mask, their rows in [b, j], and their dimensions."""
    row = tl.program_id(0).to(tl.int64) * TILE.vectors + tl.arange(0, TILE.vectors)[:, None]
    e = tl.arange(0, TILE.width)[None, :]
    return row * TILE.e + e, (row < tl.cast(NB, tl.int64) * NJ) & (e < TILE.e), row, e


@triton.jit
def _sum_over_splits(partial, offsets, present, splits, NB, NJ, TILE: tl.constexpr, MATH: tl.constexpr):
    """The sum over the splits: [splits, b, j, e] → [vectors, e]."""
    total = tl.full((TILE.vectors, TILE.width), 0.0, MATH.accumulator)
    for start in range(0, splits, TOGETHER):
        split = start + tl.arange(0, TOGETHER)[:, None, None]
        where = split.to(tl.int64) * NB * NJ * TILE.e + offsets[None, :, :]
        total += tl.sum(tl.load(partial + where, mask=(split < splits) & present[None, :, :], other=0.0), axis=0)
    return total


@triton.jit
def _squash(s):
    """`squash.squash` along the last of two axes."""
    length = tl.sqrt(tl.sum(s * s, axis=1))[:, None]
    return s * (length / (1 + length * length))


@triton.jit
def _squash_gradient(s, grad):
    """`squash.squash_gradient` along the last of two axes."""
    length = tl.sqrt(tl.sum(s * s, axis=1))[:, None]
    shrink = 1 / (1 + length * length)
    along = tl.sum(s * grad, axis=1)[:, None] / tl.where(length > 0, length, 1)
    return grad * (length * shrink) + s * (along * (1 - length * length) * (shrink * shrink))


@triton.jit
def _program_tile(shape, TILE: tl.constexpr):
    """The images of a program, their mask, and the rest of the program's number.

    Images vary fastest, so that programs that run side by side read the same matrices.
    """
    image_blocks = tl.cdiv(shape.b, TILE.images)
    images = tl.program_id(0) % image_blocks * TILE.images + tl.arange(0, TILE.images)
    return images, images < shape.b, tl.program_id(0) // image_blocks


@triton.jit
def _softmax_statistics(
    weight, parent_sum, prior, grad, x, rows, present, block,
    NONE_OF_THE_ABOVE: tl.constexpr, shape, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """One pass over the parents: largest logit, 1 / Σ_j exp(logit - largest), Σ_j c_ij a_ij, [images, children]."""
    largest = tl.full((TILE.images, TILE.children), -1e38, MATH.accumulator)  # finite: -inf minus this is -inf
    total = tl.full((TILE.images, TILE.children), 0.0, MATH.accumulator)
    if NONE_OF_THE_ABOVE:
        largest = tl.full((TILE.images, TILE.children), 0.0, MATH.accumulator)
        total += 1.0
    average = tl.full((TILE.images, TILE.children), 0.0, MATH.accumulator)
    for j in range(shape.j):
        v = _load_parents(parent_sum, rows, present, j, shape, TILE, MATH)
        g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
        w = _load_matrices(weight, block, j, shape, TILE, MATH)
        logits, a, _, _ = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
        larger = tl.maximum(largest, logits)
        kept = tl.exp(largest - larger)
        new = tl.exp(logits - larger)
        total = total * kept + new
        average = average * kept + new * a
        largest = larger
    return largest, 1 / total, average / total


@triton.jit
def _agreements(v, g, prior, x, w, block, j, shape, TILE: tl.constexpr, MATH: tl.constexpr):
    """Logits prior_ij + û_ij·V_j and a_ij = û_ij·grad_j [images, children]; W_ij V_j and W_ij grad_j, shaped like x."""
    logits = tl.full((TILE.images, TILE.children), 0.0, MATH.accumulator)
    a = tl.full((TILE.images, TILE.children), 0.0, MATH.accumulator)
    wv = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.accumulator)
    wg = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.accumulator)
    if prior is not None:
        i = block * TILE.children + tl.arange(0, TILE.children)
        logits += tl.load(prior + i.to(tl.int64) * shape.j + j, mask=i < shape.i, other=0.0)[None, :]
    if v is not None:
        wv = tl.dot(v, tl.trans(w), input_precision=MATH.rounding, out_dtype=MATH.accumulator)
        logits += _over_depth(wv * x, TILE)
    if g is not None:
        wg = tl.dot(g, tl.trans(w), input_precision=MATH.rounding, out_dtype=MATH.accumulator)
        a += _over_depth(wg * x, TILE)
    return logits, a, wv, wg


@triton.jit
def _couplings(
    logits, a, statistics, rows, present, block, WITH_GRADIENT: tl.constexpr, shape, TILE: tl.constexpr
):  # fmt: skip
    """The couplings c_ij and, with gradient, the gradients of the logits p_ij; zero in the padding."""
    offsets, inside = _statistics_offsets(rows, present, block, shape, TILE)
    top = tl.load(statistics + offsets, mask=inside, other=float("inf"))
    c = tl.exp(logits - top) * tl.load(statistics + offsets + shape.i, mask=inside, other=0.0)
    p = c
    if WITH_GRADIENT:
        p = c * (a - tl.load(statistics + offsets + 2 * shape.i, mask=inside, other=0.0))
    return c, p


@triton.jit
def _store_statistics(statistics, found, rows, present, block, shape, TILE: tl.constexpr):
    """Store the result of `_softmax_statistics`, for `_couplings`."""
    offsets, inside = _statistics_offsets(rows, present, block, shape, TILE)
    tl.store(statistics + offsets, found[0], mask=inside)
    tl.store(statistics + offsets + shape.i, found[1], mask=inside)
    tl.store(statistics + offsets + 2 * shape.i, found[2], mask=inside)


@triton.jit
def _over_depth(values, TILE: tl.constexpr):
    """The sum over each child's own axis d: [images, children · d] → [images, children]."""
    if TILE.depth_first:
        total = tl.sum(tl.reshape(values, (TILE.images, TILE.depth, TILE.children)), axis=1)
    else:
        total = tl.sum(tl.reshape(values, (TILE.images, TILE.children, TILE.depth)), axis=2)
    return total


@triton.jit
def _along_depth(values, TILE: tl.constexpr):
    """Each child's number, repeated along its axis d: [images, children] → [images, children · d]."""
    if TILE.depth_first:
        repeated = tl.broadcast_to(values[:, None, :], (TILE.images, TILE.depth, TILE.children))
    else:
        repeated = tl.broadcast_to(values[:, :, None], (TILE.images, TILE.children, TILE.depth))
    return tl.reshape(repeated, (TILE.images, TILE.children * TILE.depth))


@triton.jit
def _scale(coefficients, x, TILE: tl.constexpr, MATH: tl.constexpr):
    """Each child times its coefficient, as an operand: [images, children] and x → [images, children · d]."""
    return (_along_depth(coefficients, TILE) * x).to(MATH.operand)


@triton.jit
def _load_children(
    children, images, present, block, shape, TILE: tl.constexpr, MATH: tl.constexpr
):  # fmt: skip
    offsets, inside = _children_offsets(images, present, block, shape, TILE)
    return _fold(tl.load(children + offsets, mask=inside, other=0.0), TILE).to(MATH.accumulator)


@triton.jit
def _load_matrices(weight, block, j, shape, TILE: tl.constexpr, MATH: tl.constexpr):
    offsets, inside = _matrix_offsets(block, j, shape, TILE)
    return tl.load(weight + offsets, mask=inside, other=0.0).to(MATH.operand)


@triton.jit
def _load_parents(
    parents, rows, present, j, shape, TILE: tl.constexpr, MATH: tl.constexpr
):  # fmt: skip
    vectors = None
    if parents is not None:
        e = tl.arange(0, TILE.width)[None, :]
        offsets = (rows.to(tl.int64)[:, None] * shape.j + j) * TILE.e + e
        vectors = tl.load(parents + offsets, mask=present[:, None] & (e < TILE.e), other=0.0).to(MATH.operand)
    return vectors


@triton.jit
def _statistics_offsets(rows, present, block, shape, TILE: tl.constexpr):
    """The offsets of a tile in the first of the statistics, and their mask: [images, children]."""
    i = (block * TILE.children + tl.arange(0, TILE.children))[None, :]
    return rows.to(tl.int64)[:, None] * 3 * shape.i + i, present[:, None] & (i < shape.i)


@triton.jit
def _children_offsets(images, present, block, shape, TILE: tl.constexpr):
    """The offsets of a tile of children in [b, i, d], and their mask: [images, children, d]."""
    i = (block * TILE.children + tl.arange(0, TILE.children))[None, :, None]
    d = tl.arange(0, TILE.depth)[None, None, :]
    offsets = (images.to(tl.int64)[:, None, None] * shape.i + i) * TILE.d + d
    return offsets, present[:, None, None] & (i < shape.i) & (d < TILE.d)


@triton.jit
def _fold(values, TILE: tl.constexpr):
    """Flatten a tile into the order of the products: [images, children, d] → [images, children · d]."""
    if TILE.depth_first:
        values = tl.permute(values, (0, 2, 1))
    return tl.reshape(values, (TILE.images, TILE.children * TILE.depth))


@triton.jit
def _unfold(values, TILE: tl.constexpr):
    """The inverse of `_fold`."""
    if TILE.depth_first:
        unfolded = tl.permute(tl.reshape(values, (TILE.images, TILE.depth, TILE.children)), (0, 2, 1))
    else:
        unfolded = tl.reshape(values, (TILE.images, TILE.children, TILE.depth))
    return unfolded


@triton.jit
def _matrix_offsets(block, j, shape, TILE: tl.constexpr):
    """The offsets of a tile of matrices in [i, j, d, e], and their mask: [children · d, e]."""
    i, d = _children_and_depth(block, TILE)
    e = tl.arange(0, TILE.width)[None, :]
    offsets = ((i.to(tl.int64) * shape.j + j) * TILE.d + d)[:, None] * TILE.e + e
    return offsets, ((i < shape.i) & (d < TILE.d))[:, None] & (e < TILE.e)


@triton.jit
def _children_and_depth(block, TILE: tl.constexpr):
    """The child and the d of each row of W in a tile."""
    flat = tl.arange(0, TILE.children * TILE.depth)
    if TILE.depth_first:
        child = flat % TILE.children
        d = flat // TILE.children
    else:
        child = flat // TILE.depth
        d = flat % TILE.depth
    return block * TILE.children + child, d
