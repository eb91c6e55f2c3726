"""One step of training, which never waits for the device; on a GPU it is recorded as a CUDA graph and replayed.

On an H200, the kernels of a step take less time than a CPU takes to launch them one by one. A CUDA graph launches them
at once. It repeats the recorded operations on the recorded memory: so each batch is copied to the memory that the graph
reads, and the learning rate is a number on the device.
"""

import logging
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from capsnet.baselines import ConvBaseline
from capsnet.build import losses
from capsnet.models import CapsNet
from capsnet.recipes import Recipe

log = logging.getLogger(__name__)

WARM = 3  # calls before a recording, in which libraries select and compile kernels and allocate their workspaces


class Step:
    """Forward, backward, Adam and the average of the weights for one batch.

    Batches of the recipe's size run through `torch.compile` if `compiled` and, on a GPU, from a recording if `graph`.
    Batches of other sizes do not, as they would have to be compiled and recorded again. If recording fails, a warning
    says so, and steps run without it. Of several processes, each learns from its share of a batch; the gradients are
    averaged during backward, so that all processes update the weights equally, and nothing is recorded.
    """

    def __init__(
        self, network: CapsNet | ConvBaseline, recipe: Recipe, fabric: Fabric, *, compiled: bool, graph: bool = True
    ) -> None:
        self.network, self.recipe, self.fabric = network, recipe, fabric
        self.plain = network if fabric.world_size == 1 else fabric.strategy.setup_module(network)
        self.forward = torch.compile(self.plain) if compiled else self.plain
        on_gpu = fabric.device.type == "cuda"
        exact = torch.float64 if fabric.device.type == "cpu" else torch.float32  # other devices may have no more
        self.lr = torch.zeros((), device=fabric.device, dtype=exact)
        self.options = {"lr": self.lr, "fused": True, "capturable": on_gpu}
        self.optimizer = torch.optim.Adam(network.parameters(), fused=True)
        self.optimizer.param_groups[0].update(self.options)
        self.average = AveragedModel(network) if recipe.ema_decay else None
        self.recording = Recording(self._take_full) if on_gpu and graph and fabric.world_size == 1 else None
        self.weight = 1.0  # of the last share: its number of images divided by the mean over the processes
        self.names: tuple[str, ...] = ()
        """Names of the measurements of a batch: the parts of the loss, and the accuracy."""

    def __call__(self, images: Tensor, labels: Tensor, lr: float, batch_size: int | None = None) -> Tensor:
        """Learn from images [b, c, h, w] and labels [b] at this learning rate → measurements, in the order of `names`.

        If these are one process's share, `batch_size` is the number of images in all shares; an empty share is allowed.
        The mean of the measurements over the processes is then the mean over the images of the batch.
        """
        self.lr.fill_(lr)
        batch_size = len(labels) if batch_size is None else batch_size
        self.weight = len(labels) * self.fabric.world_size / batch_size
        if not len(labels):  # use one image of weight 0, since every process takes part in averaging the gradients
            images, labels = images.new_zeros(1, *images.shape[1:]), labels.new_zeros(1)
        if batch_size != self.recipe.batch_size:
            measured = self._take(self.plain, images, labels)
        elif self.recording is None:
            measured = self._take_full(images, labels)
        else:
            measured = self._take_recorded(self.recording, images, labels)
        if self.average is not None:
            self.average.n_averaged += 1
        return measured

    def _take_full(self, images: Tensor, labels: Tensor) -> Tensor:
        return self._take(self.forward, images, labels)

    def _take_recorded(self, recording: "Recording", images: Tensor, labels: Tensor) -> Tensor:
        """Take a step from the recording, or without one, from now on, if recording fails."""
        try:
            return recording(images, labels)
        except RecordingError as error:
            log.warning("steps are launched one by one, as no CUDA graph of them can be recorded: %s", error)
        self.recording = None
        self.optimizer.zero_grad()  # as its gradients are in the recording's memory
        return self._take_full(images, labels)

    def _take(self, forward: Callable[..., Any], images: Tensor, labels: Tensor) -> Tensor:
        with self.fabric.autocast():
            parts = losses(forward, images, labels, self.recipe)
        if self.weight != 1:  # losses and gradients are averaged over processes whose shares differ in size
            parts = {name: part * self.weight for name, part in parts.items()}
        recorded = self.recording is not None and self.recording.graph is not None
        self.optimizer.zero_grad(set_to_none=not recorded)  # a recording keeps writing to the same gradients
        self.fabric.backward(parts["loss"])
        self.optimizer.step()
        if self.average is not None:
            self._update(self.average)
        self.names = tuple(parts)
        return torch.stack([part.detach() for part in parts.values()])

    def _update(self, average: AveragedModel) -> None:
        """Move the average towards the weights; at the first step, set it to them.

        `AveragedModel.update_parameters` copies a counter to the device, which cannot be recorded.
        """
        decay = self.recipe.ema_decay if average.n_averaged else 0.0
        get_ema_multi_avg_fn(decay)(list(average.parameters()), list(self.network.parameters()), 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the network, the optimizer and the average, by name."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state; the step is then recorded again, since the state is in other memory.

        Raises KeyError, RuntimeError or ValueError for the state of another network.
        """
        moments = state["optimizer"]["state"]
        self._check_moments(moments)
        groups = self.optimizer.state_dict()["param_groups"]  # those of this class, not the saved ones
        for name, part in self._stateful().items():
            part.load_state_dict(state[name] if name != "optimizer" else {"state": moments, "param_groups": groups})
        self.optimizer.param_groups[0].update(self.options)
        if self.recording is not None:
            self.recording = Recording(self._take_full)

    def _check_moments(self, moments: dict[int, dict[str, Tensor]]) -> None:
        """Raise ValueError for moments that do not fit the weights, which Adam itself does not check."""
        weights = list(self.network.parameters())
        if moments and sorted(moments) != list(range(len(weights))):
            raise ValueError(f"the optimizer's state is of {len(moments)} weights, not {len(weights)}")
        for place, remembered in moments.items():
            for name, tensor in remembered.items():
                shape = torch.Size() if name == "step" else weights[place].shape
                held = tensor.layout == torch.strided and tensor.device.type != "meta"
                if not held or tensor.shape != shape or tensor.dtype != torch.float32 or 0 in tensor.stride():
                    raise ValueError(
                        f"the optimizer's {name} of weight {place} is not a tensor of {list(shape)} in float32"
                    )

    def _stateful(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts: dict[str, nn.Module | torch.optim.Optimizer] = {"network": self.network, "optimizer": self.optimizer}
        return parts if self.average is None else parts | {"average": self.average}


class RecordingError(Exception):
    """A function cannot be recorded; the message is one line, and the function has not run."""


class Recording:
    """A function of tensors on a GPU that is recorded as a CUDA graph after WARM calls and then replayed.

    The function must not read a value from the device, and its inputs must have the same shapes in every call.
    Raises RecordingError if recording fails, for lack of memory or for an operation that graphs do not support.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.calls = function, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's result for these inputs."""
        self.calls += 1
        if self.calls <= WARM:
            return self._warm(*inputs)
        graph = self.graph or self._record(*inputs)
        for place, given in zip(self.inputs, inputs, strict=True):
            place.copy_(given)
        graph.replay()
        return self.result.clone()

    def _warm(self, *inputs: Tensor) -> Tensor:
        """Call the function on the stream on which it will be recorded."""
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
