"""The streaming backend: the passes of routing in plain PyTorch, one tile at a time, so that votes are never stored.

With û_ij = W_ij x_i, products and sums of votes do not need the votes themselves:

    û_ij·V_j      = x_i · (W_ij V_j)          agreement
    Σ_i c_ij û_ij = Σ_i (c_ij x_i) W_ij       weighted sum

Both are one matrix product for each parent and a pass over [b, d, i]. A tile has so few children and images that the
result of the one stays in the CPU's cache for the other. Shapes: children [b, i, d], weight [i, j, d, e], prior [i, j],
parent_sum and grad [b, j, e]; within a tile x [b, d, i], w [j, d·i, e] and couplings [j, b, i].
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from capsnet.ops.passes import Gradients, Passes
from capsnet.ops.squash import sum_dtype

CACHE = 1 << 20  # numbers of a tile, over parents, images, children and their axis d
COPIED = 1 << 24  # numbers of the weight that are copied at a time
LEAST = 16  # children that a tile should have at least, for an efficient matrix product


class Tile(NamedTuple):
    """Some children of some images."""

    images: slice
    children: slice
    x: Tensor  # [b, d, i]
    w: Tensor  # [j, d·i, e]
    prior: Tensor | None  # [j, 1, i]


class Streaming(Passes):
    """See `Passes`."""

    def __init__(self, children: Tensor, weight: Tensor, prior: Tensor | None, none_of_the_above: bool) -> None:
        super().__init__(weight, prior, none_of_the_above)
        self.children, self.weight, self.prior, self.none_of_the_above = children, weight, prior, none_of_the_above
        self.sum_dtype = sum_dtype(children)

    def uniform_sum(self) -> Tensor:
        """See `Passes.uniform_sum`."""
        _, j, _, e = self.weight.shape
        total = self.children.new_zeros(len(self.children), j * e, dtype=self.sum_dtype)
        for part in _parts(self.weight):
            matrix = rearrange(self.weight[part], "i j d e -> (i d) (j e)")
            total += self.children[:, part].flatten(1) @ matrix
        return total.view(len(total), j, e)

    def weighted_sum(self, parent_sum: Tensor) -> Tensor:
        """See `Passes.weighted_sum`."""
        parent_sum = rearrange(parent_sum, "b j e -> j b e").to(self.children.dtype)
        total = torch.zeros_like(parent_sum, dtype=self.sum_dtype)
        for tile in self._tiles():
            couplings, _ = self._couple(tile, parent_sum[:, tile.images])
            total[:, tile.images] += _weighted_reduction(couplings, tile)
        return rearrange(total, "j b e -> b j e")

    def agreement_gradient(self, parent_sum: Tensor, grad: Tensor) -> Tensor:
        """See `Passes.agreement_gradient`."""
        parent_sum, grad = (rearrange(t, "b j e -> j b e").to(self.children.dtype) for t in (parent_sum, grad))
        total = torch.zeros_like(parent_sum, dtype=self.sum_dtype)
        for tile in self._tiles():
            couplings, _ = self._couple(tile, parent_sum[:, tile.images])
            grad_couplings = _agreement(_project(grad[:, tile.images], tile), tile)
            total[:, tile.images] += _weighted_reduction(_softmax_backward(couplings, grad_couplings), tile)
        return rearrange(total, "j b e -> b j e")

    def gradients(
        self,
        parent_sums: Tensor,
        grad: Tensor,
        grad_uniform: Tensor | None,
        through_agreement: bool,
        needs: Sequence[bool],
    ) -> Gradients:
        """See `Passes.gradients`."""
        parent_sums, grad = (rearrange(t, "t b j e -> t j b e").to(self.children.dtype) for t in (parent_sums, grad))
        results = empty_gradients((self.children, self.weight, self.prior), needs, self.sum_dtype)
        grad_children, grad_weight, grad_prior = (None if t is None else t.zero_() for t in results)
        for tile in self._tiles():
            grad_x = None if grad_children is None else torch.zeros_like(tile.x, dtype=self.sum_dtype)
            grad_w = None if grad_weight is None else torch.zeros_like(tile.w, dtype=self.sum_dtype)
            for v, g in zip(parent_sums[:, :, tile.images], grad[:, :, tile.images], strict=True):
                couplings, projected_v = self._couple(tile, v)
                projected_g = _project(g, tile)  # [j, b, d, i]
                _add_vote_gradients(couplings, projected_g, g, tile, grad_x, grad_w)
                if not through_agreement and grad_prior is None:
                    continue
                grad_logits = _softmax_backward(couplings, _agreement(projected_g, tile))
                if through_agreement:
                    _add_vote_gradients(grad_logits, projected_v, v, tile, grad_x, grad_w)
                if grad_prior is not None:
                    grad_prior[tile.children] += rearrange(grad_logits.sum(dim=1), "j i -> i j")  # over images b
            if grad_children is not None and grad_x is not None:
                grad_children[tile.images, tile.children] = rearrange(grad_x, "b d i -> b i d")
            if grad_weight is not None and grad_w is not None:
                grad_weight[tile.children] += rearrange(grad_w, "j (d i) e -> i j d e", i=tile.x.shape[2])
        if grad_uniform is not None:
            self._add_uniform_gradients(grad_uniform, grad_children, grad_weight)
        return grad_children, grad_weight, grad_prior

    def _add_uniform_gradients(self, grad: Tensor, grad_children: Tensor | None, grad_weight: Tensor | None) -> None:
        """Add the gradients of `uniform_sum`, where grad [b, j, e] is its own, to those that are not None."""
        grad, (_, j, d, _) = grad.to(self.children.dtype).flatten(1), self.weight.shape
        for part in _parts(self.weight):
            if grad_children is not None:
                products = grad @ rearrange(self.weight[part], "i j d e -> (j e) (i d)")
                grad_children[:, part] += rearrange(products, "b (i d) -> b i d", d=d)
            if grad_weight is not None:
                products = self.children[:, part].flatten(1).T @ grad  # [i · d, j · e]
                grad_weight[part] += rearrange(products, "(i d) (j e) -> i j d e", d=d, j=j)

    def _tiles(self) -> Iterator[Tile]:
        """Split the work into tiles: all images of the first children, then the next children."""
        (b, i, d), j = self.children.shape, self.weight.shape[1]
        images = max(1, min(b, CACHE // (LEAST * j * d)))
        children = max(1, min(i, CACHE // (images * j * d)))
        for first_child in range(0, i, children):
            some = slice(first_child, first_child + children)
            w = rearrange(self.weight[some], "i j d e -> j (d i) e").contiguous()
            prior = None if self.prior is None else rearrange(self.prior[some], "i j -> j 1 i")
            for first_image in range(0, b, images):
                part = slice(first_image, first_image + images)
                x = rearrange(self.children[part, some], "b i d -> b d i").contiguous()
                yield Tile(part, some, x, w, prior)

    def _couple(self, tile: Tile, parent_sum: Tensor) -> tuple[Tensor, Tensor]:
        """The couplings [j, b, i], and the parent sum projected by W [j, b, d, i]."""
        projected = _project(parent_sum, tile)
        logits = _agreement(projected, tile)
        logits = logits if tile.prior is None else logits + tile.prior
        if self.none_of_the_above:
            logits = torch.cat([logits, logits.new_zeros(1, *logits.shape[1:])])
        couplings = logits.softmax(dim=0)  # over parents j, and none of the above
        return couplings[: len(parent_sum)], projected


def empty_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool], dtype: torch.dtype) -> Gradients:
    """Memory for the gradients of children, weight and prior, contiguous; None for what is absent or not needed."""
    children, weight, prior = (
        None if t is None or not need else torch.empty(t.shape, dtype=dtype, device=t.device)
        for t, need in zip(inputs, needs, strict=True)
    )
    return children, weight, prior


def _parts(weight: Tensor) -> Iterator[slice]:
    """Slices of the children, each so short that a copy of its matrices is small."""
    i, *matrices = weight.shape
    size = max(1, COPIED // max(1, prod(matrices)))
    return (slice(start, start + size) for start in range(0, i, size))


def _project(vectors: Tensor, tile: Tile) -> Tensor:
    """W_ij times a vector of each parent, for every child: [j, b, e] → [j, b, d, i]."""
    projected = torch.bmm(vectors, tile.w.transpose(1, 2))  # [j, b, d·i]
    return projected.view(*projected.shape[:2], *tile.x.shape[1:])


def _agreement(projected: Tensor, tile: Tile) -> Tensor:
    """The dot product of each child with the projected vectors: [j, b, d, i] → [j, b, i]."""
    return (projected * tile.x).sum(dim=2, dtype=sum_dtype(projected))  # over the child's own axis d


def _weighted_reduction(coefficients: Tensor, tile: Tile) -> Tensor:
    """The sum of the votes over the children, weighted by coefficients: [j, b, i] → [j, b, e]."""
    coefficients = coefficients.to(tile.x.dtype).unsqueeze(2)  # [j, b, 1, i]
    return torch.bmm((coefficients * tile.x).flatten(2), tile.w)


def _softmax_backward(couplings: Tensor, grad_couplings: Tensor) -> Tensor:
    """The gradient for the logits [j, b, i]."""
    return couplings * (grad_couplings - (couplings * grad_couplings).sum(dim=0))  # over parents j


def _add_vote_gradients(
    coefficients: Tensor, projected: Tensor, vectors: Tensor, tile: Tile, grad_x: Tensor | None, grad_w: Tensor | None
) -> None:
    """Add the gradients of Σ_ij coefficient_ij û_ij·vector_j for the tile's x and w to those that are not None."""
    coefficients = coefficients.to(tile.x.dtype).unsqueeze(2)  # [j, b, 1, i]
    if grad_x is not None:
        grad_x += (coefficients * projected).sum(dim=0, dtype=grad_x.dtype)  # over parents j
    if grad_w is not None:
        grad_w += torch.bmm((coefficients * tile.x).flatten(2).transpose(1, 2), vectors)
