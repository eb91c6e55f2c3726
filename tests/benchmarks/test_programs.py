"""The benchmarks run from end to end on small sizes, and print where they wrote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import measuring
from capsnet.hardware import default_device
from capsnet.recipes import Fast
from epoch_to_accuracy import Trained, results_of
from measuring import machine_kind
from report import output_paths

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["routing", "training"])
def test_a_benchmark_prints_tables_and_leaves_json_and_a_picture(name, tmp_path):
    command = [sys.executable, PROGRAMS / f"{name}.py", "--quick", "--folder", tmp_path]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    (found,) = tmp_path.rglob("*.json")
    results = json.loads(found.read_text())
    assert found.parent.name == name
    assert found.stem == results["kind"] == machine_kind(default_device())
    assert results["quick"]
    assert found.with_suffix(".png").is_file()
    assert out.endswith(f"{found}\n{found.with_suffix('.png')}\n")
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
    assert "the one that is chosen" in said.stdout
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
    monkeypatch.setattr(measuring, "fast_bf16", lambda _: bf16)
    assert machine_kind(torch.device("cpu")) == kind
    assert machine_kind(torch.device("cuda")) == "cuda"
    path, picture = output_paths("training", kind, quick=False, folder=None)
    assert path.parts[-3:] == ("results", "training", f"{kind}.json")
    assert picture.parts[-2:] == ("docs", f"training-{kind}.png")


def test_a_target_has_the_first_epoch_that_reached_it():
    validation = [
        {"epoch": k, "since": 10.0 * k, "accuracy": accuracy, "n": 5000}
        for k, accuracy in enumerate((0.98, 0.991, 0.985, 0.995), 1)
    ]
    test = {"n": 10_000, "errors": 57, "accuracy": 0.9943}
    results = results_of(Trained(validation, test, 45.0), "mnist", Fast())
    assert [(target["seconds"], target["epoch"]) for target in results["targets"]] == [
        (20.0, 2),
        (40.0, 4),
        (None, None),
    ]
    assert [epoch["took"] for epoch in results["epochs"]] == [10.0] * 4
    assert results["recipe"] == "fast"
    assert results["kind"] == machine_kind(default_device())


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, PROGRAMS / "routing.py", "--quick", "--folder", "file/inside"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    last = said.stderr.splitlines()[-1]
    assert last.startswith("routing.py: error: argument --folder: file/inside cannot be made")


def test_a_mistake_of_a_program_is_answered_with_exit_status_2():
    command = [sys.executable, PROGRAMS / "epoch_to_accuracy.py", "--quick", "--epochs", "0"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert said.stderr.endswith("error: --epochs must be greater than or equal to 1, not 0\n")
