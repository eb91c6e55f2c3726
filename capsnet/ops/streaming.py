"""Routing's three passes over the children in plain PyTorch, a tile at a time: the votes are never all there.

With û_ij = W_ij x_i, a vote need not exist for its product or its sum to be taken:

    û_ij·V_j      = x_i · (W_ij V_j)          agreement
    Σ_i c_ij û_ij = Σ_i (c_ij x_i) W_ij       weighted sum

Both are one matrix product a parent and a pass over [b, d, i]. A tile holds so few children and images that what is
made between two products stays in the processor's cache. Shapes: children [b, i, d], weight [i, j, d, e], prior
[i, j], agreed and grad [b, j, e]; in a tile x [b, d, i], w [j, d·i, e] and what is of couples [j, b, i].
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from capsnet.ops import passes
from capsnet.ops.passes import Gradients
from capsnet.ops.squash import sum_dtype

CACHE = 1 << 20  # numbers of a tile, over parents, images, children and their axis d
COPIED = 1 << 24  # numbers of the weight that are laid out anew at a time
LEAST = 16  # children in a tile, of which a product should have some


class Tile(NamedTuple):
    """Some children of some images."""

    images: slice
    children: slice
    x: Tensor  # [b, d, i]
    w: Tensor  # [j, d·i, e]
    prior: Tensor | None  # [j, 1, i]


class Passes(passes.Passes):
    """See `passes.Passes`."""

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        super().__init__(weight, prior, none_of_the_above)
        self.children, self.weight, self.prior, self.none_of_the_above = children, weight, prior, none_of_the_above
        self.exact = sum_dtype(children)

    def even_sum(self) -> Tensor:
        """See `passes.Passes.even_sum`."""
        return sum_evenly(self.children, self.weight)

    def weighted_sum(self, agreed: Tensor) -> Tensor:
        """See `passes.Passes.weighted_sum`."""
        agreed = rearrange(agreed, "b j e -> j b e").to(self.children.dtype)
        total = torch.zeros_like(agreed, dtype=self.exact)
        for tile in self._tiles():
            couplings, _ = self._couple(tile, agreed[:, tile.images])
            total[:, tile.images] += _gather(couplings, tile)
        return rearrange(total, "j b e -> b j e")

    def pull(self, agreed: Tensor, grad: Tensor) -> Tensor:
        """See `passes.Passes.pull`."""
        agreed, grad = (rearrange(t, "b j e -> j b e").to(self.children.dtype) for t in (agreed, grad))
        total = torch.zeros_like(agreed, dtype=self.exact)
        for tile in self._tiles():
            couplings, _ = self._couple(tile, agreed[:, tile.images])
            strayed = _stray(couplings, _agree(_spread(grad[:, tile.images], tile), tile))
            total[:, tile.images] += _gather(strayed, tile)
        return rearrange(total, "j b e -> b j e")

    def gradients(
        self, agreed: Tensor, grad: Tensor, even: Tensor | None, through: bool, needs: Sequence[bool]
    ) -> Gradients:
        """See `passes.Passes.gradients`."""
        agreed, grad = (rearrange(t, "t b j e -> t j b e").to(self.children.dtype) for t in (agreed, grad))
        results = empty_gradients((self.children, self.weight, self.prior), needs, self.exact)
        grad_children, grad_weight, grad_prior = (None if t is None else t.zero_() for t in results)
        for tile in self._tiles():
            to_x = None if grad_children is None else torch.zeros_like(tile.x, dtype=self.exact)
            to_w = None if grad_weight is None else torch.zeros_like(tile.w, dtype=self.exact)
            for v, g in zip(agreed[:, :, tile.images], grad[:, :, tile.images], strict=True):
                couplings, drawn = self._couple(tile, v)
                pushed = _spread(g, tile)  # [j, b, d, i]
                _share(couplings, pushed, g, tile, to_x, to_w)
                if not through and grad_prior is None:
                    continue
                strayed = _stray(couplings, _agree(pushed, tile))
                if through:
                    _share(strayed, drawn, v, tile, to_x, to_w)
                if grad_prior is not None:
                    grad_prior[tile.children] += rearrange(strayed.sum(dim=1), "j i -> i j")  # over images b
            if grad_children is not None and to_x is not None:
                grad_children[tile.images, tile.children] = rearrange(to_x, "b d i -> b i d")
            if grad_weight is not None and to_w is not None:
                grad_weight[tile.children] += rearrange(to_w, "j (d i) e -> i j d e", i=tile.x.shape[2])
        if even is not None:
            add_even_gradients(self.children, self.weight, even, grad_children, grad_weight)
        return grad_children, grad_weight, grad_prior

    def _tiles(self) -> Iterator[Tile]:
        """Cut the work into tiles, all images of some children before the next children."""
        (b, i, d), j = self.children.shape, self.weight.shape[1]
        images = max(1, min(b, CACHE // (LEAST * j * d)))
        places = max(1, min(i, CACHE // (images * j * d)))
        for start in range(0, i, places):
            some = slice(start, start + places)
            w = rearrange(self.weight[some], "i j d e -> j (d i) e").contiguous()
            prior = None if self.prior is None else rearrange(self.prior[some], "i j -> j 1 i")
            for first in range(0, b, images):
                part = slice(first, first + images)
                x = rearrange(self.children[part, some], "b i d -> b d i").contiguous()
                yield Tile(part, some, x, w, prior)

    def _couple(self, tile: Tile, agreed: Tensor) -> tuple[Tensor, Tensor]:
        """The couplings [j, b, i], and what W makes of the agreed parents [j, b, d, i]."""
        spread = _spread(agreed, tile)
        logits = _agree(spread, tile)
        logits = logits if tile.prior is None else logits + tile.prior
        if self.none_of_the_above:
            logits = torch.cat([logits, logits.new_zeros(1, *logits.shape[1:])])
        couplings = logits.softmax(dim=0)  # over parents j, and the orphan
        return couplings[: len(agreed)], spread


def sum_evenly(children: Tensor, weight: Tensor) -> Tensor:
    """Σ_i û_ij, a matrix product for some children at a time: [b, i, d], [i, j, d, e] → [b, j, e]."""
    _, j, _, e = weight.shape
    total = children.new_zeros(len(children), j * e, dtype=sum_dtype(children))
    for some in _parts(weight):
        total += children[:, some].flatten(1) @ rearrange(weight[some], "i j d e -> (i d) (j e)")
    return total.unflatten(1, (j, e))


def add_even_gradients(
    children: Tensor, weight: Tensor, even: Tensor, to_children: Tensor | None, to_weight: Tensor | None
) -> None:
    """Add the gradients of `sum_evenly` whose own gradient is even [b, j, e], those that are not None."""
    even, d = even.to(children.dtype).flatten(1), children.shape[2]
    for some in _parts(weight):
        if to_children is not None:
            pushed = even @ rearrange(weight[some], "i j d e -> (j e) (i d)")
            to_children[:, some] += rearrange(pushed, "b (i d) -> b i d", d=d)
        if to_weight is not None:
            products = children[:, some].flatten(1).T @ even  # [i · d, j · e]
            to_weight[some] += rearrange(products, "(i d) (j e) -> i j d e", d=d, j=weight.shape[1])


def empty_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool], exact: torch.dtype) -> Gradients:
    """Memory for the gradients of children, weight and prior, contiguous; None for what is absent or not needed."""
    results = [
        None if t is None or not need else torch.empty(t.shape, dtype=exact, device=t.device)
        for t, need in zip(inputs, needs, strict=True)
    ]
    return results[0], results[1], results[2]


def _parts(weight: Tensor) -> Iterator[slice]:
    """Children, so many at a time that a copy of their matrices is small."""
    i, *matrices = weight.shape
    places = max(1, COPIED // max(1, prod(matrices)))
    return (slice(start, start + places) for start in range(0, i, places))


def _spread(vectors: Tensor, tile: Tile) -> Tensor:
    """What W makes of a vector of each parent, for every child: [j, b, e] → [j, b, d, i]."""
    return torch.bmm(vectors, tile.w.transpose(1, 2)).unflatten(2, tile.x.shape[1:])


def _agree(spread: Tensor, tile: Tile) -> Tensor:
    """The product of each child with what was spread to it: [j, b, d, i] → [j, b, i]."""
    return (spread * tile.x).sum(dim=2, dtype=sum_dtype(spread))  # over the child's own axis d


def _gather(shares: Tensor, tile: Tile) -> Tensor:
    """The sum of the votes by shares: [j, b, i] → [j, b, e]."""
    shares = shares.to(tile.x.dtype).unsqueeze(2)  # [j, b, 1, i]
    return torch.bmm((shares * tile.x).flatten(2), tile.w)


def _stray(couplings: Tensor, pushes: Tensor) -> Tensor:
    """The gradient for the logits [j, b, i] of couplings that are pushed."""
    return couplings * (pushes - (couplings * pushes).sum(dim=0))  # over parents j


def _share(
    shares: Tensor, spread: Tensor, vectors: Tensor, tile: Tile, to_x: Tensor | None, to_w: Tensor | None
) -> None:
    """Add the gradients of Σ shares_ij û_ij·vector_j for the tile's children and matrices, those that are not None."""
    shares = shares.to(tile.x.dtype).unsqueeze(2)  # [j, b, 1, i]
    if to_x is not None:
        to_x += (shares * spread).sum(dim=0, dtype=to_x.dtype)  # over parents j
    if to_w is not None:
        to_w += torch.bmm((shares * tile.x).flatten(2).transpose(1, 2), vectors)
