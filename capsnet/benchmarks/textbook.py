"""The network of Sabour, Frosst and Hinton (2017) as a textbook has it: what `capsnet` is measured against.

Right, but for no machine in particular: plain convolutions, all votes in memory, one operation after the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from capsnet.models import CapsNet


class Textbook(nn.Module):
    """CapsNet for MNIST: images [b, 1, 28, 28] and labels [b] → the loss, margin and drawing together.

    `convolve` is the primary capsules' convolution and `route` makes [b, 10, 16] of children [b, 1152, 8] and weight
    [1152, 10, 8, 16]: what is exchanged to see what each is worth.
    """

    def __init__(
        self,
        convolve: Callable[[Tensor, Tensor, Tensor | None, int], Tensor] | None = None,
        route: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 256, 9)
        self.conv2 = nn.Conv2d(256, 32 * 8, 9, stride=2)
        self.weight = nn.Parameter(0.1 * torch.randn(32 * 6 * 6, 10, 8, 16))
        self.decoder = nn.Sequential(
            *(nn.Linear(10 * 16, 512), nn.ReLU(), nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 784), nn.Sigmoid())
        )
        self.convolve, self.route = convolve or F.conv2d, route or routed

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images [b, 1, 28, 28] in [0, 1], labels [b] → the loss, a scalar."""
        x = self.conv1(images).relu()  # [b, 256, 20, 20]
        x = self.convolve(x, self.conv2.weight, self.conv2.bias, 2)  # [b, 256, 6, 6]
        children = squash(rearrange(x, "b (types d) h w -> b (types h w) d", d=8))  # [b, 1152, 8]
        parents = self.route(children, self.weight)  # [b, 10, 16]
        lengths = parents.norm(dim=-1)  # over the capsule's own axis e
        truth = F.one_hot(labels, 10)  # [b, 10]
        present, absent = (0.9 - lengths).relu().square(), (lengths - 0.1).relu().square()
        margin = (truth * present + 0.5 * (1 - truth) * absent).sum(dim=-1).mean()  # over classes j
        drawing = self.decoder(rearrange(parents * truth.unsqueeze(-1), "b j e -> b (j e)"))  # [b, 784]
        errors = (drawing - rearrange(images, "b c h w -> b (c h w)")).square().sum(dim=-1)  # over pixels
        return margin + 0.0005 * errors.mean()


def routed(children: Tensor, weight: Tensor) -> Tensor:
    """Three iterations of Procedure 1: children [b, i, d], weight [i, j, d, e] → parents [b, j, e]."""
    votes = einsum(children, weight, "b i d, i j d e -> b i j e").float()
    logits = votes.new_zeros(votes.shape[:3])  # [b, i, j]
    for iteration in range(3):
        couplings = logits.softmax(dim=-1)  # over parents j
        parents = squash(einsum(couplings, votes, "b i j, b i j e -> b j e"))
        if iteration < 2:
            logits = logits + einsum(votes, parents, "b i j e, b j e -> b i j")
    return parents


def squash(s: Tensor) -> Tensor:
    """Eq. 1: s [..., e] → a vector of the same direction and a length below 1."""
    length = s.norm(dim=-1, keepdim=True)  # over the capsule's own axis e
    return s * length / (1 + length.square())


def copy_parameters(network: CapsNet, textbook: Textbook) -> None:
    """Give the textbook's network the parameters of ours, under its own names."""
    state = network.state_dict()
    for ours, theirs in (
        ("primary_caps.conv", "conv2"),
        ("digit_caps.weight", "weight"),
        ("decoder.layers", "decoder"),
    ):
        state = {name.replace(ours, theirs): parameter for name, parameter in state.items()}
    textbook.load_state_dict(state)
