"""What a recipe says, as a network, a loss and a learning rate."""

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
from capsnet.recipe import CAPSULES, Recipe


def build_network(recipe: Recipe, image_shape: tuple[int, int, int], classes: int) -> CapsNet | ConvBaseline:
    """The untrained network of a recipe, its weights drawn from the recipe's seed.

    The caller's random numbers go on as if nothing had been drawn.
    """
    with seeded(recipe.seed, torch.get_default_device()):
        return _build_network(recipe, image_shape, classes)


def _build_network(recipe: Recipe, image_shape: tuple[int, int, int], classes: int) -> CapsNet | ConvBaseline:
    if recipe.network != "capsnet":
        return ConvBaseline(image_shape, classes, size="paper" if recipe.network == "cnn" else "small")
    return CapsNet(image_shape, classes, **{name: getattr(recipe, name) for name in CAPSULES})


def losses(network: Callable[..., Any], images: Tensor, labels: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """The parts of a batch's loss, their sum as `loss`, and the accuracy: a scalar each.

    Raises InputError for labels that are not whole numbers from 0 to j - 1, one an image.

    images [b, c, h, w], labels [b]; the capsule that is drawn is the true label's.
    """
    if recipe.network != "capsnet":
        scores = network(images)  # [b, j]
        check_labels(labels, *scores.shape)
        parts = {"loss": cross_entropy(scores, labels)}
    else:
        scores, _, reconstruction = network(images, labels)  # [b, j]
        parts = {"margin": margin_loss(scores, labels)}
        parts["loss"] = parts["margin"]
        if reconstruction is not None:
            parts["reconstruction"] = reconstruction_loss(reconstruction, images)
            parts["loss"] = parts["margin"] + recipe.reconstruction_weight * parts["reconstruction"]
    return parts | {"accuracy": (scores.argmax(dim=-1) == labels).float().mean()}  # over classes j


def learning_rate(recipe: Recipe, step: int, steps: int, epoch_steps: int) -> float:
    """Adam's rate at a step, counted from 0, of a run of so many steps."""
    if recipe.schedule == "exponential":
        return max(recipe.lr_min, recipe.lr * recipe.lr_decay ** (step / (recipe.lr_decay_steps or epoch_steps)))
    rise = recipe.warmup * steps
    if step < rise:
        return recipe.lr * (1 - math.cos(math.pi * (step + 1) / (rise + 1))) / 2
    return recipe.lr * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2
