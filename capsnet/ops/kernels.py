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
here as tf32, which holds its digits and has the range of float32 that gradients need.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.streaming import Gradients, add_even_gradients, empty_gradients, sum_evenly

INTERPRETED = triton.knobs.runtime.interpret
COUNT = tl.constexpr if INTERPRETED else int  # of a loop: Triton's interpreter has them known, as a range of its own
SIDE = 16  # the smallest side of a matrix product
ROWS = 64  # of W in a tile, children · d, where a vote is not too wide
PROGRAMS = 4 * 132  # four for each multiprocessor of an H200; the same on any GPU, and so are the sums
SPLITS = 64  # of the children, at most
LARGEST = 64 * 64  # numbers of W in a tile: more spill out of registers


class Shape(NamedTuple):
    """How many children and parents there are: no kernel is compiled anew for others."""

    i: int
    j: int


class Tile(NamedTuple):
    """What a program holds at once: images, children, d and e filled up to powers of two and as they are; warps."""

    images: int
    children: int
    depth: int
    width: int
    d: int
    e: int
    warps: int


class Arithmetic(NamedTuple):
    """The dtype of sums, that of a matrix product's operands, and how such a product may round them."""

    exact: tl.dtype
    operand: tl.dtype
    rounding: str


class Plan(NamedTuple):
    """What a kernel is told of its tensors, and what it is compiled for: tile and arithmetic."""

    shape: Shape
    tile: Tile
    math: Arithmetic


class Passes(NamedTuple):
    """The three passes over children [b, i, d] by weight [i, j, d, e]: see `streaming.Passes`."""

    children: Tensor
    weight: Tensor
    prior: Tensor | None
    leaky: bool

    def even_sum(self) -> Tensor:
        """See `streaming.Passes.even_sum`."""
        return sum_evenly(self.children, self.weight)

    def weighted_sum(self, agreed: Tensor) -> Tensor:
        """See `weighted_sum` below."""
        return weighted_sum(self.children, self.weight, agreed, self.prior, self.leaky)

    def pull(self, agreed: Tensor, grad: Tensor) -> Tensor:
        """See `pull` below."""
        return pull(self.children, self.weight, agreed, self.prior, self.leaky, grad)

    def gradients(
        self, agreed: Tensor, grad: Tensor, even: Tensor | None, through: bool, needs: Sequence[bool]
    ) -> Gradients:
        """See `gradients` below; `even` is that of `streaming.Passes.gradients`."""
        grads = gradients(self.children, self.weight, agreed, self.prior, self.leaky, grad, through, needs)
        if even is not None:
            add_even_gradients(self.children, self.weight, even, *grads[:2])
        return grads


def weighted_sum(children: Tensor, weight: Tensor, agreed: Tensor | None, prior: Tensor | None, leaky: bool) -> Tensor:
    """The weighted sum of the votes, s_j = Σ_i c_ij u_ij (Procedure 1, lines 4 and 5), with no vote stored.

    The logits are prior_ij + u_ij·V_j with V (`agreed`) the sum of the parents of all iterations so far; None stands
    for zeros. `leaky` adds a parent with logit 0 whose share is dropped. Raises InputError where one vote's matrix is
    too large for a GPU's multiprocessor.

    children [b, i, d], weight [i, j, d, e], agreed [b, j, e], prior [i, j] → [b, j, e] in float32 (float64 of float64)
    """
    return _sum_over_children(children, weight, agreed, prior, leaky, None)


def pull(
    children: Tensor, weight: Tensor, agreed: Tensor | None, prior: Tensor | None, leaky: bool, grad: Tensor
) -> Tensor:
    """The gradient of <weighted_sum(...), grad> for `agreed`: Σ_i p_ij u_ij, with p_ij the gradient of the logits.

    With a_ij = u_ij·grad_j, p_ij = c_ij (a_ij - Σ_k c_ik a_ik). Raises as `weighted_sum` does.

    shapes as in `weighted_sum`, grad [b, j, e] → [b, j, e] in float32 (float64 of float64)
    """
    return _sum_over_children(children, weight, agreed, prior, leaky, grad)


