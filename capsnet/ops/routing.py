"""Routing without the votes: Procedure 1 of Sabour, Frosst and Hinton (2017), with nothing of size [b, i, j, e].

Two identities make it possible. The logits of Procedure 1 only ever grow by û_ij·v_j, so after some iterations they
are prior_ij + û_ij·V_j with V_j the sum of the parents so far. And with û_ij = W_ij x_i a vote need not exist for
its product or its sum to be taken:

    û_ij·V_j    = x_i · (W_ij V_j)          agreement
    Σ_i c_ij û_ij = Σ_i (c_ij x_i) W_ij     weighted sum

Both are one matrix product a parent and a pass over [b, i, d], and each is the other's gradient.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.reference import Gradient, check_routing
from capsnet.ops.squash import squash


def route(
    children: Tensor,
    weight: Tensor,
    iterations: int = 3,
    *,
    prior: Tensor | None = None,
    bias: Tensor | None = None,
    leaky: bool = False,
    gradient: Gradient = "all",
) -> Tensor:
    """The parents that `dynamic_routing(vote(children, weight), ...)` gives, with no votes stored.

    `prior` [i, j], `bias` [j, e], `leaky` and `gradient` are those of `routing_trace`. Under autocast the matrix
    products run in its dtype; the logits and the parents stay in float32. Raises InputError for shapes that do not
    fit, iterations below 1 and an unknown gradient.

    children [b, i, d], weight [i, j, d, e] → parents [b, j, e]
    """
    check_routing(iterations, gradient)
    _check_shapes(children, weight, prior, bias)
    device = children.device.type
    if not torch.is_autocast_enabled(device) or children.dtype == torch.float64:
        return _route(children, weight, iterations, prior, bias, leaky, gradient).to(children.dtype)
    children, weight = (t.to(torch.get_autocast_dtype(device)) for t in (children, weight))
    with torch.autocast(device, enabled=False):
        return _route(children, weight, iterations, prior, bias, leaky, gradient)


def _route(
    children: Tensor,
    weight: Tensor,
    iterations: int,
    prior: Tensor | None,
    bias: Tensor | None,
    leaky: bool,
    gradient: Gradient,
) -> Tensor:
    exact = torch.promote_types(children.dtype, torch.float32)  # sums, logits and parents
    columns = rearrange(children, "b i d -> b d i").contiguous()
    matrices = rearrange(weight, "i j d e -> j (d i) e").contiguous()
    logits = None if prior is None else repeat(prior, "i j -> j b i", b=len(children))
    for iteration in range(1, iterations + 1):
        if logits is None:
            total = _uniform_sum(columns, matrices, leaky)
        else:
            total = _WeightedSum.apply(_couple(logits, leaky).to(children.dtype), columns, matrices)
        total = rearrange(total, "j b e -> b j e").to(exact)
        parents = squash(total if bias is None else total + bias)  # [b, j, e]
        if iteration < iterations:
            with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "all"):
                v = rearrange(parents, "b j e -> j b e").to(children.dtype)
                agreement = _Agreement.apply(v, columns, matrices).to(exact)  # [j, b, i]
            logits = agreement if logits is None else logits + agreement
    return parents


def _couple(logits: Tensor, leaky: bool) -> Tensor:
    """The twin of `reference.couple`, with the parents first: logits [j, b, i] → couplings [j, b, i]."""
    if not leaky:
        return logits.softmax(dim=0)  # over parents j
    orphan = logits.new_zeros(1, *logits.shape[1:])
    return torch.cat([logits, orphan]).softmax(dim=0)[:-1]  # over parents j and the orphan


def _uniform_sum(columns: Tensor, matrices: Tensor, leaky: bool) -> Tensor:
    """The weighted sum before any agreement, when all couplings are the same."""
    return columns.flatten(1) @ matrices / (len(matrices) + leaky)  # [j, b, e]


class _WeightedSum(torch.autograd.Function):
    """s_j = Σ_i c_ij x_i W_ij: couplings [j, b, i], children [b, d, i], matrices [j, d·i, e] → sums [j, b, e]."""

    @staticmethod
    def forward(ctx: Any, couplings: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(couplings, children, matrices)
        return _weighted_sum(couplings, children, matrices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        couplings, children, matrices = ctx.saved_tensors
        return _agreement(grad, children, matrices), *_shared_gradients(couplings, grad, children, matrices)


class _Agreement(torch.autograd.Function):
    """a_ij = x_i · (W_ij v_j): parents [j, b, e], children [b, d, i], matrices [j, d·i, e] → agreement [j, b, i]."""

    @staticmethod
    def forward(ctx: Any, parents: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(parents, children, matrices)
        return _agreement(parents, children, matrices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parents, children, matrices = ctx.saved_tensors
        return _weighted_sum(grad, children, matrices), *_shared_gradients(grad, parents, children, matrices)


def _weighted_sum(couplings: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
    shares = couplings.unsqueeze(2)  # [j, b, 1, i]
    sums = [(share * children).flatten(1) @ matrix for share, matrix in zip(shares, matrices, strict=True)]
    return torch.stack(sums)  # [j, b, e]


def _agreement(parents: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
    agreements = [
        ((parent @ matrix.T).view_as(children) * children).sum(dim=1)  # over the child's own axis d
        for parent, matrix in zip(parents, matrices, strict=True)
    ]
    return torch.stack(agreements)  # [j, b, i]


def _shared_gradients(couplings: Tensor, parents: Tensor, children: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of Σ c_ij x_i·(W_ij v_j) for the children and the matrices: the same for both functions above."""
    grad_children, grad_matrices = torch.zeros_like(children), torch.empty_like(matrices)
    for j, (share, parent, matrix) in enumerate(zip(couplings.unsqueeze(2), parents, matrices, strict=True)):
        grad_children.addcmul_(share, (parent @ matrix.T).view_as(children))
        grad_matrices[j] = (share * children).flatten(1).T @ parent
    return grad_children, grad_matrices


def _check_shapes(children: Tensor, weight: Tensor, prior: Tensor | None, bias: Tensor | None) -> None:
    if children.ndim != 3 or weight.ndim != 4 or children.shape[1:] != weight.shape[::2]:
        raise InputError(
            f"children [b, i, d] and weight [i, j, d, e] do not fit: {list(children.shape)} and {list(weight.shape)}"
        )
    i, j, _, e = weight.shape
    for name, tensor, shape in (("prior [i, j]", prior, (i, j)), ("bias [j, e]", bias, (j, e))):
        if tensor is not None and tensor.shape != shape:
            raise InputError(f"{name} must be {list(shape)} for this weight, not {list(tensor.shape)}")
