"""The programs and the verb that measure speed run from end to end on small sizes, and say where they wrote."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from capsnet.benchmarks import measuring
from capsnet.benchmarks.measuring import machine_kind
from capsnet.cli import main
from capsnet.hardware import default_device
from capsnet.recipes import Fast

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


def capsnet(monkeypatch, capsys, *arguments):
    """What a command line prints in this process, and its exit status."""
    monkeypatch.setattr(sys, "argv", ["capsnet", *map(str, arguments)])
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["routing", "training"])
def test_the_verb_prints_tables_and_leaves_json_and_a_picture(name, tmp_path, monkeypatch, capsys):
    status, out, _ = capsnet(monkeypatch, capsys, "bench", name, "--quick", "--folder", tmp_path)
    assert status == 0
    (found,) = tmp_path.rglob("*.json")
    results = json.loads(found.read_text())
    assert found.parent.name == name
    assert found.stem == results["kind"] == machine_kind(default_device())
    assert results["quick"]
    assert found.with_suffix(".png").is_file()
    assert out.endswith(f"{found}\n{found.with_suffix('.png')}\n".replace("\n\n", "\n"))
    assert results["environment"]["device"] in out


@pytest.mark.slow
def test_the_time_to_an_accuracy_is_taken_from_the_start_of_the_process(tmp_path):
    command = [sys.executable, PROGRAMS / "epoch_to_accuracy.py", "--quick", "--epochs", "1", "--folder", tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    (found,) = (tmp_path / "epoch_to_accuracy").glob("*.json")
    results = json.loads(found.read_text())
    assert "validation accuracy" in said.stdout
    (epoch,) = results["epochs"]
    assert 0 < epoch["took"] == epoch["seconds"] < results["seconds"]
    assert results["test"]["n"] == 360


@pytest.mark.slow
def test_both_convolutions_are_timed_and_compared(tmp_path):
    command = [sys.executable, PROGRAMS / "convolution.py", "--quick", "--folder", tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    path = tmp_path / "convolution" / f"{machine_kind(torch.device('cpu'))}.json"
    results = json.loads(path.read_text())
    assert "which is chosen" in said.stdout
    assert said.stdout.endswith(f"{path}\n")
    row = results["rows"][0]
    assert (row["images"], row["channels"], row["kernels"], row["size"]) == (1, 64, 64, 12)
    assert (row["kernel_size"], row["stride"], row["dtype"], row["training"]) == (5, 2, "float32", True)
    assert set(row["ms"]) == {"direct", "fourier"}
    assert row["chosen"] == "direct"
    errors = results["errors"][0]
    assert all(errors["fourier"][name] <= 2 * errors["direct"][name] < 1e-5 for name in ("values", "images", "weight"))


@pytest.mark.parametrize(("bf16", "kind"), [(True, "cpu-bf16"), (False, "cpu-float32")])
def test_what_a_program_measures_is_filed_under_the_kind_of_machine(bf16, kind, monkeypatch):
    monkeypatch.syspath_prepend(PROGRAMS)
    running = import_module("running")
    monkeypatch.setattr(measuring, "fast_bf16", lambda _: bf16)
    monkeypatch.setattr(running, "default_device", lambda: torch.device("cpu"))
    folder, picture = running.places("training", quick=False, folder=None)
    assert (folder.name, picture.name) == ("results", f"training-{kind}.png")
    assert machine_kind(torch.device("cpu")) == kind
    assert machine_kind(torch.device("cuda")) == "cuda"


def test_a_mark_is_told_with_the_first_epoch_that_passed_it(monkeypatch):
    monkeypatch.syspath_prepend(PROGRAMS)
    program = import_module("epoch_to_accuracy")
    validation = [
        {"epoch": k, "since": 10.0 * k, "accuracy": accuracy, "n": 5000}
        for k, accuracy in enumerate((0.98, 0.991, 0.985, 0.995), 1)
    ]
    test = {"n": 10_000, "errors": 57, "accuracy": 0.9943}
    results = program.results_of(program.Trained(validation, test, 45.0), "mnist", Fast())
    assert [(mark["seconds"], mark["epoch"]) for mark in results["marks"]] == [(20.0, 2), (40.0, 4), (None, None)]
    assert [epoch["took"] for epoch in results["epochs"]] == [10.0] * 4
    assert results["recipe"] == "fast"
    assert results["kind"] == machine_kind(default_device())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("bench", "flying"), "flying"), (("bench", "routing", "--folder", "file"), "file/routing cannot be made")],
)
def test_a_mistake_is_answered_in_one_line_with_exit_status_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    status, out, err = capsnet(monkeypatch, capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("capsnet: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_mistake_of_a_program_is_answered_with_exit_status_2():
    command = [sys.executable, PROGRAMS / "epoch_to_accuracy.py", "--quick", "--epochs", "0"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert said.stderr.endswith("error: --epochs must be greater than or equal to 1, not 0\n")
