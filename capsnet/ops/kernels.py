# mypy: allow-untyped-defs
"""Routing without the votes on a GPU, in Triton: votes are made on chip, used and dropped, as FlashAttention's scores.

A vote u_ij = x_i W_ij is needed twice, for its product with a parent's vector and for its share of a sum, and neither
asks for the vote itself: u_ij·V_j = x_i·(W_ij V_j), and Σ_i c_ij u_ij = Σ_i (c_ij x_i) W_ij. For a tile of images and
children both are one matrix product with the same tile of W, [images, e]·[e, children·d] and
[images, children·d]·[children·d, e], whatever the number of parents. A sum over the children needs the softmax over
all parents first: one sweep over j leaves its largest logit and its total, [b, i] and no more (their log-sum-exp would
be one number, but loses digits where logits are large), and the programs that follow own one parent each.

By count, latency and not arithmetic bounds it on an H200 (a pass of the paper's network, b = 128, is 0.4 GFLOP, and
W lies in L2), so tiles are small and programs many. 64 images by 64 rows of W (eight children of eight dimensions) are
the smallest tile that feeds a Hopper warpgroup's matrix instruction; float32, which is multiplied without that unit and
without its rounding, takes 32 images, so that a tile's numbers stay in registers and two to four programs share a
multiprocessor and hide each other's loads. Where parents and images are too few for 132 multiprocessors, the children
are split too. Nothing is added atomically, so equal inputs give equal bits. bfloat16 is multiplied as it is; float16
here as tf32, which holds its digits and has the range of float32 that gradients need. A launch costs as much as a pass
over a small batch, so all that an iteration does to its sums is one kernel, and an iteration is three at most.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.passes import Gradients

INTERPRETED = triton.knobs.runtime.interpret
COUNT = tl.constexpr if INTERPRETED else int  # of a loop: Triton's interpreter has them known, as a range of its own
SIDE = 16  # the smallest side of a matrix product
ROWS = 64  # of W in a tile, children · d, where a vote is not too wide
LARGEST = 64 * 64  # numbers of W in a tile: more spill out of registers
MOST_CHILDREN = 8  # in a tile: of more, the logits and all that is like them would spill
DEPTH_FIRST = (torch.bfloat16, torch.float16)  # dtypes whose products leave neighbouring columns in one thread
VECTORS = 128  # numbers of parents' vectors in a program that ends an iteration
TOGETHER = tl.constexpr(8)  # splits whose sums such a program loads at once
SPLITS = 64  # of the children, at most
MULTIPROCESSORS = 132  # of an H100; the same on any GPU, and so are the sums
REGISTERS = 65536  # of a multiprocessor
# Registers that a thread may have, by kernel and bytes of a number, where W has no more than so many in a tile, and d
# and e need no filling up: the compiler takes a few more, and one program fewer would run. What that spills is in
# results/kernels/sm_90.json.
SMALL = 64 * 16
MOST_REGISTERS = {
    "_statistics": {2: 128, 4: 96},
    "_partial_sums": {2: 128, 4: 168},
    "_children_gradient": {2: 168, 4: 168},
    "_weight_gradient": {2: 168, 4: 168},
}


class Shape(NamedTuple):
    """How many images, children and parents there are: no kernel is compiled anew for others."""

    b: int
    i: int
    j: int


class Tile(NamedTuple):
    """What a program holds at once: images, children, d and e filled up to powers of two and as they are.

    `depth_first`: its rows of W list d before the children, which keeps a child's numbers in one thread where the
    tensor cores leave columns 0, 1, 8, 9, ... of a product there. `vectors` of parents end an iteration in a program.
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
    """The dtype of sums, that of a matrix product's operands, and how such a product may round them."""

    exact: tl.dtype
    operand: tl.dtype
    rounding: str


