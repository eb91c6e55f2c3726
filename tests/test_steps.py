"""A step of training uses its learning rate, never waits for the device, and gives the same when a GPU replays it."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from shutil import which

import pytest
import torch
from lightning_fabric import Fabric
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from capsnet import steps
from capsnet.build import build_network
from capsnet.data import batches
from capsnet.data.sets import ImageSet
from capsnet.errors import InputError
from tests.training import TINY, few_digits, weights

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
RECIPES = [TINY, replace(TINY, ema_decay=0.75), replace(TINY, network="small-cnn")]
NAMES = ["capsnet", "averaged", "small-cnn"]


def step_of(recipe=TINY, device="cpu", precision="32-true", compiled=False):
    with torch.device(device):
        network = build_network(recipe, (1, 8, 8), 10)
    return steps.Step(network, recipe, Fabric(accelerator=device, devices=1, precision=precision), compiled=compiled)


def epoch(recipe=TINY, device="cpu"):
    """Batches of 32 and, as the last, one of 8."""
    order = torch.Generator().manual_seed(0)
    return batches(few_digits().train.to(device), recipe.batch_size, shift=recipe.shift, generator=order)


def learn(step, device="cpu"):
    """Two epochs at a rising learning rate → the measurements of every step."""
    batch = (batch for _ in range(2) for batch in epoch(step.recipe, device))
    return torch.stack([step(*each, lr=1e-4 * (k + 1)) for k, each in enumerate(batch)])


def test_the_learning_rate_of_a_step_is_adams_and_moves_the_weights_in_proportion():
    before, moved = weights(step_of().network), []
    for lr in (0.0, 1e-3, 2e-3):
        step = step_of()
        step(*next(epoch()), lr=lr)
        assert step.optimizer.param_groups[0]["lr"] is step.lr
        moved.append(weights(step.network) - before)
    assert not moved[0].any()
    torch.testing.assert_close(moved[2], 2 * moved[1], rtol=1e-3, atol=1e-6)


def test_loading_a_state_keeps_the_learning_rate():
    step, state = step_of(), step_of().state_dict()
    state["optimizer"]["param_groups"][0] |= {"lr": 0.5, "capturable": True, "fused": False}
    step.load_state_dict(state)
    assert step.optimizer.param_groups[0]["lr"] is step.lr
    assert step.optimizer.param_groups[0] | step.options == step.optimizer.param_groups[0]


def test_a_step_measures_a_number_for_each_name():
    step = step_of()
    values = step(*next(epoch()), lr=0.0).tolist()
    measured = dict(zip(step.names, values, strict=True))
    assert measured["loss"] == pytest.approx(
        measured["margin"] + TINY.reconstruction_weight * measured["reconstruction"]
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recipe", RECIPES[::2], ids=NAMES[::2])
def test_neither_batches_nor_steps_read_a_value_from_the_device(recipe, precision):
    with FakeTensorMode():  # whose tensors have no values
        images = ImageSet(torch.empty(200, 1, 8, 8, dtype=torch.uint8), torch.empty(200, dtype=torch.int64))
        step = step_of(recipe, precision=precision)
        for batch in batches(images, recipe.batch_size, shift=2, generator=torch.Generator()):
            measured = step(*batch, lr=1e-3)
        with pytest.raises(DataDependentOutputException):
            measured[0].item()


no_compiler = pytest.mark.skipif(which("c++") is None, reason="there is no C++ compiler")


# The compiler raises them about itself and the packages that it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=no_compiler)], ids=["plain", "compiled"])
@pytest.mark.parametrize(("precision", "error"), [("32-true", 1e-5), ("bf16-mixed", 0.02)])
def test_a_step_has_equal_measurements_and_updates_in_any_precision_and_compiled_or_not(precision, error, compiled):
    step, exact = step_of(precision=precision, compiled=compiled), step_of()
    exact.network.double()
    images, labels = next(epoch())
    found = step(images, labels, lr=1e-3)
    torch.testing.assert_close(found[:3], exact(images.double(), labels, lr=1e-3)[:3].float(), rtol=error, atol=error)
    moved, expected = (weights(network) - weights(step_of().network) for network in (step.network, exact.network))
    assert moved.dtype == torch.float32
    assert torch.cosine_similarity(moved.double(), expected, dim=0) > 0.9


class Replayed:
    """Simulates a CUDA graph: calls the function again, on the tensors that it was recorded with."""

    def __init__(self, recording):
        self.recording = recording

    def replay(self):
        self.recording.result.copy_(self.recording.function(*self.recording.inputs))


class Stream:
    """Simulates a CUDA stream."""

    def wait_stream(self, _):
        """There is only one stream."""


@pytest.fixture
def record(monkeypatch):
    """Record functions on a CPU, with simulated CUDA graphs; `capture` is the context of each recording."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)

    def make(function, capture=nullcontext):
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Replayed(recording))
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: capture())
        recording = steps.Recording(function)
        return recording

    return make


