"""A network as an attacker sees it: one that gives away every gradient."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from capsnet.baselines import ConvBaseline
from capsnet.errors import InputError
from capsnet.models import CapsNet


class Exposed(nn.Module):
    """The scores of a trained network, with the whole gradient for its images and none for its weights.

    A CapsNet that was trained with gradients through its last routing iteration only would hide most of them from an
    attack, which would pass for robustness: here they pass through all iterations.
    """

    def __init__(self, network: CapsNet | ConvBaseline) -> None:
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        if isinstance(self.network, CapsNet):
            self.network.digit_caps.gradient = "all"
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [b, c, h, w] in [0, 1] → capsule lengths or a baseline's logits [b, j].

        Raises InputError for images of another shape than the network's.
        """
        if isinstance(self.network, CapsNet):
            return torch.linalg.vector_norm(self.network.encode(images), dim=-1)  # over the capsule's own axis e
        return self.network(images)


def foolbox_model(network: CapsNet | ConvBaseline) -> Any:
    """The network as foolbox wants it, for images in [0, 1].

    Raises InputError where foolbox is not installed.
    """
    try:
        from foolbox import PyTorchModel
    except ImportError as error:
        raise InputError("attacks are foolbox's, which is not installed: pip install foolbox") from error
    device = next(network.parameters()).device
    return PyTorchModel(Exposed(network), bounds=(0, 1), device=device)
