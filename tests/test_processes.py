"""Real processes that get a signal, lose their terminal or cannot write, through the command line."""

import json
import math
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capsnet.checkpoints import checkpoint_paths, load_checkpoint
from capsnet.data.sources import FILES
from capsnet.runs import load_run
from tests.commands import COMMAND, SMALL, capsnet, files


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run that has ended."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert capsnet("train", "digits", "--run", "ended", "--steps", 1, *SMALL).status == 0
    return place


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_gets_a_signal_saves_and_prints_the_command_that_resumes(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    Path("my data").mkdir()
    for file, count in zip(FILES, (320, 320, 20, 20), strict=True):
        shape = (count, 20, 20)[: 3 if "images" in file else 1]
        sizes = b"".join(size.to_bytes(4, "big") for size in shape)
        content = bytes([0, 0, 8, len(shape)]) + sizes + bytes(k % 10 for k in range(math.prod(shape)))
        Path("my data", file.removesuffix(".gz")).write_bytes(content)
    line = (
        shlex.split("train mnist --run 'my run' --data-dir 'my data' --steps 300 --decoder none --validation 20")
        + SMALL
    )
    with subprocess.Popen([*COMMAND, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = Path("my run", "log.jsonl")
        wait_for(log, process)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 128 + number, err
    command = re.fullmatch("\nstopped; continue with: capsnet (.+)\n", err)[1]
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    assert step < 300
    assert capsnet(*shlex.split(command)).status == 0
    results = json.loads(Path("my run", "results.json").read_text())
    assert results["validation"][-1]["step"] == 300


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_training_without_errors_prints_nothing_on_stderr(tmp_path, precision):
    line = ["train", "digits", "--run", "run", "--steps", "2", *SMALL]
    line[line.index("--precision") + 1] = precision
    process = subprocess.run([*COMMAND, *line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_checkpoints_are_written_as_often_as_save_every_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert capsnet("train", "digits", "--run", "run", "--steps", 3, "--save-every", 1e-9, *SMALL).status == 0
    names = [path.name for path in checkpoint_paths(load_run("run"))]
    assert names == ["0000000003.ckpt", "0000000002.ckpt"]


@pytest.fixture
def terminal():
    """A terminal to print to, and a function that closes it."""
    keyboard, screen = pty.openpty()
    yield screen, lambda: os.close(keyboard)
    os.close(screen)


def test_a_training_continues_after_its_terminal_is_closed(tmp_path, terminal):
    """The terminal is closed without a signal, as for a process that was disowned."""
    screen, close = terminal
    line = shlex.split(f"train digits --run {tmp_path / 'run'} --epochs 1 --decoder none") + SMALL
    with subprocess.Popen([*COMMAND, *line], stdout=screen, stderr=screen) as process:
        wait_for(tmp_path / "run" / "log.jsonl", process)
        close()
    assert process.returncode == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["test"]["n"] == 360
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_hang_up_saves_though_the_terminal_is_closed(tmp_path, terminal):
    screen, close = terminal
    line = shlex.split(f"train digits --run {tmp_path / 'run'} --steps 300 --decoder none") + SMALL
    with subprocess.Popen([*COMMAND, *line], stdout=screen, stderr=screen) as process:
        wait_for(tmp_path / "run" / "log.jsonl", process)
        close()
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 128 + signal.SIGHUP
    assert load_checkpoint(load_run(tmp_path / "run"))["step"] < 300


def wait_for(path, process):
    """Wait until a file has content or the process that writes it has ended."""
    while not (path.is_file() and path.stat().st_size) and process.poll() is None:
        time.sleep(0.01)


def in_own_mounts(program):
    """Run a shell program with mounts of its own."""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


mounts = pytest.mark.skipif(
    in_own_mounts("mount -t tmpfs none /mnt").returncode != 0, reason="this user may not mount file systems of its own"
)


@mounts
def test_on_a_full_disk_there_is_one_line_and_the_last_checkpoint_stays(tmp_path):
    line = "train digits --run run --epochs 2 --precision 32-true --no-compile"  # a checkpoint takes 10 MiB
    code = "from capsnet.checkpoints import load_checkpoint; from capsnet.runs import load_run; "
    code += "print('stands at', load_checkpoint(load_run('run'))['step'])"
    inside = f"cd {shlex.quote(str(tmp_path))} && mount -t tmpfs -o size=18m none . && cd {shlex.quote(str(tmp_path))}"
    code = shlex.join([sys.executable, "-c", code])
    process = in_own_mounts(f"{inside} && {shlex.join(COMMAND)} {line}; echo status $?; {code}")
    assert re.fullmatch("capsnet: cannot write .*No space left on device[^\n]*\n", process.stderr), process
    assert process.stdout.endswith("status 2\nstands at 41\n")  # the first of two epochs


@mounts
@pytest.mark.parametrize(
    "line",
    [
        "train digits --run new",
        "train digits --run ended --resume",
        "train digits --run ended --overwrite",
        "report ended --only confusion",
        "couplings ended",
        "detection ended --images 2",
    ],
)
def test_on_a_read_only_file_system_there_is_one_line(place, line):
    before = files(place)
    inside = f"cd {shlex.quote(str(place))} && mount --bind . . && mount -o remount,bind,ro . && cd {place}"
    process = in_own_mounts(f"{inside} && exec {shlex.join(COMMAND)} {line}")
    assert process.returncode == 2, process
    assert re.fullmatch("capsnet: [^\n]+\n", process.stderr), process.stderr
    assert files(place) == before