def test_a_recording_returns_the_functions_results_and_does_not_change_earlier_ones(record):
    recording = record(lambda x, y: x + 10 * y)
    found = [recording(torch.tensor(k), torch.tensor(k + 1)) for k in range(3 * steps.WARM)]
    assert torch.stack(found).tolist() == [k + 10 * (k + 1) for k in range(3 * steps.WARM)]
    assert recording.graph is not None


@contextmanager
def out_of_memory():
    """A recording without enough memory."""
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB.")
    yield


@contextmanager
def not_permitted():
    """A recording of a function that CUDA graphs do not support, which fails in the middle of it."""

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    with torch.nn.modules.module.register_module_forward_hook(refuse):
        yield


@pytest.mark.parametrize("recipe", RECIPES, ids=NAMES)
@pytest.mark.parametrize("capture", [out_of_memory, not_permitted])
def test_if_recording_fails_a_warning_says_so_and_training_continues(record, capture, recipe, caplog):
    unrecorded, plain = step_of(recipe), step_of(recipe)
    unrecorded.recording = record(unrecorded._take_full, capture)
    found = []
    for step in (unrecorded, plain):
        torch.manual_seed(0)  # for dropout
        found.append(learn(step))
    assert torch.equal(*found)
    assert torch.equal(weights(unrecorded.network), weights(plain.network))
    torch.testing.assert_close(unrecorded.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert unrecorded.recording is None
    [line] = caplog.messages
    assert line.startswith("steps are launched one by one, as no CUDA graph of them can be recorded: ")
    assert "\n" not in line


def test_an_error_of_the_step_itself_is_raised_and_not_taken_for_one_of_the_recording(record):
    step = step_of()
    step.recording = record(step._take_full, out_of_memory)
    images, labels = next(epoch())
    for _ in range(steps.WARM):
        step(images, labels, lr=1e-3)
    with pytest.raises(InputError, match="classes from 0 to 9, not 10"):
        step(images, torch.full_like(labels, 10), lr=1e-3)


def test_after_loading_a_state_the_step_is_recorded_again(record):
    step = step_of()
    step.recording = recording = record(step._take_full)
    learn(step)
    assert recording.graph is not None
    step.load_state_dict(step.state_dict())
    assert step.recording is not recording
    assert step.recording.graph is None
    assert step.recording.calls == 0


@no_gpu
@pytest.mark.parametrize("graph", [True, False])
def test_steps_on_a_gpu_are_recorded_if_graph_is_true(graph):
    network = build_network(TINY, (1, 8, 8), 10).cuda()
    fabric = Fabric(accelerator="cuda", devices=1)
    step = steps.Step(network, TINY, fabric, compiled=False, graph=graph)
    assert (step.recording is not None) == graph


@contextmanager
def on_gpu(*, waiting="default"):
    """Use deterministic libraries; with `waiting="error"`, waiting for the device is an error."""
    torch.cuda.manual_seed(0)
    with torch.backends.cudnn.flags(deterministic=True):
        torch.cuda.set_sync_debug_mode(waiting)
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@no_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recipe", RECIPES, ids=NAMES)
def test_recorded_steps_have_the_results_of_plain_steps(recipe, precision):
    recorded, plain = (step_of(recipe, "cuda", precision) for _ in range(2))
    plain.recording = None
    found = []
    for step in (recorded, plain):
        with on_gpu():
            found.append(learn(step, "cuda"))
    assert recorded.recording.graph is not None
    assert torch.equal(*found)
    torch.testing.assert_close(recorded.state_dict(), plain.state_dict(), rtol=0, atol=0)
    for ours, its in zip(recorded.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(ours.grad, its.grad)


@no_gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=NAMES)
def test_a_recorded_step_never_waits_for_the_device(recipe):
    step = step_of(recipe, "cuda")
    learn(step, "cuda")
    batch = list(epoch(recipe, "cuda"))
    with on_gpu(waiting="error"):
        for images, labels in batch:
            step(images, labels, lr=1e-3)


@no_gpu
def test_batches_are_made_on_the_gpu_without_waiting_for_it():
    images = few_digits().train.to("cuda")
    made = batches(images, 32, shift=2, generator=torch.Generator().manual_seed(0))
    with on_gpu(waiting="error"):
        assert sum(len(labels) for _, labels in made) == len(images)
