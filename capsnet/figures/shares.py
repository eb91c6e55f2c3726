"""How a network routed one image, as numbers: couplings by place, shares by type and entropies."""

from math import log, log2
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor

from capsnet.models import CapsNet


class Routing(NamedTuple):
    """How the children of one image were routed; the children are listed by type, then row, then column."""

    couplings: Tensor  # [r, i, j], of every iteration
    parents: Tensor  # [r, j, e], of every iteration
    children: Tensor  # [i]: their lengths

    @property
    def lengths(self) -> Tensor:
        """The lengths [j] of the network's capsules: the parents of the last iteration."""
        return torch.linalg.vector_norm(self.parents[-1], dim=-1)  # over the capsule's own axis e


def routed(network: CapsNet, pixels: Tensor) -> Routing:
    """Watch the routing of one image [1, c, h, w] in [0, 1]."""
    with torch.inference_mode():
        children = network.primary_capsules(pixels)  # [1, i, d]
        couplings, parents = zip(*network.digit_caps.trace(children), strict=True)
        lengths = torch.linalg.vector_norm(children[0], dim=-1)  # over the capsule's own axis d
    return Routing(torch.cat(couplings).cpu(), torch.cat(parents).cpu(), lengths.cpu())


def maps(couplings: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean over the capsule types of the couplings at each place of the grid: [r, i, j] → [r, j, h, w]."""
    h, w = grid
    return reduce(couplings, "r (types h w) j -> r j h w", "mean", h=h, w=w)


def shares(couplings: Tensor, lengths: Tensor, types: int) -> Tensor:
    """What each type's children, each counting by its length, give to each class: [i, j], [i] → [types, j]."""
    weights = rearrange(lengths, "(types places) -> types places 1", types=types)
    given = weights * rearrange(couplings, "(types places) j -> types places j", types=types)
    smallest = torch.finfo(weights.dtype).tiny  # a type whose children all are zero gives nothing
    return given.sum(dim=1) / weights.sum(dim=1).clamp_min(smallest)  # over places


def entropy(couplings: Tensor, none_of_the_above: bool) -> Tensor:
    """How evenly each child shares itself out, in bits: at most log2 of the number of parents j. [..., j] → [...].

    Where the routing is `leaky` the orphan, which has the rest, counts as one more parent.
    """
    if none_of_the_above:
        rest = 1 - couplings.sum(dim=-1, keepdim=True)  # over parents j
        couplings = torch.cat([couplings, rest.clamp_min(0)], dim=-1)  # which rounding can take below 0
    return torch.special.entr(couplings).sum(dim=-1) / log(2)  # over parents j


def routing_numbers(network: CapsNet, routing: Routing) -> dict[str, Any]:
    """Numbers of a routing; lists by iteration, capsule type, class, row and column have their axes in this order."""
    caps, count = network.digit_caps, len(routing.lengths)
    types = len(routing.children) // (network.grid[0] * network.grid[1])
    parents = count + caps.none_of_the_above  # the orphan is one more
    return {
        "iterations": len(routing.couplings),
        "lengths": routing.lengths.tolist(),
        "even_share": 1 / parents,
        "couplings_by_place": maps(routing.couplings, network.grid).tolist(),
        "shares": [shares(of, routing.children, 1)[0].tolist() for of in routing.couplings],
        "last_shares_by_type": shares(routing.couplings[-1], routing.children, types).tolist(),
        "entropy": entropy(routing.couplings, caps.none_of_the_above).mean(dim=-1).tolist(),  # over children i
        "greatest_entropy": log2(parents),
    }
