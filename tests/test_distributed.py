"""Several processes that train one network have the data, gradients, log and files of one process.

The processes are real: they run on the CPU, connected by gloo, as torchrun or `capsnet train --devices` starts them.
"""

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from lightning_fabric import Fabric
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from capsnet import launch, training
from capsnet.build import build_network
from capsnet.checkpoints import checkpoint_paths, load_checkpoint
from capsnet.cli.train import make_request
from capsnet.data import batches, load_data, share
from capsnet.errors import InputError
from capsnet.hardware import cores, device_count
from capsnet.processes import everywhere, first, join, process_seed, share_cores
from capsnet.recipes import Digits, Fast, Recipe
from capsnet.runs import load_run, start_run
from capsnet.steps import Step
from tables import scaling_page
from tests.commands import SMALL, capsnet, parsed
from tests.training import BASELINE, TINY, few_digits, last_weights, resume, train

ROOT = Path(__file__).parents[1]
EPOCH = 41  # steps: 1,294 images in batches of 32
CAPSNET = [sys.executable, "-m", "capsnet"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
LINE = shlex.split("train digits --recipe digits --schedule exponential --shift 1 --run run") + SMALL
RECIPE = Digits(
    conv_channels=8,
    primary_types=2,
    precision="32-true",
    compile=False,
    batch_size=33,  # which no number of processes divides
    schedule="exponential",
    shift=1,
)
RECIPES = {
    "capsnet": replace(TINY, batch_size=32),
    "prior, bias, average": replace(TINY, batch_size=32, prior=True, bias=True, ema_decay=0.5),
}


def once(tmp_path_factory, name, make):
    """Call `make` with a new folder and return its result; of several pytest workers, only the first one calls it."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    result = folder.with_suffix(".pickle")
    with FileLock(folder.with_suffix(".lock")):
        if not result.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            result.write_bytes(pickle.dumps(make(folder)))
    return pickle.loads(result.read_bytes())


# The batches and seeds of several processes


@pytest.mark.parametrize("processes", [1, 2, 3, 64])
@pytest.mark.parametrize("shift", [0, 2])
def test_each_image_of_a_batch_goes_to_one_process_unchanged(processes, shift):
    def cut(rank, processes):
        order = torch.Generator().manual_seed(7)
        return batches(few_digits().train, 33, shift=shift, generator=order, rank=rank, processes=processes)

    shares = zip(*(cut(rank, processes) for rank in range(processes)), strict=True)
    for (images, labels), ours in zip(cut(0, 1), shares, strict=True):
        assert torch.equal(torch.cat([part for part, _ in ours]), images)
        assert torch.equal(torch.cat([part for _, part in ours]), labels)
        sizes = {len(part) for part, _ in ours}
        assert max(sizes) - min(sizes) <= 1


def test_shares_are_consecutive_and_cover_everything():
    for n in range(10):
        for processes in range(1, 5):
            places = [list(range(n))[share(n, rank, processes)] for rank in range(processes)]
            assert list(chain(*places)) == list(range(n))


def test_every_process_draws_other_random_numbers_and_the_first_those_of_the_seed():
    seeds = {process_seed(seed, rank, step) for seed in range(3) for rank in range(1, 5) for step in (0, 7)}
    drawn = [torch.rand(8, generator=torch.Generator().manual_seed(seed)) for seed in (*seeds, 0, 1, 2)]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 3 * 4 * 2 + 3
    assert process_seed(5, 0) == process_seed(5, 0, 7) == 5


# Gradients


def moves(recipe: Recipe, fabric: Fabric, sizes: tuple[int, ...]) -> list[tuple[np.ndarray, ...]]:
    """Steps on batches of these sizes in float64 → the measurements, gradients and new weights of each step."""
    network = build_network(recipe, (1, 8, 8), 10).double()
    step = Step(network, recipe, fabric, compiled=False)
    found = []
    for n in sizes:
        ours = share(n, fabric.global_rank, fabric.world_size)
        images, labels = few_digits().train.images[:n].double() / 255, few_digits().train.labels[:n]
        measured = step(images[ours], labels[ours], lr=1e-3, batch_size=n)
        if fabric.world_size > 1:
            measured = fabric.all_reduce(measured, reduce_op="mean")
        gradients = torch.cat([weight.grad.flatten() for weight in network.parameters()])
        kept = network if step.average is None else step.average.module
        weights = torch.cat([weight.detach().flatten() for weight in kept.parameters()])
        found.append((measured.numpy(), gradients.numpy(), weights.numpy()))
    return found


def in_a_process(recipes, sizes, folder):
    """The results of each of several processes."""
    share_cores()
    fabric = join()
    found = {name: moves(recipe, fabric, sizes) for name, recipe in recipes.items()}
    dropped = build_network(BASELINE, (1, 8, 8), 10)
    torch.manual_seed(process_seed(0, fabric.global_rank))
    dropout = dropped(torch.ones(1, 1, 8, 8)).tolist()
    return found, dropout, torch.get_num_threads(), errors_of(fabric), diverged(fabric, folder)


def errors_of(fabric):
    """The messages in this process of an InputError in the first process, and of one in the last."""

    def fail():
        raise InputError(f"process {fabric.global_rank} cannot")

    def fail_later():
        if fabric.global_rank == fabric.world_size - 1:
            fail()

    said = []
    for act in (lambda: first(fabric, fail), lambda: everywhere(fabric, fail_later)):
        try:
            act()
        except InputError as error:
            said.append(str(error))
    values = first(fabric, lambda: fabric.global_rank), everywhere(fabric, lambda: fabric.global_rank)
    return said, values


def diverged(fabric, folder):
    """The error in this process of a training whose learning rate is infinite in the last process."""
    run = first(fabric, lambda: start_run(folder / "run", TINY, few_digits()))
    lr = float("inf") if fabric.global_rank == fabric.world_size - 1 else 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "learning_rate", lambda _, step, *of: lr if step == 8 else 1e-3)
        try:
            training.train(run, few_digits())
        except InputError as error:
            return str(error)


SIZES = (32, 31, 7, 1)  # of batches; of three processes, two have no image of the last one


@pytest.fixture(scope="module", params=[2, 3])
def by_rank(request, tmp_path_factory):
    """The results of 2 and of 3 processes, by rank."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=request.param,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    launched = elastic_launch(config, in_a_process)
    return once(tmp_path_factory, f"{request.param}-processes", lambda folder: launched(RECIPES, SIZES, folder))


@pytest.mark.parametrize("name", RECIPES)
def test_gradients_and_measurements_are_those_of_one_process_on_the_joined_batch(by_rank, name):
    expected = moves(RECIPES[name], Fabric(accelerator="cpu", devices=1), SIZES)
    for found, *_ in by_rank.values():
        for numbers, alone in zip(found[name], expected, strict=True):
            for ours, its in zip(numbers, alone, strict=True):
                assert np.linalg.norm(ours - its) <= 1e-6 * np.linalg.norm(its)


def test_dropout_differs_between_processes(by_rank):
    dropouts = [str(dropout) for _, dropout, *_ in by_rank.values()]
    assert len(set(dropouts)) == len(dropouts)


def test_the_cores_are_divided_among_the_processes(by_rank):
    assert {threads for _, _, threads, *_ in by_rank.values()} == {max(1, cores() // len(by_rank))}


def test_an_input_error_in_one_process_is_raised_in_all(by_rank):
    last = len(by_rank) - 1
    for *_, (said, values), _ in by_rank.values():
        assert said == ["process 0 cannot", f"process {last} cannot"]
        assert values == (0, list(range(last + 1)))


def test_a_loss_that_is_not_finite_in_one_process_is_an_error_in_all(by_rank):
    for *_, said in by_rank.values():
        assert re.match("the (loss|weights) (at|after) step .* not finite: the last good checkpoint is kept in ", said)


# Whole trainings


def start(command, *flags, folder, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        environment.pop(name, None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, flags)], cwd=folder, env=environment, **pipes, **options)


def run(command, *flags, folder):
    """Run a command to its end: status, what it printed, and its errors."""
    with start(command, *flags, folder=folder) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def steps_of(run):
    return [(record["kind"], record["step"]) for record in run.records()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert capsnet(*LINE, "--batch-size", 33, "--steps", 60).status == 0
        return folder / "run"

    return load_run(once(tmp_path_factory, "alone", make))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes, and what they printed."""

    def make(folder):
        status, out, err = run(CAPSNET, *LINE, "--batch-size", 33, "--steps", 60, "--devices", 2, folder=folder)
        assert status == 0, err
        return folder / "run", out, err

    folder, out, err = once(tmp_path_factory, "two", make)
    return load_run(folder), out, err


def test_two_processes_train_as_one_does(alone, two):
    ours, _, _ = two
    assert steps_of(ours) == steps_of(alone)
    losses = [[record["loss"] for record in run.records("train")] for run in (ours, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    tested = [json.loads((run.folder / "results.json").read_text())["test"] for run in (ours, alone)]
    assert tested[0]["n"] == tested[1]["n"] == 360
    assert abs(tested[0]["errors"] - tested[1]["errors"]) <= 10
    validated = [[record["n"] for record in run.records("validation")] for run in (ours, alone)]
    assert validated[0] == validated[1] == [143, 143]


def test_one_process_prints_and_writes(two):
    ours, out, err = two
    assert err == ""
    assert out.count("1,294 training images") == out.count("test accuracy") == out.count("report: ") == 1
    assert len(list(ours.folder.glob("*tfevents*"))) == 1
    [part] = ours.training_parts
    assert (part.processes, part.nodes, part.from_step) == (2, 1, 0)
    assert part.command.startswith("capsnet train digits")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_two_processes_with_a_compiled_network_have_the_same_losses(tmp_path):
    data, settings = load_data("digits"), {"epochs": 1, "iterations": 2, "gradient": "last", "decoder": "none"}
    recipe = replace(RECIPE, **settings)  # compiles in little time; the last batch has another size
    compiled = start_run(tmp_path / "compiled", replace(recipe, compile=True), data)
    flags = ["train", "digits", "--run", compiled.folder, "--resume", "--devices", 2]
    status, _, err = run(CAPSNET, *flags, folder=tmp_path)
    assert status == 0, err
    plain = train(tmp_path / "plain", recipe, data)
    losses = [[record["loss"] for record in run.records("train")] for run in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_run_of_one_process_says_so(alone):
    assert [(part.processes, part.nodes) for part in alone.training_parts] == [(1, 1)]


def test_a_run_is_resumed_in_another_number_of_processes(tmp_path):
    data, recipe = load_data("digits"), replace(RECIPE, ema_decay=0.5, epochs=None, steps=30)
    alone = train(tmp_path / "alone", recipe, data)
    train(tmp_path / "run", replace(recipe, steps=10), data)
    flags = shlex.split("train digits --run run --resume --steps 20 --devices 2")
    status, _, err = run(CAPSNET, *flags, folder=tmp_path)
    assert status == 0, err
    ours = resume(tmp_path / "run", data, steps=30)
    assert [(part.from_step, part.processes) for part in ours.training_parts] == [(0, 1), (10, 2), (20, 1)]
    assert load_checkpoint(ours)["step"] == load_checkpoint(alone)["step"] == 30
    moved = (last_weights(ours) - last_weights(alone)).norm() / last_weights(alone).norm()
    assert moved < 1e-3


def test_two_nodes_train_together_and_only_the_first_has_the_folder(tmp_path):
    port = free_port()
    flags = f"--nnodes 2 --nproc-per-node 1 --master-addr localhost --master-port {port} --node-rank".split()
    nodes = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        folder.mkdir()
        command = [*TORCHRUN, *flags, str(rank), "-m", "--", "capsnet"]
        nodes.append(start(command, *LINE, "--decoder", "none", "--steps", 5, "--nodes", 2, folder=folder))
    for node in nodes:
        _, err = node.communicate(timeout=300)
        assert node.returncode == 0, err
    [part] = load_run(tmp_path / "0" / "run").training_parts
    assert (part.processes, part.nodes) == (2, 2)
    assert not list((tmp_path / "1").iterdir())


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


# Signals, kills and errors


def workers(process):
    """The processes that a launcher has started, by rank."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        found |= {int(words[5:]): int(child) for words in variables if words.startswith("RANK=")}
    return found


def wait_for(path, process):
    while not (path.is_file() and path.stat().st_size):
        assert process.poll() is None, process.communicate(timeout=300)
        time.sleep(0.01)


@contextmanager
def trained_by(command, folder, *flags, until="log.jsonl"):
    """A training of two processes, from the time when a file of its folder exists."""
    process = start(command, *LINE, *flags, folder=folder, start_new_session=True)
    try:
        wait_for(folder / "run" / until, process)
        yield process
        process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=300)


def send_signal(process, whom, number):
    """Send a signal to a launcher, to one of the processes that it has started, or to all, as a terminal at Ctrl-C."""
    if whom == "all":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "launcher" else workers(process)[whom], number)


@pytest.mark.parametrize(
    ("whom", "number"), [("launcher", signal.SIGTERM), ("all", signal.SIGINT), (1, signal.SIGTERM)]
)
def test_a_signal_to_any_process_stops_all_with_a_checkpoint(tmp_path, whom, number):
    with trained_by(CAPSNET, tmp_path, "--steps", 3000, "--devices", 2) as process:
        send_signal(process, whom, number)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert re.fullmatch("\nstopped; continue with: capsnet train digits --run run --resume\n", err)
    state = load_checkpoint(load_run(tmp_path / "run"))
    assert 0 < state["step"] < 3000
    assert load_run(tmp_path / "run").records()[-1]["step"] == state["step"]


def test_a_killed_process_ends_the_training_with_its_status_and_one_line(tmp_path):
    with trained_by(CAPSNET, tmp_path, "--steps", 3000, "--devices", 2) as process:
        os.kill(workers(process)[1], signal.SIGKILL)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGKILL
    assert re.fullmatch("capsnet: another process of this training has ended: continue with --resume\n", err)


def test_a_killed_process_is_started_again_by_torchrun_from_the_last_checkpoint(tmp_path):
    command = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "2", "-m", "--", "capsnet"]
    flags, epochs = ["--decoder", "none", "--overwrite", "--epochs"], 12
    with trained_by(command, tmp_path, *flags, epochs, until=f"checkpoints/{EPOCH:010d}.ckpt") as process:
        for killed, rank in enumerate((0, 1)):
            wait_for_checkpoint_of_part(killed, tmp_path / "run", process)
            os.kill(workers(process)[rank], signal.SIGKILL)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    ended = load_run(tmp_path / "run")
    first, *restarts = [part.from_step for part in ended.training_parts]
    assert first == 0
    assert len(restarts) == 2
    assert 0 < restarts[0] < restarts[1]
    assert [step % EPOCH for step in restarts] == [0, 0]
    assert load_checkpoint(ended)["step"] == epochs * EPOCH
    found = steps_of(ended)
    assert len(found) == len(set(found)) == epochs * (2 + 1 + 1)
    assert "Traceback" not in err
    assert out.count("report: ") == 1