def gradients(
    children: Tensor,
    weight: Tensor,
    agreed: Tensor | None,
    prior: Tensor | None,
    leaky: bool,
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
    plan, exact = _plan(children, weight)
    t, b, i, j = len(grad), *children.shape[:2], weight.shape[1]
    grad_children, grad_weight, grad_prior = empty_gradients((children, weight, prior), needs, exact)
    if not children.numel() or not weight.numel():
        for zeros in (grad_children, grad_weight, grad_prior):
            if zeros is not None:
                zeros.zero_()
    else:
        tensors, warps = _prepared(exact, children, weight, agreed, prior, grad), plan.tile.warps
        found = *tensors, *children.new_empty(3, t, b, i, dtype=exact)  # the statistics are the last three
        blocks, image_blocks = triton.cdiv(i, plan.tile.children), triton.cdiv(b, plan.tile.images)
        with torch.cuda.device_of(children):
            _children_gradient[blocks, image_blocks](
                *found, grad_children, b, COUNT(t), leaky, through, *plan, num_warps=warps
            )
            results = grad_weight, grad_prior
            if any(result is not None for result in results):
                _weight_gradient[(blocks * j,)](
                    *found, *results, b, COUNT(t), COUNT(image_blocks), through, *plan, num_warps=warps
                )
    return grad_children, grad_weight, grad_prior


def _sum_over_children(
    children: Tensor, weight: Tensor, agreed: Tensor | None, prior: Tensor | None, leaky: bool, grad: Tensor | None
) -> Tensor:
    """Σ_i c_ij u_ij without `grad`, Σ_i p_ij u_ij with it: [b, j, e]."""
    plan, exact = _plan(children, weight)
    (b, i), (_, j, _, e) = children.shape[:2], weight.shape
    if not children.numel() or not weight.numel():
        return children.new_zeros(b, j, e, dtype=exact)
    tensors, warps = _prepared(exact, children, weight, agreed, prior, grad), plan.tile.warps
    found = *tensors, *children.new_empty(3, b, i, dtype=exact)  # the statistics are the last three
    blocks, image_blocks = triton.cdiv(i, plan.tile.children), triton.cdiv(b, plan.tile.images)
    share = triton.cdiv(blocks, min(SPLITS, triton.cdiv(PROGRAMS, j * image_blocks)))  # blocks to a split
    splits = triton.cdiv(blocks, share)
    partial = children.new_empty(splits, b, j, e, dtype=exact)
    with torch.cuda.device_of(children):
        _statistics[blocks, image_blocks](*found, b, leaky, *plan, num_warps=warps)
        _partial_sums[j, splits, image_blocks](*found, partial, b, COUNT(share), *plan, num_warps=warps)
    return partial.sum(dim=0) if splits > 1 else partial[0]  # over the splits


def _plan(children: Tensor, weight: Tensor) -> tuple[Plan, torch.dtype]:
    """Sizes and arithmetic by plain rules from the shapes and dtypes, and the dtype of the sums."""
    i, j, d, e = weight.shape
    depth, width = triton.next_power_of_2(max(d, 1)), triton.next_power_of_2(max(e, SIDE))
    rows = max(depth, SIDE, min(ROWS, LARGEST // width))
    if not has_room(weight):
        raise InputError(
            f"a vote's matrix of {d} x {e} numbers has no room on a GPU's multiprocessor: "
            f"d x e, filled up to powers of two and {SIDE} at least, may be at most {LARGEST}"
        )
    dtype = torch.promote_types(children.dtype, weight.dtype)
    most = 16 if max(rows, width) > ROWS else 64 if dtype.itemsize == 2 else 32
    images = min(triton.next_power_of_2(max(len(children), SIDE)), most)
    tile = Tile(images, rows // depth, depth, width, d, e, warps=8 if rows * width > LARGEST // 2 else 4)
    exact = torch.promote_types(dtype, torch.float32)
    sums = tl.float64 if exact == torch.float64 else tl.float32
    operand = tl.bfloat16 if dtype == torch.bfloat16 and not INTERPRETED else sums
    return Plan(
        Shape(COUNT(i), COUNT(j)), tile, Arithmetic(sums, operand, "tf32" if dtype == torch.float16 else "ieee")
    ), exact


def has_room(weight: Tensor) -> bool:
    """Whether one vote's matrix fits a multiprocessor's registers."""
    depth, width = (triton.next_power_of_2(max(n, SIDE)) for n in weight.shape[2:])
    return depth * width <= LARGEST


def _prepared(exact: torch.dtype, children: Tensor, weight: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """All contiguous, and agreed, prior and grad in the dtype of the sums."""
    return [children.contiguous(), weight.contiguous(), *(t if t is None else t.to(exact).contiguous() for t in others)]


# In the kernels a tile of children lies flat, x [images, children · d], and W's likewise, w [children · d, e]; v and g
# are one parent's vectors of `agreed` and `grad`, [images, e]. An absent tensor is None, which Triton compiles away.
# What fills a tile up is not read but zero, in every tensor, so that it adds zero to every sum.


@triton.jit(do_not_specialize=["b"])
def _statistics(
    children, weight, agreed, prior, grad, largest, inverse, mean, b,
    LEAKY: tl.constexpr, shape, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """What `_sweep` finds, for each image and child [b, i]; the last with `grad` alone."""
    block = tl.program_id(0)
    images = tl.program_id(1) * TILE.images + tl.arange(0, TILE.images)
    present = images < b
    x = _load_children(children, images, present, block, shape, TILE, MATH)
    top, scale, average = _sweep(weight, agreed, prior, grad, x, images, present, block, LEAKY, shape, TILE, MATH)
    pairs, inside = _pairs(images, present, block, shape, TILE)
    tl.store(largest + pairs, top, mask=inside)
    tl.store(inverse + pairs, scale, mask=inside)
    if grad is not None:
        tl.store(mean + pairs, average, mask=inside)


@triton.jit(do_not_specialize=["b", "share"])
def _partial_sums(
    children, weight, agreed, prior, grad, largest, inverse, mean, partial, b, share,
    shape, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """One parent's Σ_i c_ij u_ij (with `grad`: Σ_i p_ij u_ij) over one split of the children: [images, e]."""
    j = tl.program_id(0)
    split = tl.program_id(1)
    images = tl.program_id(2) * TILE.images + tl.arange(0, TILE.images)
    present = images < b
    v = _load_parents(agreed, images, present, j, shape, TILE, MATH)
    g = _load_parents(grad, images, present, j, shape, TILE, MATH)
    total = tl.full((TILE.images, TILE.width), 0.0, MATH.exact)
    for step in range(share):
        block = split * share + step
        x = _load_children(children, images, present, block, shape, TILE, MATH)
        w = _load_matrices(weight, block, j, shape, TILE, MATH)
        logits, a, _, _ = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
        pairs, inside = _pairs(images, present, block, shape, TILE)
        shares = _couplings(logits, largest, inverse, pairs, inside)
        if grad is not None:
            shares *= a - tl.load(mean + pairs, mask=inside, other=0.0)  # p_ij
        total = tl.dot(_scale(shares, x, TILE, MATH), w, total, input_precision=MATH.rounding, out_dtype=MATH.exact)
    rows = split.to(tl.int64) * b + images
    e = tl.arange(0, TILE.width)[None, :]
    tl.store(partial + (rows[:, None] * shape.j + j) * TILE.e + e, total, mask=present[:, None] & (e < TILE.e))


@triton.jit(do_not_specialize=["b", "iterations"])
def _children_gradient(
    children, weight, agreed, prior, grad, largest, inverse, mean, grad_children, b, iterations,
    LEAKY: tl.constexpr, THROUGH: tl.constexpr,
    shape, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Σ_t Σ_j W_ij (c_ij grad_j + p_ij V_j) of a tile of images and children, and the statistics [t, b, i].

    Without grad_children it finds the statistics alone.
    """
    block = tl.program_id(0)
    images = tl.program_id(1) * TILE.images + tl.arange(0, TILE.images)
    present = images < b
    x = _load_children(children, images, present, block, shape, TILE, MATH)
    total = tl.full((TILE.images, TILE.children * TILE.depth), 0.0, MATH.exact)
    for iteration in range(iterations):
        rows = iteration * tl.cast(b, tl.int64) + images
        top, scale, average = _sweep(weight, agreed, prior, grad, x, rows, present, block, LEAKY, shape, TILE, MATH)
        pairs, inside = _pairs(rows, present, block, shape, TILE)
        tl.store(largest + pairs, top, mask=inside)
        tl.store(inverse + pairs, scale, mask=inside)
        tl.store(mean + pairs, average, mask=inside)
        if grad_children is not None:
            for j in range(shape.j):
                v = _load_parents(agreed, rows, present, j, shape, TILE, MATH)
                g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
                w = _load_matrices(weight, block, j, shape, TILE, MATH)
                logits, a, wv, wg = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
                couplings = tl.exp(logits - top) * scale
                total += _along_depth(couplings, TILE) * wg
                if THROUGH and agreed is not None:
                    total += _along_depth(couplings * (a - average), TILE) * wv
    if grad_children is not None:
        places, inside = _places(images, present, block, shape, TILE)
        tl.store(grad_children + places, total, mask=inside)


@triton.jit(do_not_specialize=["b", "iterations", "image_blocks"])
def _weight_gradient(
    children, weight, agreed, prior, grad, largest, inverse, mean, grad_weight, grad_prior, b, iterations, image_blocks,
    THROUGH: tl.constexpr,
    shape, TILE: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Σ_b,t x_i ⊗ (c_ij grad_j + p_ij V_j) of a tile of children and one parent, and Σ_b,t p_ij for the prior.

    Each only where there is memory for it.
    """
    block = tl.program_id(0) // shape.j  # one axis of the grid, since only the first is long enough for any j
    j = tl.program_id(0) % shape.j
    w = _load_matrices(weight, block, j, shape, TILE, MATH)
    total = tl.full((TILE.children * TILE.depth, TILE.width), 0.0, MATH.exact)
    pulled = tl.full((TILE.children,), 0.0, MATH.exact)
    for iteration in range(iterations):
        for step in range(image_blocks):
            images = step * TILE.images + tl.arange(0, TILE.images)
            present = images < b
            rows = iteration * tl.cast(b, tl.int64) + images
            x = _load_children(children, images, present, block, shape, TILE, MATH)
            v = _load_parents(agreed, rows, present, j, shape, TILE, MATH)
            g = _load_parents(grad, rows, present, j, shape, TILE, MATH)
            logits, a, _, _ = _agreements(v, g, prior, x, w, block, j, shape, TILE, MATH)
            pairs, inside = _pairs(rows, present, block, shape, TILE)
            c = _couplings(logits, largest, inverse, pairs, inside)
            p = c * (a - tl.load(mean + pairs, mask=inside, other=0.0))
            if grad_weight is not None:
                shared = tl.trans(_scale(c, x, TILE, MATH))
                total = tl.dot(shared, g, total, input_precision=MATH.rounding, out_dtype=MATH.exact)
                if THROUGH and agreed is not None:
                    shared = tl.trans(_scale(p, x, TILE, MATH))
                    total = tl.dot(shared, v, total, input_precision=MATH.rounding, out_dtype=MATH.exact)
            pulled += tl.sum(p, axis=0)  # over the images
    if grad_weight is not None:
        places, inside = _matrix_places(block, j, shape, TILE)
        tl.store(grad_weight + places, total, mask=inside)
    if grad_prior is not None:
        i = block * TILE.children + tl.arange(0, TILE.children)
        tl.store(grad_prior + i * shape.j + j, pulled, mask=i < shape.i)


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
        logits += tl.load(prior + i * shape.j + j, mask=i < shape.i, other=0.0)[None, :]
    if v is not None:
        wv = tl.dot(v, tl.trans(w), input_precision=MATH.rounding, out_dtype=MATH.exact)
        logits += _over_depth(wv * x, TILE)
    if g is not None:
        wg = tl.dot(g, tl.trans(w), input_precision=MATH.rounding, out_dtype=MATH.exact)
        a += _over_depth(wg * x, TILE)
    return logits, a, wv, wg


@triton.jit
def _couplings(logits, largest, inverse, pairs, inside):
    """The softmax of the logits by its statistics; zero where there is no such image or child."""
    top = tl.load(largest + pairs, mask=inside, other=float("inf"))
    return tl.exp(logits - top) * tl.load(inverse + pairs, mask=inside, other=0.0)


@triton.jit
def _over_depth(values, TILE: tl.constexpr):
    """The sum over each child's own axis d: [images, children · d] → [images, children]."""
    return tl.sum(tl.reshape(values, (TILE.images, TILE.children, TILE.depth)), axis=2)


@triton.jit
def _along_depth(values, TILE: tl.constexpr):
    """Each child's number at all of its d: [images, children] → [images, children · d]."""
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
    return tl.load(children + places, mask=inside, other=0.0).to(MATH.exact)


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
    """Where a tile's pairs lie in [rows, i], and which of them there are: [images, children]."""
    i = (block * TILE.children + tl.arange(0, TILE.children))[None, :]
    return rows.to(tl.int64)[:, None] * shape.i + i, present[:, None] & (i < shape.i)


@triton.jit
def _places(images, present, block, shape, TILE: tl.constexpr):
    """Where a tile of children lies in [b, i, d], and what of it there is: [images, children · d]."""
    i, d = _children_and_depth(block, TILE)
    places = (images.to(tl.int64)[:, None] * shape.i + i[None, :]) * TILE.d + d[None, :]
    return places, present[:, None] & ((i < shape.i) & (d < TILE.d))[None, :]


@triton.jit
def _matrix_places(block, j, shape, TILE: tl.constexpr):
    """Where a tile of matrices lies in [i, j, d, e], and what of it there is: [children · d, e]."""
    i, d = _children_and_depth(block, TILE)
    e = tl.arange(0, TILE.width)[None, :]
    places = ((i.to(tl.int64) * shape.j + j) * TILE.d + d)[:, None] * TILE.e + e
    return places, ((i < shape.i) & (d < TILE.d))[:, None] & (e < TILE.e)


@triton.jit
def _children_and_depth(block, TILE: tl.constexpr):
    flat = tl.arange(0, TILE.children * TILE.depth)
    return block * TILE.children + flat // TILE.depth, flat % TILE.depth
