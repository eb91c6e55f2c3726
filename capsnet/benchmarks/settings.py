"""The ways to take a training step, from the textbook's to ours, each with one thing more than the one before it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from shutil import which
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsnet.benchmarks.measuring import seconds, wait
from capsnet.benchmarks.textbook import Textbook, copy_parameters, routed
from capsnet.build import build_network, losses
from capsnet.hardware import default_device, fast_bf16
from capsnet.layers import channels_last
from capsnet.models import CapsNet
from capsnet.ops.convolution import strided_conv2d
from capsnet.ops.routing import route
from capsnet.recipes import Paper

if TYPE_CHECKING:
    from capsnet.steps import Step

IMAGE_SHAPE, CLASSES = (1, 28, 28), 10
RATE = 1e-3  # Adam's
LEAST_SECONDS = 0.2  # of a timing: as many steps as it takes


@dataclass(frozen=True)
class Setting:
    """How a step is taken."""

    name: str
    keeps_memory: bool = False
    channels_last: bool = False
    fourier: bool = False
    stores_votes: bool = True
    ours: bool = False  # CapsNet and fused Adam, as `capsnet train` has them, in place of the textbook's
    dtype: str = "float32"
    compiled: bool = False
    trains: bool = False  # by the very step of `capsnet train`, which on a GPU is a CUDA graph
    optional: bool = False  # what `capsnet train` does only if asked to
    gradient: Literal["all", "last"] = "all"  # the routing iterations that gradients pass through


def settings(device: torch.device) -> list[Setting]:
    """The settings that a device can have, in order."""
    processor, last = device.type == "cpu", Setting("textbook")
    bf16 = fast_bf16(device)
    compiled = "torch.compile (off by default)" if processor else "torch.compile"
    steps: list[tuple[bool, str, dict[str, bool | str]]] = [
        (processor, "freed memory kept", {"keeps_memory": True}),
        (True, "channels-last", {"channels_last": True}),
        (processor, "strided convolution by Fourier", {"fourier": True}),
        (True, "routing without votes", {"stores_votes": False}),
        (True, "CapsNet, Adam in one pass", {"ours": True, "trains": processor}),
        (bf16, "bf16", {"dtype": "bfloat16"}),
        (which("c++") is not None, compiled, {"compiled": True, "optional": processor}),
        (device.type == "cuda", "CUDA graph", {"trains": True}),
    ]
    found = [last]
    for can, name, change in steps:
        if can:
            last = replace(last, name=name, **change)  # type: ignore[arg-type]
            found.append(last)
    return found


def default_setting(rows: list[Setting]) -> Setting:
    """The way in which `capsnet train` takes a step, if nothing else is asked for."""
    return [row for row in rows if not row.optional][-1]


class Stepper:
    """A network that is trained on one batch over and over by a setting."""

    def __init__(self, setting: Setting, batch: int) -> None:
        self.setting, self.device = setting, default_device()
        make = torch.Generator().manual_seed(0)
        images = torch.rand(batch, *IMAGE_SHAPE, generator=make)
        self.images = images.to(self.device)
        self.labels = torch.randint(CLASSES, (batch,), generator=make).to(self.device)
        self.recipe = Paper(batch=batch, gradient=setting.gradient)
        network = build_network(self.recipe, IMAGE_SHAPE, CLASSES)
        self.network: nn.Module = network
        if not setting.ours:
            convolve = strided_conv2d if setting.fourier else F.conv2d
            self.network = textbook = Textbook(convolve, routed if setting.stores_votes else route)
            copy_parameters(network, textbook)  # type: ignore[arg-type]  # a CapsNet, by its recipe
            if setting.channels_last:
                channels_last(nn.ModuleList([textbook.conv1, textbook.conv2]))
        self.network.to(self.device)
        if setting.trains:
            self.training = self._training()
        else:
            self.adam = torch.optim.Adam(self.network.parameters(), RATE, fused=True if setting.ours else None)
            self.forward = torch.compile(self.network) if setting.compiled else self.network

    def step(self) -> Tensor:
        """Forward, backward and Adam: the loss before it, a scalar."""
        if self.setting.trains:
            measured = self.training(self.images, self.labels, RATE)
            return measured[self.training.names.index("loss")]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.dtype == "bfloat16"):
            loss = self._loss()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.detach()

    def _loss(self) -> Tensor:
        if self.setting.ours:
            return losses(self.forward, self.images, self.labels, self.recipe)["loss"]
        return self.forward(self.images, self.labels)

    def _training(self) -> "Step":
        from lightning_fabric import Fabric

        from capsnet.steps import Step

        precision: Any = "bf16-mixed" if self.setting.dtype == "bfloat16" else "32-true"
        fabric = Fabric(accelerator=self.device.type, devices=1, precision=precision)
        return Step(self.network, self.recipe, fabric, compiled=self.setting.compiled)  # type: ignore[arg-type]

    def images_per_second(self) -> float:
        """The rate of as many steps as a clock can tell."""
        steps = 0
        wait(self.device)
        start = time.perf_counter()
        while not steps or time.perf_counter() - start < LEAST_SECONDS:
            self.step()
            steps += 1
        wait(self.device)
        return steps * len(self.labels) / (time.perf_counter() - start)


@cache
def stepper(setting: Setting, batch: int) -> Stepper:
    """The network of a setting, made once a process."""
    return Stepper(setting, batch)


def first_losses(setting: Setting, batch: int) -> list[float]:
    """The losses of the first two steps, before any other is taken: the second tells of the gradients too."""
    return [float(stepper(setting, batch).step()) for _ in range(2)]


def eager(setting: Setting) -> Setting:
    """The same, one operation after the other."""
    return replace(setting, compiled=False, trains=False)


def routing_seconds(setting: Setting, batch: int) -> float:
    """The part of an eager step that goes into `digit_caps`, forward and backward."""
    watched = stepper(eager(setting), batch)
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


def step_seconds(setting: Setting, batch: int) -> float:
    """The time of one step."""
    taken = stepper(setting, batch)
    return seconds(taken.step, taken.device)
