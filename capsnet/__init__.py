"""Capsule networks with dynamic routing in PyTorch (Sabour, Frosst and Hinton, NIPS 2017).

What is public is listed here. Each name is imported when it is first asked for, so that the command line answers at
once and a routing layer alone does not pull in what training needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsnet.baselines import ConvBaseline
    from capsnet.data import load_data
    from capsnet.errors import InputError
    from capsnet.evaluation import evaluate
    from capsnet.layers import PrimaryCaps, RoutedCaps
    from capsnet.losses import margin_loss, reconstruction_loss
    from capsnet.models import CapsNet, CapsNetOutput
    from capsnet.ops.reference import dynamic_routing, routing_trace, vote
    from capsnet.ops.routing import route
    from capsnet.ops.squash import squash
    from capsnet.recipes import Recipe
    from capsnet.runs import load_run, start_run
    from capsnet.training import train

_HOMES = {
    "capsnet.data": ("load_data",),
    "capsnet.errors": ("InputError",),
    "capsnet.evaluation": ("evaluate",),
    "capsnet.layers": ("PrimaryCaps", "RoutedCaps"),
    "capsnet.losses": ("margin_loss", "reconstruction_loss"),
    "capsnet.baselines": ("ConvBaseline",),
    "capsnet.models": ("CapsNet", "CapsNetOutput"),
    "capsnet.ops.reference": ("dynamic_routing", "routing_trace", "vote"),
    "capsnet.ops.routing": ("route",),
    "capsnet.ops.squash": ("squash",),
    "capsnet.recipes": ("Recipe",),
    "capsnet.runs": ("load_run", "start_run"),
    "capsnet.training": ("train",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CapsNet",
    "CapsNetOutput",
    "ConvBaseline",
    "InputError",
    "PrimaryCaps",
    "Recipe",
    "RoutedCaps",
    "dynamic_routing",
    "evaluate",
    "load_data",
    "load_run",
    "margin_loss",
    "reconstruction_loss",
    "route",
    "routing_trace",
    "squash",
    "start_run",
    "train",
    "vote",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'capsnet' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
