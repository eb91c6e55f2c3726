"""A recipe's network, loss and learning rate."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from capsnet.baselines import ConvBaseline
from capsnet.hardware import seeded
from capsnet.losses import check_labels, margin_loss, reconstruction_loss
from capsnet.models import CapsNet
from capsnet.recipes import CAPSNET_FIELDS, Recipe


def build_network(recipe: Recipe, image_shape: tuple[int, int, int], classes: int) -> CapsNet | ConvBaseline:
    """Return the untrained network of a recipe, with weights drawn from the recipe's seed.

    The state of PyTorch's random number generators is left unchanged.
    """
    with seeded(recipe.seed, torch.get_default_device()):
        if recipe.network != "capsnet":
            return ConvBaseline(image_shape, classes, size="paper" if recipe.network == "cnn" else "small")
        return CapsNet(image_shape, classes, **{name: getattr(recipe, name) for name in CAPSNET_FIELDS})


def losses(network: Callable[..., Any], images: Tensor, labels: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Return the parts of a batch's loss, their weighted sum as `loss`, and the accuracy, each a scalar.

    The reconstruction is made from the true label's capsule. Raises InputError for labels that are not whole numbers
    from 0 to j - 1, one per image.

    images [b, c, h, w], labels [b]
    """
    if recipe.network != "capsnet":
        scores = network(images)  # [b, j]
        check_labels(labels, *scores.shape)
        parts = {"loss": cross_entropy(scores, labels)}
    else:
        scores, _, reconstruction = network(images, labels)  # [b, j]
        margins = recipe.margin_present, recipe.margin_absent, recipe.margin_down_weight
        parts = {"margin": margin_loss(scores, labels, *margins)}
        parts["loss"] = parts["margin"]
        if reconstruction is not None:
            parts["reconstruction"] = reconstruction_loss(reconstruction, images)
            parts["loss"] = parts["margin"] + recipe.reconstruction_weight * parts["reconstruction"]
    return parts | {"accuracy": (scores.argmax(dim=-1) == labels).float().mean()}  # over classes j


def learning_rate(recipe: Recipe, step: int, steps: int, epoch_steps: int) -> float:
    """Return Adam's learning rate at a step, counted from 0, of a run of this many steps."""
    if recipe.schedule == "exponential":
        return max(recipe.lr_min, recipe.lr * recipe.lr_decay ** (step / (recipe.lr_decay_steps or epoch_steps)))
    rise = recipe.warmup * steps
    if step < rise:
        return recipe.lr * (1 - math.cos(math.pi * (step + 1) / (rise + 1))) / 2
    return recipe.lr * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2
