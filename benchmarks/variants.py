"""The variants of a training step, from naive PyTorch to `capsnet train`, each with one change more than the last."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from shutil import which
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from capsnet.build import build_network, losses
from capsnet.hardware import default_device, fast_bf16
from capsnet.layers import channels_last
from capsnet.models import CapsNet
from capsnet.ops import Gradient
from capsnet.ops.convolution import strided_conv2d
from capsnet.ops.routing import route
from capsnet.recipes import Paper
from capsnet.steps import Step
from measuring import seconds, wait
from naive import NaiveCapsNet, copy_parameters, naive_route

IMAGE_SHAPE, CLASSES = (1, 28, 28), 10
LR = 1e-3  # Adam's
SHORTEST = 0.2  # seconds of a timing: steps are repeated


@dataclass(frozen=True)
class Variant:
    """How a step is taken."""

    name: str
    keeps_memory: bool = False
    channels_last: bool = False
    fourier: bool = False
    stores_votes: bool = True
    capsnet: bool = False  # CapsNet and fused Adam, as in `capsnet train`, instead of the naive network
    dtype: str = "float32"
    compiled: bool = False
    trains: bool = False  # by the `Step` of `capsnet train`, which on a GPU is a CUDA graph
    optional: bool = False  # not the default of `capsnet train`
    gradient: Gradient = "all"  # the routing iterations that gradients pass through


def variants(device: torch.device) -> list[Variant]:
    """Return the variants that a device can run, in order."""
    on_cpu, last = device.type == "cpu", Variant("naive PyTorch")
    compiled = "torch.compile (off by default)" if on_cpu else "torch.compile"
    changes: list[tuple[bool, str, dict[str, Any]]] = [
        (on_cpu, "freed memory kept", {"keeps_memory": True}),
        (True, "channels-last", {"channels_last": True}),
        (on_cpu, "Fourier convolution", {"fourier": True}),
        (True, "routing without stored votes", {"stores_votes": False}),
        (True, "CapsNet, fused Adam", {"capsnet": True, "trains": on_cpu}),
        (fast_bf16(device), "bf16", {"dtype": "bfloat16"}),
        (which("c++") is not None, compiled, {"compiled": True, "optional": on_cpu}),
        (device.type == "cuda", "CUDA graph", {"trains": True}),
    ]
    found = [last]
    for possible, name, change in changes:
        if possible:
            last = replace(last, name=name, **change)
            found.append(last)
    return found


def default_variant(rows: list[Variant]) -> Variant:
    """Return the variant that `capsnet train` takes by default."""
    return [row for row in rows if not row.optional][-1]


class Stepper:
    """A network that is trained on the same batch again and again by a variant."""

    def __init__(self, variant: Variant, batch_size: int) -> None:
        self.variant, self.device = variant, default_device()
        make = torch.Generator().manual_seed(0)
        images = torch.rand(batch_size, *IMAGE_SHAPE, generator=make)
        self.images = images.to(self.device)
        self.labels = torch.randint(CLASSES, (batch_size,), generator=make).to(self.device)
        self.recipe = Paper(batch_size=batch_size, gradient=variant.gradient)
        network = build_network(self.recipe, IMAGE_SHAPE, CLASSES)
        assert isinstance(network, CapsNet)
        self.network: nn.Module = network if variant.capsnet else _naive(variant, network)
        self.network.to(self.device)
        self.training: Step | None = None
        if variant.trains:
            precision: Any = "bf16-mixed" if variant.dtype == "bfloat16" else "32-true"
            fabric = Fabric(accelerator=self.device.type, devices=1, precision=precision)
            self.training = Step(network, self.recipe, fabric, compiled=variant.compiled)
        else:
            self.adam = torch.optim.Adam(self.network.parameters(), LR, fused=True if variant.capsnet else None)
            self.forward = torch.compile(self.network) if variant.compiled else self.network

    def step(self) -> Tensor:
        """Take a step: forward, backward and Adam. Return the loss before it, a scalar."""
        if self.training is not None:
            measured = self.training(self.images, self.labels, LR)
            return measured[self.training.names.index("loss")]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.dtype == "bfloat16"):
            loss = self._loss()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.detach()

    def _loss(self) -> Tensor:
        if self.variant.capsnet:
            return losses(self.forward, self.images, self.labels, self.recipe)["loss"]
        loss: Tensor = self.forward(self.images, self.labels)
        return loss

    def images_per_second(self) -> float:
        """Take as many steps as a clock can resolve and return their rate."""
        steps = 0
        wait(self.device)
        start = time.perf_counter()
        while not steps or time.perf_counter() - start < SHORTEST:
            self.step()
            steps += 1
        wait(self.device)
        return steps * len(self.labels) / (time.perf_counter() - start)


def _naive(variant: Variant, network: CapsNet) -> NaiveCapsNet:
    """Return the naive network with the parameters of a CapsNet and a variant's convolution and routing."""
    naive = NaiveCapsNet(
        strided_conv2d if variant.fourier else F.conv2d, naive_route if variant.stores_votes else route
    )
    copy_parameters(network, naive)
    if variant.channels_last:
        channels_last(nn.ModuleList([naive.conv1, naive.conv2]))
    return naive


@cache
def stepper(variant: Variant, batch_size: int) -> Stepper:
    """Return a variant's network, which is made once in a process."""
    return Stepper(variant, batch_size)


def first_losses(variant: Variant, batch_size: int) -> list[float]:
    """Return the losses of the first two steps; the second depends on the gradients too."""
    return [float(stepper(variant, batch_size).step()) for _ in range(2)]


def images_per_second(variant: Variant, batch_size: int) -> float:
    """Return a variant's rate in this process."""
    return stepper(variant, batch_size).images_per_second()


def eager(variant: Variant) -> Variant:
    """Return the same variant with one operation after the other: neither compiled nor recorded."""
    return replace(variant, compiled=False, trains=False)


def routing_seconds(variant: Variant, batch_size: int) -> float:
    """Return the time of `digit_caps`, forward and backward, within an eager step."""
    watched = stepper(eager(variant), batch_size)
    network, device = watched.network, watched.device
    assert isinstance(network, CapsNet)
    times: list[float] = []

    def note(*_: object) -> None:
        wait(device)
        times.append(time.perf_counter())

    caps = network.digit_caps
    registers: list[Callable[..., torch.utils.hooks.RemovableHandle]] = [
        *(caps.register_forward_pre_hook, caps.register_forward_hook),
        *(caps.register_full_backward_pre_hook, caps.register_full_backward_hook),
    ]
    hooks = [register(note) for register in registers]
    try:
        watched.step()
    finally:
        for hook in hooks:
            hook.remove()
    entered, left, back, done = times
    return left - entered + done - back


def step_seconds(variant: Variant, batch_size: int) -> float:
    """Return the time of one step."""
    taken = stepper(variant, batch_size)
    return seconds(taken.step, taken.device)