def wait_for_checkpoint_of_part(number, folder, process):
    """Wait until the processes that were started again this many times have written a checkpoint."""
    while True:
        run = load_run(folder)
        parts = run.training_parts
        if len(parts) > number and int(checkpoint_paths(run)[0].stem) > parts[number].from_step:
            return
        assert process.poll() is None, process.communicate(timeout=300)
        time.sleep(0.01)


def test_a_restart_does_not_resume_a_run_that_existed_before(tmp_path, alone):
    Path(tmp_path / "run").symlink_to(alone.folder)
    before = (alone.folder / "log.jsonl").read_bytes()
    command = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "1", "-m", "--", "capsnet"]
    status, _, err = run(command, *LINE, "--batch-size", 33, "--steps", 60, folder=tmp_path)
    assert status == 1
    assert len(re.findall("capsnet: run exists.*", err)) == 2  # torchrun restarts after any error
    assert (alone.folder / "log.jsonl").read_bytes() == before


def test_an_input_error_is_one_line_of_all_processes_and_status_2(tmp_path, alone):
    (tmp_path / "run").symlink_to(alone.folder)
    status, _, err = run(CAPSNET, *LINE, "--devices", 2, folder=tmp_path)
    assert status == 2, err
    assert re.fullmatch("capsnet: run exists: [^\n]*\n", err), err


