"""One step of training, which nothing in it waits for; on a GPU it is recorded once as a CUDA graph and then replayed.

The arithmetic of a step takes an H200 less time than a processor takes to launch the step's kernels one by one. A CUDA
graph launches them all at once. It replays the very operations it has recorded, on the memory they were recorded with,
so that batches are copied to where it reads them, and the learning rate is a number on the device.
"""

import logging
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from capsnet.baselines import ConvBaseline
from capsnet.build import losses
from capsnet.models import CapsNet
from capsnet.recipes import Recipe

log = logging.getLogger(__name__)

WARM = 3  # calls before a recording: libraries choose their kernels in them, compile them and allocate what they keep


class Step:
    """Forward, backward, Adam and the average of the weights for one batch.

    Batches of the recipe's size are taken by `torch.compile` if `compiled` and, if `graph`, from a recording on a GPU;
    others, which would have to be compiled and recorded anew, are not. Where no recording can be made, one line says so
    and steps are taken without. Of several processes each learns from its share of a batch; the gradients are averaged
    while they are computed, so that all move the weights alike, and nothing is recorded.
    """

    def __init__(
        self, network: CapsNet | ConvBaseline, recipe: Recipe, fabric: Fabric, *, compiled: bool, graph: bool = True
    ) -> None:
        self.network, self.recipe, self.fabric = network, recipe, fabric
        self.plain = network if fabric.world_size == 1 else fabric.strategy.setup_module(network)
        self.forward = torch.compile(self.plain) if compiled else self.plain
        on_gpu = fabric.device.type == "cuda"
        exact = torch.float64 if fabric.device.type == "cpu" else torch.float32  # which is all that others may have
        self.lr = torch.zeros((), device=fabric.device, dtype=exact)
        self.options = {"lr": self.lr, "fused": True, "capturable": on_gpu}
        self.optimizer = torch.optim.Adam(network.parameters(), fused=True)
        self.optimizer.param_groups[0].update(self.options)
        self.average = AveragedModel(network) if recipe.ema_decay else None
        self.recording = Recording(self._take_whole) if on_gpu and graph and fabric.world_size == 1 else None
        self.weight = 1.0  # of the latest share: its number of images over the processes' mean
        self.names: tuple[str, ...] = ()
        """What is measured of a batch: the parts of the loss, and the accuracy."""

    def __call__(self, images: Tensor, labels: Tensor, lr: float, batch: int | None = None) -> Tensor:
        """Learn from images [b, c, h, w] and labels [b] at this learning rate → measurements, as `names` calls them.

        Where these are one process's share, `batch` is the number of images in all shares; an empty share is allowed.
        The mean of the measurements over the processes is then that over the images of the batch.
        """
        self.lr.fill_(lr)
        batch = len(labels) if batch is None else batch
        self.weight = len(labels) * self.fabric.world_size / batch
        if not len(labels):  # an image without weight, since every process takes part in the mean of the gradients
            images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1)
        if batch != self.recipe.batch_size:
            measured = self._take(self.plain, images, labels)
        elif self.recording is None:
            measured = self._take_whole(images, labels)
        else:
            measured = self._take_recorded(self.recording, images, labels)
        if self.average is not None:
            self.average.n_averaged += 1
        return measured

    def _take_whole(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._take(self.forward, images, labels)

    def _take_recorded(self, recording: "Recording", images: Tensor, labels: Tensor) -> Tensor:
        """Take a step from the recording, or without one from then on if it cannot be made."""
        try:
            return recording(images, labels)
        except RecordingError as error:
            log.warning("steps are launched one by one, as no CUDA graph of them can be recorded: %s", error)
        self.recording = None
        self.optimizer.zero_grad()  # whose gradients lie in the recording's memory
        return self._take_whole(images, labels)

    def _take(self, forward: Callable[..., Any], images: Tensor, labels: Tensor) -> Tensor:
        with self.fabric.autocast():
            parts = losses(forward, images, labels, self.recipe)
        if self.weight != 1:  # the processes' losses and gradients are averaged, but their shares differ
            parts = {name: part * self.weight for name, part in parts.items()}
        recorded = self.recording is not None and self.recording.graph is not None
        self.optimizer.zero_grad(set_to_none=not recorded)  # a recording goes on writing to the gradients' memory
        self.fabric.backward(parts["loss"])
        self.optimizer.step()
        if self.average is not None:
            self._move(self.average)
        self.names = tuple(parts)
        return torch.stack([part.detach() for part in parts.values()])

    def _move(self, average: AveragedModel) -> None:
        """Move the average towards the weights, at the first step all the way.

        Its own `update_parameters` sends a count to the device each time, which a recording cannot.
        """
        decay = self.recipe.ema_decay if average.n_averaged else 0.0
        get_ema_multi_avg_fn(decay)(list(average.parameters()), list(self.network.parameters()), 0)

    def state_dict(self) -> dict[str, Any]:
        """The state of the network, the optimiser and the average, each by its name."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state; a step is then recorded anew, since the state lies in memory of its own.

        Raises KeyError, RuntimeError or ValueError where it is that of another network.
        """
        moments = state["optimizer"]["state"]
        self._check_moments(moments)
        groups = self.optimizer.state_dict()["param_groups"]  # which are always the same
        for name, part in self._stateful().items():
            part.load_state_dict(state[name] if name != "optimizer" else {"state": moments, "param_groups": groups})
        self.optimizer.param_groups[0].update(self.options)
        if self.recording is not None:
            self.recording = Recording(self._take_whole)

    def _check_moments(self, moments: dict[int, dict[str, Tensor]]) -> None:
        """Raise ValueError where what Adam is to remember does not fit the weights: it would not look itself."""
        weights = list(self.network.parameters())
        if moments and sorted(moments) != list(range(len(weights))):
            raise ValueError(f"the optimizer's state is of {len(moments)} weights, not {len(weights)}")
        for place, remembered in moments.items():
            for name, tensor in remembered.items():
                shape = torch.Size() if name == "step" else weights[place].shape
                held = tensor.layout == torch.strided and tensor.device.type != "meta"
                if not held or tensor.shape != shape or tensor.dtype != torch.float32 or 0 in tensor.stride():
                    raise ValueError(
                        f"the optimizer's {name} of weight {place} is no tensor of {list(shape)} in float32"
                    )

    def _stateful(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self.optimizer}
        return parts if self.average is None else parts | {"average": self.average}


class RecordingError(Exception):
    """Why a function could not be recorded, in one line; no call of it has been made."""


class Recording:
    """A function of tensors on a GPU that is recorded after WARM calls and from then on replayed.

    The function must not read a value from the device, and its tensors must have the same shapes in every call.
    Raises RecordingError where it cannot be recorded: for want of memory, or for an operation that no graph can hold.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.calls = function, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function gives for these inputs."""
        self.calls += 1
        if self.calls <= WARM:
            return self._warm(*inputs)
        graph = self.graph or self._record(*inputs)
        for place, given in zip(self.inputs, inputs, strict=True):
            place.copy_(given)
        graph.replay()
        return self.result.clone()

    def _warm(self, *inputs: Tensor) -> Tensor:
        """Call the function on the stream that it will be recorded on."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.function(*inputs)
        current.wait_stream(self.stream)
        return result

    def _record(self, *inputs: Tensor) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            self.inputs = [given.clone() for given in inputs]
            with torch.cuda.graph(graph, stream=self.stream):
                self.result = self.function(*self.inputs)
        except RuntimeError as error:
            raise RecordingError(textwrap.shorten(str(error), 300)) from error
        self.graph = graph
        return graph
