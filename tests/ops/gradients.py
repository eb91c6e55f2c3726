"""A function's values and gradients in one list, so that one comparison covers both."""

from collections.abc import Callable

import torch
from torch import Tensor


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result, and the gradient for each input of one fixed weighted sum of all its numbers."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    result = function(*inputs)
    weights = torch.arange(1, result.numel() + 1, device=result.device).sin().reshape(result.shape)
    return [result.detach(), *torch.autograd.grad(result, inputs, weights.to(result.dtype), materialize_grads=True)]
