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
from einops import rearrange
from torch import Tensor

from capsnet.errors import InputError
from capsnet.ops.reference import Gradient, check_routing, couple
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
    if torch.is_autocast_enabled(device):
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
    matrices = rearrange(weight, "i j d e -> j (i d) e").contiguous()
    logits = prior
    for iteration in range(1, iterations + 1):
        if logits is None:
            total = _uniform_sum(children, weight, leaky)
        else:
            couplings = couple(logits.expand(len(children), -1, -1), leaky)
            total = _WeightedSum.apply(couplings.to(children.dtype), children, matrices)
        total = total.to(exact)
        parents = squash(total if bias is None else total + bias)  # [b, j, e]
        if iteration < iterations:
            with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "all"):
                agreement = _Agreement.apply(parents.to(children.dtype), children, matrices).to(exact)  # [b, i, j]
            logits = agreement if logits is None else logits + agreement
    return parents


def _uniform_sum(children: Tensor, weight: Tensor, leaky: bool) -> Tensor:
    """The weighted sum before any agreement: one matrix product, since all couplings are the same."""
    total = rearrange(children, "b i d -> b (i d)") @ rearrange(weight, "i j d e -> (i d) (j e)")
    return rearrange(total, "b (j e) -> b j e", e=weight.shape[-1]) / (weight.shape[1] + leaky)


class _WeightedSum(torch.autograd.Function):
    """s_j = Σ_i c_ij x_i W_ij: couplings [b, i, j], children [b, i, d], matrices [j, i·d, e] → [b, j, e]."""

    @staticmethod
    def forward(ctx: Any, couplings: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(couplings, children, matrices)
        return _weighted_sum(couplings, children, matrices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        couplings, children, matrices = ctx.saved_tensors
        return _agreement(grad, children, matrices), *_shared_gradients(couplings, grad, children, matrices)


class _Agreement(torch.autograd.Function):
    """a_ij = x_i · (W_ij v_j): parents [b, j, e], children [b, i, d], matrices [j, i·d, e] → [b, i, j]."""

    @staticmethod
    def forward(ctx: Any, parents: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(parents, children, matrices)
        return _agreement(parents, children, matrices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parents, children, matrices = ctx.saved_tensors
        return _weighted_sum(grad, children, matrices), *_shared_gradients(grad, parents, children, matrices)


def _weighted_sum(couplings: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
    share = couplings.unsqueeze(-1)  # [b, i, j, 1]
    sums = [(share[:, :, j] * children).flatten(1) @ matrix for j, matrix in enumerate(matrices)]
    return torch.stack(sums, dim=1)  # [b, j, e]


def _agreement(parents: Tensor, children: Tensor, matrices: Tensor) -> Tensor:
    agreements = [
        ((parents[:, j] @ matrix.T).view_as(children) * children).sum(dim=-1)  # over the child's own axis d
        for j, matrix in enumerate(matrices)
    ]
    return torch.stack(agreements, dim=-1)  # [b, i, j]


def _shared_gradients(
    couplings: Tensor, parents: Tensor, children: Tensor, matrices: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of Σ c_ij x_i·(W_ij v_j) for the children and the matrices: the same for both functions above."""
    share = couplings.unsqueeze(-1)  # [b, i, j, 1]
    grad_children, grad_matrices = torch.zeros_like(children), torch.empty_like(matrices)
    for j, matrix in enumerate(matrices):
        grad_children += share[:, :, j] * (parents[:, j] @ matrix.T).view_as(children)
        torch.mm((share[:, :, j] * children).flatten(1).T, parents[:, j], out=grad_matrices[j])
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