def test_a_checkpoint_that_cannot_be_written_ends_all_processes_in_one_line(tmp_path):
    with trained_by(CAPSNET, tmp_path, "--steps", 3000, "--devices", 2) as process:
        shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
        (tmp_path / "run" / "checkpoints").touch()
        _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert re.fullmatch("capsnet: [^\n]*checkpoints[^\n]*\n", err), err


# Arguments that are refused


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--devices", 0], "--devices 0: a training takes at least 1"),
        (["--devices", -1], "--devices -1: a training takes at least 1"),
        (["--nodes", 0], "--nodes 0: a training takes at least 1"),
        (["--nodes", 2], "--nodes 2 needs torchrun on every node, .* `torchrun --nnodes 2 --nproc-per-node 1 "),
        (["--devices", device_count() + 1], rf"--devices {device_count() + 1}, but this machine has {device_count()} "),
        (["--devices", 2, "--batch-size", 1], "--batch-size 1 is too small for 2 processes: it has to be at least 2"),
        (["--devices", "two"], "Invalid value for '--devices': 'two' is not a valid integer"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line_before_anything_starts(tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "launch", lambda devices: pytest.fail("it was started"))
    said = capsnet(*LINE, *flags)
    assert said.status == 2
    assert re.fullmatch(f"capsnet: {says}[^\n]*\n", said.err), said.err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def under_torchrun(monkeypatch):
    """The environment of the first of two processes."""
    counts = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}
    for name, value in (counts | {"TORCHELASTIC_RUN_ID": "test"}).items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--devices", 3], "--devices 3, but torchrun has started 2: leave --devices out"),
        (["--nodes", 3], "--nodes 3, but torchrun has started 1: leave --nodes out"),
        (["--batch-size", 1], "--batch-size 1 is too small for 2 processes: it has to be at least 2"),
    ],
)
def test_numbers_other_than_torchruns_are_refused_in_one_line(under_torchrun, tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    said = capsnet(*LINE, *flags)
    assert (said.status, said.err) == (2, f"capsnet: {says}\n")


def test_only_training_runs_in_several_processes(under_torchrun):
    said = capsnet("evaluate", "run")
    assert said.status == 2
    assert said.err == "capsnet: evaluate runs in one process, not in 2: start it without torchrun\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_a_node_prints_the_error(under_torchrun, monkeypatch, rank):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    said = capsnet("evaluate", "run")
    assert (said.status, said.err != "") == (2, rank == 0)


def test_more_processes_than_gpus_are_refused(under_torchrun, monkeypatch):
    monkeypatch.setattr("capsnet.processes.default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("capsnet.processes.device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes need a GPU each, and this machine has 1: start fewer"):
        join()


def test_a_training_of_one_process_does_not_use_the_variables_of_a_cluster(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")  # of a job step, whose other variables are missing
    assert join().world_size == 1


def test_checkpoints_of_two_processes_are_the_last_two(two):
    assert [path.name for path in checkpoint_paths(two[0])] == ["0000000060.ckpt", "0000000040.ckpt"]


# docs/SCALING.md


def test_the_table_of_the_page_has_the_measured_numbers():
    assert scaling_page() == (ROOT / "docs" / "SCALING.md").read_text()


def test_each_command_line_of_the_page_is_valid():
    page = (ROOT / "docs" / "SCALING.md").read_text()
    lines = re.findall(r"(?:^|-m )(?:-- )?capsnet (train .*?)(?:  #|$)", page, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        assert make_request(parsed(line)).data == "mnist"


def test_the_page_s_bytes_are_those_of_the_paper_s_gradients():
    page = (ROOT / "docs" / "SCALING.md").read_text()
    network = build_network(Fast(), (1, 28, 28), 10)
    sent = 4 * sum(weight.numel() for weight in network.parameters())
    assert f"{sent / 4:,.0f} parameters: {sent / 1e6:.1f} MB" in page
    for processes in (8, 64):
        assert f"{2 * (processes - 1) / processes * sent / 1e6:.1f} MB for {processes}" in page