class Plan(NamedTuple):
    """Sizes and arithmetic by plain rules from the shapes and dtypes of children and weight."""

    shape: Shape
    tile: Tile
    math: Arithmetic
    exact: torch.dtype  # of the sums
    size: int  # bytes of a number of children and weight
    warps: int  # of a program

    @property
    def blocks(self) -> int:
        """Tiles of children."""
        return triton.cdiv(self.shape.i, self.tile.children)

    @property
    def image_blocks(self) -> int:
        """Tiles of images."""
        return triton.cdiv(self.shape.b, self.tile.images)

    def most_registers(self, kernel: Any) -> int | None:
        """Registers that a thread of a kernel may have, None for as many as the compiler takes."""
        _, children, depth, width, d, e, *_ = self.tile
        plain = (d, e) == (depth, width) and children * depth * width <= SMALL
        return MOST_REGISTERS.get(kernel.__name__, {}).get(self.size) if plain else None

    def splits(self) -> tuple[int, int]:
        """Into how many splits `_partial_sums` cuts the children so that all programs run at once, and their blocks."""
        slots = MULTIPROCESSORS * (REGISTERS // (32 * self.warps * (self.most_registers(_partial_sums) or 255)))
        splits = max(1, min(SPLITS, slots // max(1, self.shape.j * self.image_blocks)))
        share = triton.cdiv(self.blocks, splits)
        return max(1, triton.cdiv(self.blocks, max(1, share))), share


class Passes:
    """Steps and passes over children [b, i, d] by weight [i, j, d, e], with logits that start at prior [i, j]."""

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        self.plan, self.none_of_the_above = _plan(children, weight), none_of_the_above
        self.children, self.weight = children.contiguous(), weight.contiguous()
        self.prior = self._exact(prior)

    def forward_step(
        self, iteration: int, agreed: Tensor | None, bias: Tensor | None, sums: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `passes.Steps.forward_step`."""
        partial = self.partial_sums(agreed, None, 0)
        parents = torch.empty_like(sums[0])
        total = None if agreed is None else torch.empty_like(parents)
        self._end_iteration(_forward_step, partial, self._exact(bias), agreed, sums, parents, total, iteration)
        return parents, parents if total is None else total

    def backward_start(self, sums: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See `passes.Steps.backward_start`."""
        agreed, to_sums = torch.empty_like(sums), torch.empty_like(sums)
        self._launch(_backward_start, self._ends(), sums, self._exact(grad), agreed, to_sums, COUNT(len(sums)), warps=1)
        return agreed, to_sums

    def backward_step(
        self, iteration: int, agreed: Tensor, to_agreed: Tensor | None, sums: Tensor, to_sums: Tensor
    ) -> Tensor:
        """See `passes.Steps.backward_step`."""
        partial = self.partial_sums(agreed, to_sums, iteration)
        total = torch.empty_like(sums[0])
        self._end_iteration(_backward_step, partial, to_agreed, total, sums, to_sums, iteration)
        return total

    def input_gradients(
        self, agreed: Tensor, to_sums: Tensor, first: int, through: bool, needs: Sequence[bool]
    ) -> Gradients:
        """See `passes.Steps.input_gradients`."""
        even = first == 0 and self.prior is None
        dtypes = self.children.dtype, self.weight.dtype, self.plan.exact
        return self.gradients(agreed, to_sums, first + even, even, through, needs, dtypes)

    def partial_sums(self, agreed: Tensor | None, grad: Tensor | None, iteration: int) -> Tensor:
        """Σ_i c_ij û_ij without `grad`, Σ_i p_ij û_ij with it, over each split of the children: [splits, b, j, e].

        See `weighted_sum` and `pull` below; agreed and grad [t, b, j, e], of which one iteration is taken.
        """
        plan, (b, i, j) = self.plan, self.plan.shape
        tensors = self.children, self.weight, self._exact(agreed), self.prior, self._exact(grad)
        splits, share = plan.splits()
        partial = self.children.new_empty(splits, b, j, plan.tile.e, dtype=plan.exact)
        statistics = self.children.new_empty(b, 3, i, dtype=plan.exact)
        if any(t is not None for t in tensors[2:]):  # else the couplings are the same for all
            self._launch(
                _statistics,
                plan.image_blocks * plan.blocks,
                *tensors,
                statistics,
                iteration,
                LEAKY=self.none_of_the_above,
            )
        programs = plan.image_blocks * j * splits
        self._launch(
            _partial_sums,
            programs,
            *tensors,
            statistics,
            partial,
            iteration,
            COUNT(share),
            LEAKY=self.none_of_the_above,
        )
        return partial

    def gradients(
        self,
        agreed: Tensor | None,
        grad: Tensor,
        first: int,
        even: bool,
        through: bool,
        needs: Sequence[bool],
        dtypes: Sequence[torch.dtype],
    ) -> Gradients:
        """The gradients for children, weight and prior in these dtypes: see `gradients` below.

        agreed and grad [t, b, j, e], whose iterations from `first` on count; `even`: and the one at 0, where the
        couplings are the same for all.
        """
        plan, (b, i, j), t = self.plan, self.plan.shape, len(grad)
        inputs = self.children, self.weight, self.prior
        results = [
            None if like is None or not need else torch.empty(like.shape, dtype=dtype, device=like.device)
            for like, need, dtype in zip(inputs, needs, dtypes, strict=True)
        ]
        statistics = self.children.new_empty(t, b, 3, i, dtype=plan.exact)
        tensors = self.children, self.weight, self._exact(agreed), self.prior, self._exact(grad), statistics
        counts, flags = (COUNT(first), COUNT(t)), {"LEAKY": self.none_of_the_above, "EVEN": even, "THROUGH": through}
        self._launch(_children_gradient, plan.image_blocks * plan.blocks, *tensors, results[0], *counts, **flags)
        if results[1] is not None or results[2] is not None:
            steps = COUNT(plan.image_blocks)
            self._launch(_weight_gradient, plan.blocks * j, *tensors, *results[1:], *counts, steps, **flags)
        return results[0], results[1], results[2]

    def _end_iteration(self, kernel: Any, partial: Tensor, *args: Any) -> None:
        self._launch(kernel, self._ends(), partial, *args, COUNT(len(partial)), warps=1)

    def _ends(self) -> int:
        """Programs that end an iteration."""
        return triton.cdiv(self.plan.shape.b * self.plan.shape.j, self.plan.tile.vectors)

    def _exact(self, tensor: Tensor | None) -> Tensor | None:
        """The same numbers, contiguous, in the dtype of the sums."""
        return None if tensor is None else tensor.to(self.plan.exact).contiguous()

    def _launch(self, kernel: Any, programs: int, *args: Any, warps: int | None = None, **flags: bool) -> None:
        plan, (b, i, j) = self.plan, self.plan.shape
        options: dict[str, Any] = {"num_warps": warps or plan.warps, "enable_fp_fusion": True}
        options["maxnreg"] = plan.most_registers(kernel)
        if programs:
            with torch.cuda.device_of(self.children):
                kernel[programs,](*args, b, COUNT(i), COUNT(j), **flags, TILE=plan.tile, MATH=plan.math, **options)


def weighted_sum(
    children: Tensor, weight: Tensor, agreed: Tensor | None, prior: Tensor | None, none_of_the_above: bool
) -> Tensor:
    """The weighted sum of the votes, s_j = Σ_i c_ij u_ij (Procedure 1, lines 4 and 5), with no vote stored.

    The logits are prior_ij + u_ij·V_j with V (`agreed`) the sum of the parents of all iterations so far; None stands
    for zeros. `leaky` adds a parent with logit 0 whose share is dropped. Raises InputError where one vote's matrix is
    too large for a GPU's multiprocessor.

    children [b, i, d], weight [i, j, d, e], agreed [b, j, e], prior [i, j] → [b, j, e] in float32 (float64 of float64)
    """
    return (
        Passes(children, weight, prior, none_of_the_above).partial_sums(agreed, None, 0).sum(dim=0)
    )  # over the splits


def pull(
    children: Tensor, weight: Tensor, agreed: Tensor | None, prior: Tensor | None, none_of_the_above: bool, grad: Tensor
) -> Tensor:
    """The gradient of <weighted_sum(...), grad> for `agreed`: Σ_i p_ij u_ij, with p_ij the gradient of the logits.

    With a_ij = u_ij·grad_j, p_ij = c_ij (a_ij - Σ_k c_ik a_ik). Raises as `weighted_sum` does.

    shapes as in `weighted_sum`, grad [b, j, e] → [b, j, e] in float32 (float64 of float64)
    """
    return (
        Passes(children, weight, prior, none_of_the_above).partial_sums(agreed, grad, 0).sum(dim=0)
    )  # over the splits


def gradients(
    children: Tensor,
    weight: Tensor,
    agreed: Tensor | None,
    prior: Tensor | None,
    none_of_the_above: bool,
    grad: Tensor,
    through: bool = True,
    needs: Sequence[bool] = (True, True, True),
) -> Gradients:
    """The gradients of Σ_t <weighted_sum(..., agreed_t, ...), grad_t> for children, weight and prior.

    A vote's gradient is Σ_t (c_ij^t grad_j^t + p_ij^t V_j^t), with c and p as in `pull`; without `through` its second
    term is left out, as the agreement is then a constant. `needs` says which of the three are computed. Raises as
    `weighted_sum` does.

    agreed [t, b, j, e], grad [t, b, j, e], others as in `weighted_sum` → [b, i, d], [i, j, d, e] and [i, j] in float32
    (float64 of float64), each None where it is not needed or there is no prior
    """
    passes = Passes(children, weight, prior, none_of_the_above)
    return passes.gradients(agreed, grad, 0, False, through, needs, (passes.plan.exact,) * 3)


def _plan(children: Tensor, weight: Tensor) -> Plan:
    i, j, d, e = weight.shape
    depth, width = triton.next_power_of_2(max(d, 1)), triton.next_power_of_2(max(e, SIDE))
    rows = max(depth, SIDE, min(ROWS, LARGEST // width, MOST_CHILDREN * depth))
    if not has_room(weight):
        raise InputError(
            f"a vote's matrix of {d} x {e} numbers has no room on a GPU's multiprocessor: "
            f"d x e, filled up to powers of two and {SIDE} at least, may be at most {LARGEST}"
        )
    dtype = torch.promote_types(children.dtype, weight.dtype)
    most = 16 if max(rows, width) > ROWS else 64 if dtype.itemsize == 2 else 32
    images = min(triton.next_power_of_2(max(len(children), SIDE)), most)
    tile = Tile(images, rows // depth, depth, width, d, e, dtype in DEPTH_FIRST, max(1, VECTORS // width))
    exact = torch.promote_types(dtype, torch.float32)
    sums = tl.float64 if exact == torch.float64 else tl.float32
    operand = tl.bfloat16 if dtype == torch.bfloat16 and not INTERPRETED else sums
    math = Arithmetic(sums, operand, "tf32" if dtype == torch.float16 else "ieee")
    warps = 8 if rows * width > LARGEST // 2 else 4
    return Plan(Shape(len(children), i, j), tile, math, exact, dtype.itemsize, warps)


def has_room(weight: Tensor) -> bool:
    """Whether one vote's matrix fits a multiprocessor's registers."""
    depth, width = (triton.next_power_of_2(max(n, SIDE)) for n in weight.shape[2:])
    return depth * width <= LARGEST


# In the kernels a tile of children lies flat, x [images, children · d], and W's likewise, w [children · d, e]; v and g
# are one parent's vectors of `agreed` and `grad`, [images, e]. An absent tensor is None, which Triton compiles away.
# What fills a tile up is not read but zero, in every tensor, so that it adds zero to every sum. NB, NI and NJ count
# images, children and parents: as arguments of their own they can be kept from being specialised on, as the elements of
# a tuple cannot. Of tensors [t, b, ...] a row is an image of an iteration. Statistics are [t, b, 3, i]: see `_sweep`.


@triton.jit(do_not_specialize=["iteration", "NB", "NI", "NJ"])
def _statistics(
    children, weight, agreed, prior, grad, statistics, iteration, NB, NI, NJ,
    LEAKY: tl.constexpr, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """What `_sweep` finds, for each image and child [b, i]; the last with `grad` alone."""
    shape = Shape(NB, NI, NJ)
    images, present, block = _place(shape, TILE)
    rows = iteration * tl.cast(NB, tl.int64) + images
    x = _load_children(children, images, present, block, shape, TILE, MATH)
    found = _sweep(weight, agreed, prior, grad, x, rows, present, block, LEAKY, shape, TILE, MATH)
    _store_statistics(statistics, found, images, present, block, shape, TILE)


@triton.jit(do_not_specialize=["iteration", "share", "NB", "NI", "NJ"])
def _partial_sums(
    children, weight, agreed, prior, grad, statistics, partial, iteration, share, NB, NI, NJ,
    LEAKY: tl.constexpr, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """One parent's Σ_i c_ij u_ij (with `grad`: Σ_i p_ij u_ij) over one split of the children: [images, e]."""
    EVEN: tl.constexpr = agreed is None and prior is None and grad is None
    shape = Shape(NB, NI, NJ)
    images, present, rest = _place(shape, TILE)
    j = rest % NJ
    split = rest // NJ
    rows = iteration * tl.cast(NB, tl.int64) + images
    v = _load_parents(agreed, rows, present, j, shape, TILE, MATH)
    g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
    total = tl.full((TILE.images, TILE.width), 0.0, MATH.exact)
    for step in range(share):
        block = split * share + step
        x = _load_children(children, images, present, block, shape, TILE, MATH)
        w = _load_matrices(weight, block, j, shape, TILE, MATH)
        if EVEN:
            shared = x.to(MATH.operand)
        else:
            logits, a, _, _ = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
            shares, strayed = _couplings(logits, a, statistics, images, present, block, grad is not None, shape, TILE)
            shared = _scale(shares if grad is None else strayed, x, TILE, MATH)
        total = tl.dot(shared, w, total, input_precision=MATH.rounding, out_dtype=MATH.exact)
    if EVEN:
        total /= NJ + LEAKY
    rows = split.to(tl.int64) * NB + images
    e = tl.arange(0, TILE.width)[None, :]
    tl.store(partial + (rows[:, None] * NJ + j) * TILE.e + e, total, mask=present[:, None] & (e < TILE.e))


@triton.jit(do_not_specialize=["first", "iterations", "NB", "NI", "NJ"])
def _children_gradient(
    children, weight, agreed, prior, grad, statistics, grad_children, first, iterations, NB, NI, NJ,
    LEAKY: tl.constexpr, EVEN: tl.constexpr, THROUGH: tl.constexpr, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Σ_t Σ_j W_ij (c_ij grad_j + p_ij V_j) of a tile of images and children, and the statistics [t, b, 3, i].

    Without grad_children it finds the statistics alone.
    """
    shape = Shape(NB, NI, NJ)
    images, present, block = _place(shape, TILE)
    x = _load_children(children, images, present, block, shape, TILE, MATH)
    total = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.exact)
    for iteration in range(first, iterations):
        rows = iteration * tl.cast(NB, tl.int64) + images
        found = _sweep(weight, agreed, prior, grad, x, rows, present, block, LEAKY, shape, TILE, MATH)
        _store_statistics(statistics, found, rows, present, block, shape, TILE)
        top, scale, average = found
        if grad_children is not None:
            for j in range(NJ):
                v = _load_parents(agreed, rows, present, j, shape, TILE, MATH)
                g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
                w = _load_matrices(weight, block, j, shape, TILE, MATH)
                logits, a, wv, wg = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
                couplings = tl.exp(logits - top) * scale
                total += _along_depth(couplings, TILE) * wg
                if THROUGH and agreed is not None:
                    total += _along_depth(couplings * (a - average), TILE) * wv
    if grad_children is not None:
        if EVEN:
            even = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.exact)
            for j in range(NJ):
                g = _load_parents(grad, images, present, j, shape, TILE, MATH)
                w = _load_matrices(weight, block, j, shape, TILE, MATH)
                even = tl.dot(g, tl.trans(w), even, input_precision=MATH.rounding, out_dtype=MATH.exact)
            total += even / (NJ + LEAKY)
        places, inside = _places(images, present, block, shape, TILE)
        tl.store(grad_children + places, _unfold(total, TILE), mask=inside)


@triton.jit(do_not_specialize=["first", "iterations", "image_blocks", "NB", "NI", "NJ"])
def _weight_gradient(
    children, weight, agreed, prior, grad, statistics, grad_weight, grad_prior,
    first, iterations, image_blocks, NB, NI, NJ,
    LEAKY: tl.constexpr, EVEN: tl.constexpr, THROUGH: tl.constexpr, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Σ_b,t x_i ⊗ (c_ij grad_j + p_ij V_j) of a tile of children and one parent, and Σ_b,t p_ij for the prior.

    Each only where there is memory for it.
    """
    shape = Shape(NB, NI, NJ)
    block = tl.program_id(0) // NJ  # one axis of the grid, since only the first is long enough for any j
    j = tl.program_id(0) % NJ
    w = _load_matrices(weight, block, j, shape, TILE, MATH)
    total = tl.full((TILE.children * TILE.depth, TILE.width), 0.0, MATH.exact)
    pulled = tl.full((TILE.children,), 0.0, MATH.exact)
    for iteration in range(first, iterations):
        for step in range(image_blocks):
            images = step * TILE.images + tl.arange(0, TILE.images)
            present = images < NB
            rows = iteration * tl.cast(NB, tl.int64) + images
            x = _load_children(children, images, present, block, shape, TILE, MATH)
            v = _load_parents(agreed, rows, present, j, shape, TILE, MATH)
            g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
            logits, a, _, _ = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
            c, p = _couplings(logits, a, statistics, rows, present, block, True, shape, TILE)
            if grad_weight is not None:
                shared = tl.trans(_scale(c, x, TILE, MATH))
                total = tl.dot(shared, g, total, input_precision=MATH.rounding, out_dtype=MATH.exact)
                if THROUGH and agreed is not None:
                    shared = tl.trans(_scale(p, x, TILE, MATH))
                    total = tl.dot(shared, v, total, input_precision=MATH.rounding, out_dtype=MATH.exact)
            pulled += tl.sum(p, axis=0)  # over the images
    if grad_weight is not None:
        if EVEN:
            even = tl.full((TILE.children * TILE.depth, TILE.width), 0.0, MATH.exact)
            for step in range(image_blocks):
                images = step * TILE.images + tl.arange(0, TILE.images)
                x = _load_children(children, images, images < NB, block, shape, TILE, MATH).to(MATH.operand)
                g = _load_parents(grad, images, images < NB, j, shape, TILE, MATH)
                even = tl.dot(tl.trans(x), g, even, input_precision=MATH.rounding, out_dtype=MATH.exact)
            total += even / (NJ + LEAKY)
        places, inside = _matrix_places(block, j, shape, TILE)
        tl.store(grad_weight + places, total, mask=inside)
    if grad_prior is not None:
        i = block * TILE.children + tl.arange(0, TILE.children)
        tl.store(grad_prior + i.to(tl.int64) * NJ + j, pulled, mask=i < NI)


@triton.jit(do_not_specialize=["iteration", "splits", "NB", "NI", "NJ"])
def _forward_step(
    partial, bias, agreed, sums, parents, total, iteration, splits, NB, NI, NJ,
    TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """The end of an iteration for some parents: sums with the bias, the parents, and their total with `agreed`."""
    places, present, row, e = _vectors(NB, NJ, TILE)
    s = _sum_over_splits(partial, places, present, splits, NB, NJ, TILE, MATH)
    if bias is not None:
        s += tl.load(bias + row % NJ * TILE.e + e, mask=present, other=0.0)
    tl.store(sums + iteration * (tl.cast(NB, tl.int64) * NJ * TILE.e) + places, s, mask=present)
    v = _squash(s)
    tl.store(parents + places, v, mask=present)
    if agreed is not None:
        tl.store(total + places, tl.load(agreed + places, mask=present, other=0.0) + v, mask=present)


@triton.jit(do_not_specialize=["iterations", "NB", "NI", "NJ"])
def _backward_start(
    sums, grad, agreed, to_sums, iterations, NB, NI, NJ, TILE: tl.constexpr, MATH: tl.constexpr
):  # fmt: skip
    """The sum of some parents before each iteration, and the gradient of the last iteration's sums."""
    places, present, _, _ = _vectors(NB, NJ, TILE)
    total = tl.full((TILE.vectors, TILE.width), 0.0, MATH.exact)
    s = total
    for _iteration in range(iterations):
        s = tl.load(sums + places, mask=present, other=0.0)
        tl.store(agreed + places, total, mask=present)
        total += _squash(s)
        places += tl.cast(NB, tl.int64) * NJ * TILE.e
    places -= tl.cast(NB, tl.int64) * NJ * TILE.e
    g = tl.load(grad + (places - (iterations - 1) * (tl.cast(NB, tl.int64) * NJ * TILE.e)), mask=present, other=0.0)
    tl.store(to_sums + places, _squash_gradient(s, g), mask=present)


@triton.jit(do_not_specialize=["iteration", "splits", "NB", "NI", "NJ"])
def _backward_step(
    partial, to_agreed, total, sums, to_sums, iteration, splits, NB, NI, NJ,
    TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """The gradient of `agreed` for some parents, later iterations' included, and that of the sums before."""
    places, present, _, _ = _vectors(NB, NJ, TILE)
    g = _sum_over_splits(partial, places, present, splits, NB, NJ, TILE, MATH)
    if to_agreed is not None:
        g += tl.load(to_agreed + places, mask=present, other=0.0)
    tl.store(total + places, g, mask=present)
    before = (iteration - 1) * (tl.cast(NB, tl.int64) * NJ * TILE.e) + places
    s = tl.load(sums + before, mask=present, other=0.0)
    tl.store(to_sums + before, _squash_gradient(s, g), mask=present)


@triton.jit
def _vectors(NB, NJ, TILE: tl.constexpr):
    """Where this program's vectors lie in [b, j, e], which there are, and their rows of [b, j] and dimensions."""
    row = tl.program_id(0).to(tl.int64) * TILE.vectors + tl.arange(0, TILE.vectors)[:, None]
    e = tl.arange(0, TILE.width)[None, :]
    return row * TILE.e + e, (row < tl.cast(NB, tl.int64) * NJ) & (e < TILE.e), row, e


@triton.jit
def _sum_over_splits(partial, places, present, splits, NB, NJ, TILE: tl.constexpr, MATH: tl.constexpr):
    """[splits, b, j, e] → [vectors, e]."""
    total = tl.full((TILE.vectors, TILE.width), 0.0, MATH.exact)
    for start in range(0, splits, TOGETHER):
        split = start + tl.arange(0, TOGETHER)[:, None, None]
        there = split.to(tl.int64) * NB * NJ * TILE.e + places[None, :, :]
        total += tl.sum(tl.load(partial + there, mask=(split < splits) & present[None, :, :], other=0.0), axis=0)
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
def _place(shape, TILE: tl.constexpr):
    """The images of a program, which of them there are, and the rest of its number.

    Images come first, so that programs that run side by side read the same matrices.
    """
    image_blocks = tl.cdiv(shape.b, TILE.images)
    images = tl.program_id(0) % image_blocks * TILE.images + tl.arange(0, TILE.images)
    return images, images < shape.b, tl.program_id(0) // image_blocks


@triton.jit
def _sweep(
    weight, agreed, prior, grad, x, rows, present, block,
    LEAKY: tl.constexpr, shape, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """One pass over the parents: largest logit, 1 / Σ_j exp(logit - largest) and Σ_j c_ij a_ij: [images, children]."""
    largest = tl.full((TILE.images, TILE.children), -1e38, MATH.exact)  # finite: a prior of -inf less this is -inf
    total = tl.full((TILE.images, TILE.children), 0.0, MATH.exact)
    if LEAKY:
        largest = tl.full((TILE.images, TILE.children), 0.0, MATH.exact)
        total += 1.0
    average = tl.full((TILE.images, TILE.children), 0.0, MATH.exact)
    for j in range(shape.j):
        v = _load_parents(agreed, rows, present, j, shape, TILE, MATH)
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
    """Logits prior_ij + u_ij·V_j and a_ij = u_ij·grad_j, [images, children]; W_ij V_j and W_ij grad_j, as x lies."""
    logits = tl.full((TILE.images, TILE.children), 0.0, MATH.exact)
    a = tl.full((TILE.images, TILE.children), 0.0, MATH.exact)
    wv = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.exact)
    wg = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.exact)
    if prior is not None:
        i = block * TILE.children + tl.arange(0, TILE.children)
        logits += tl.load(prior + i.to(tl.int64) * shape.j + j, mask=i < shape.i, other=0.0)[None, :]
    if v is not None:
        wv = tl.dot(v, tl.trans(w), input_precision=MATH.rounding, out_dtype=MATH.exact)
        logits += _over_depth(wv * x, TILE)
    if g is not None:
        wg = tl.dot(g, tl.trans(w), input_precision=MATH.rounding, out_dtype=MATH.exact)
        a += _over_depth(wg * x, TILE)
    return logits, a, wv, wg


@triton.jit
def _couplings(
    logits, a, statistics, rows, present, block, STRAYED: tl.constexpr, shape, TILE: tl.constexpr
):  # fmt: skip
    """The softmax c_ij of the logits by its statistics, and p_ij if asked for; zero where there is no such child."""
    pairs, inside = _pairs(rows, present, block, shape, TILE)
    top = tl.load(statistics + pairs, mask=inside, other=float("inf"))
    c = tl.exp(logits - top) * tl.load(statistics + pairs + shape.i, mask=inside, other=0.0)
    p = c
    if STRAYED:
        p = c * (a - tl.load(statistics + pairs + 2 * shape.i, mask=inside, other=0.0))
    return c, p


@triton.jit
def _store_statistics(statistics, found, rows, present, block, shape, TILE: tl.constexpr):
    """Keep what `_sweep` found, for `_couplings`."""
    pairs, inside = _pairs(rows, present, block, shape, TILE)
    tl.store(statistics + pairs, found[0], mask=inside)
    tl.store(statistics + pairs + shape.i, found[1], mask=inside)
    tl.store(statistics + pairs + 2 * shape.i, found[2], mask=inside)


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
    """Each child's number at all of its d: [images, children] → [images, children · d]."""
    if TILE.depth_first:
        repeated = tl.broadcast_to(values[:, None, :], (TILE.images, TILE.depth, TILE.children))
    else:
        repeated = tl.broadcast_to(values[:, :, None], (TILE.images, TILE.children, TILE.depth))
    return tl.reshape(repeated, (TILE.images, TILE.children * TILE.depth))


@triton.jit
def _scale(shares, x, TILE: tl.constexpr, MATH: tl.constexpr):
    """An operand, each child times its share: [images, children] and x → [images, children · d]."""
    return (_along_depth(shares, TILE) * x).to(MATH.operand)


@triton.jit
def _load_children(
    children, images, present, block, shape, TILE: tl.constexpr, MATH: tl.constexpr
):  # fmt: skip
    places, inside = _places(images, present, block, shape, TILE)
    return _fold(tl.load(children + places, mask=inside, other=0.0), TILE).to(MATH.exact)


@triton.jit
def _load_matrices(weight, block, j, shape, TILE: tl.constexpr, MATH: tl.constexpr):
    places, inside = _matrix_places(block, j, shape, TILE)
    return tl.load(weight + places, mask=inside, other=0.0).to(MATH.operand)


@triton.jit
def _load_parents(
    parents, rows, present, j, shape, TILE: tl.constexpr, MATH: tl.constexpr
):  # fmt: skip
    vectors = None
    if parents is not None:
        e = tl.arange(0, TILE.width)[None, :]
        places = (rows.to(tl.int64)[:, None] * shape.j + j) * TILE.e + e
        vectors = tl.load(parents + places, mask=present[:, None] & (e < TILE.e), other=0.0).to(MATH.operand)
    return vectors


@triton.jit
def _pairs(rows, present, block, shape, TILE: tl.constexpr):
    """Where a tile's pairs lie in the first of the statistics, and which of them there are: [images, children]."""
    i = (block * TILE.children + tl.arange(0, TILE.children))[None, :]
    return rows.to(tl.int64)[:, None] * 3 * shape.i + i, present[:, None] & (i < shape.i)


@triton.jit
def _places(images, present, block, shape, TILE: tl.constexpr):
    """Where a tile of children lies in [b, i, d], and what of it there is: [images, children, d]."""
    i = (block * TILE.children + tl.arange(0, TILE.children))[None, :, None]
    d = tl.arange(0, TILE.depth)[None, None, :]
    places = (images.to(tl.int64)[:, None, None] * shape.i + i) * TILE.d + d
    return places, present[:, None, None] & (i < shape.i) & (d < TILE.d)


@triton.jit
def _fold(values, TILE: tl.constexpr):
    """A tile as it lies in memory, [images, children, d], as it lies in the products: [images, children · d]."""
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
def _matrix_places(block, j, shape, TILE: tl.constexpr):
    """Where a tile of matrices lies in [i, j, d, e], and what of it there is: [children · d, e]."""
    i, d = _children_and_depth(block, TILE)
    e = tl.arange(0, TILE.width)[None, :]
    places = ((i.to(tl.int64) * shape.j + j) * TILE.d + d)[:, None] * TILE.e + e
    return places, ((i < shape.i) & (d < TILE.d))[:, None] & (e < TILE.e)


@triton.jit
def _children_and_depth(block, TILE: tl.constexpr):
    """The child and its d of each of a tile's rows of W."""
    flat = tl.arange(0, TILE.children * TILE.depth)
    if TILE.depth_first:
        child = flat % TILE.children
        d = flat // TILE.children
    else:
        child = flat // TILE.depth
        d = flat % TILE.depth
    return block * TILE.children + child, d
