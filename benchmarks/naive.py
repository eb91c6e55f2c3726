"""The network of Sabour, Frosst and Hinton (2017) in naive PyTorch: what the benchmarks compare `capsnet` with.

It is correct and tuned for no machine: plain convolutions, all votes in memory, one operation after the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from capsnet.models import CapsNet
from capsnet.ops.reference import dynamic_routing, vote
from capsnet.ops.squash import sum_dtype


def naive_route(children: Tensor, weight: Tensor) -> Tensor:
    """Three iterations of Procedure 1, with all votes in memory.

    children [b, i, d], weight [i, j, d, e] → parents [b, j, e]
    """
    return dynamic_routing(vote(children, weight).to(sum_dtype(children))).to(children.dtype)


class NaiveCapsNet(nn.Module):
    """CapsNet for MNIST: images [b, 1, 28, 28] and labels [b] → the loss, margin and reconstruction together.

    `convolve`, the primary capsules' convolution, and `route`, from children [b, 1152, 8] and weight [1152, 10, 8, 16]
    to parents [b, 10, 16], can be replaced one at a time, to see what each is worth.
    """

    def __init__(
        self,
        convolve: Callable[[Tensor, Tensor, Tensor | None, int], Tensor] = F.conv2d,
        route: Callable[[Tensor, Tensor], Tensor] = naive_route,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 256, 9)
        self.conv2 = nn.Conv2d(256, 32 * 8, 9, stride=2)
        self.weight = nn.Parameter(0.1 * torch.randn(32 * 6 * 6, 10, 8, 16))
        self.decoder = nn.Sequential(
            *(nn.Linear(10 * 16, 512), nn.ReLU(), nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 784), nn.Sigmoid())
        )
        self.convolve, self.route = convolve, route

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images [b, 1, 28, 28] in [0, 1], labels [b] → the loss, a scalar."""
        x = self.conv1(images).relu()  # [b, 256, 20, 20]
        x = self.convolve(x, self.conv2.weight, self.conv2.bias, 2)  # [b, 256, 6, 6]
        s = rearrange(x, "b (types d) h w -> b (types h w) d", d=8)
        length = s.norm(dim=-1, keepdim=True)  # over the capsule's own axis d
        children = s * length / (1 + length.square())  # [b, 1152, 8]
        parents = self.route(children, self.weight)  # [b, 10, 16]
        lengths = parents.norm(dim=-1)  # over the capsule's own axis e
        truth = F.one_hot(labels, 10)  # [b, 10]
        present, absent = (0.9 - lengths).relu().square(), (lengths - 0.1).relu().square()
        margin = (truth * present + 0.5 * (1 - truth) * absent).sum(dim=-1).mean()  # over classes j
        reconstruction = self.decoder(rearrange(parents * truth.unsqueeze(-1), "b j e -> b (j e)"))  # [b, 784]
        errors = (reconstruction - rearrange(images, "b c h w -> b (c h w)")).square().sum(dim=-1)  # over pixels
        return margin + 0.0005 * errors.mean()


def copy_parameters(network: CapsNet, naive: NaiveCapsNet) -> None:
    """Give the naive network the parameters of a CapsNet, under its own names."""
    state = network.state_dict()
    for ours, theirs in (
        ("primary_caps.conv", "conv2"),
        ("digit_caps.weight", "weight"),
        ("decoder.layers", "decoder"),
    ):
        state = {name.replace(ours, theirs): parameter for name, parameter in state.items()}
    naive.load_state_dict(state)
