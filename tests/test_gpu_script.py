"""The script for a machine with a GPU runs its parts, names those that failed, and names the packages it needs."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
MACHINE = {"python_version": "3.12", "python_full_version": "3.12.3", "extra": ""}  # for which the wheels are


def run(folder, python=sys.executable, groups=()):
    settings = {"OUT": str(folder), "PYTHON": str(python), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", str(SCRIPT), *groups], env=os.environ | settings, capture_output=True, text=True, check=False
    )


def standing_in(folder, program):
    """Make a Python that runs a shell program instead of tests, benchmarks and trainings, and is this one otherwise."""
    python = folder / "python"
    ours = f'case "$*" in *benchmarks/*|*pytest*|*capsnet.cli*) {program} ;; esac'
    python.write_text(f'#!/bin/sh\n{ours}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def needed_by(names):
    """Return the names of packages and of all their dependencies."""
    found, todo = set(), [Requirement(name) for name in names]
    while todo:
        name = canonicalize_name(todo.pop().name)
        if name not in found:
            found.add(name)
            more = map(Requirement, requires(name) or [])
            todo += [one for one in more if one.marker is None or one.marker.evaluate(MACHINE)]
    return found


def test_the_script_is_understood_by_the_shell():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_its_exit_status_counts_the_parts_that_failed_and_names_them(tmp_path):
    program = 'case "$*" in *steps*|*benchmarks/training*) exit 3 ;; esac; exit 0'
    done = run(tmp_path / "out", standing_in(tmp_path, program))
    assert done.returncode == 2, done.stderr
    assert done.stdout.rstrip().endswith("failed: steps (status 3),training (status 3)")
    files = [tmp_path / "out" / f"parts-{group}.json" for group in ("kernels", "speed", "accuracy")]
    parts = [part for file in files for part in json.loads(file.read_text())["parts"]]
    assert {part["part"] for part in parts if part["status"]} == {"steps", "training"}


@pytest.mark.parametrize("group", ["kernels", "speed", "accuracy"])
def test_a_group_of_parts_runs_by_itself(group, tmp_path):
    done = run(tmp_path / "out", standing_in(tmp_path, "exit 0"), [group])
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").glob("parts-*.json")] == [f"parts-{group}.json"]


def test_an_unknown_group_is_refused_with_the_names_of_the_groups(tmp_path):
    done = run(tmp_path / "out", groups=["kernel"])
    assert (done.returncode, done.stderr) == (2, "kernel is none of kernels, speed, accuracy\n")


def test_no_group_may_take_nine_minutes():
    groups = re.findall(r"^(kernels|speed|accuracy)\(\) \{(.*?)^\}", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(groups) == 3
    for name, body in groups:
        on_a_gpu = body.split("  else\n")[0]
        limits = [int(limit) for limit in re.findall(r"part \S+ (\d+) ", on_a_gpu)]
        assert 0 < sum(limits) * (3 if name == "accuracy" else 1) <= 500, name  # accuracy: three seeds


def test_a_training_that_was_stopped_is_resumed_and_one_that_ended_is_not_repeated(tmp_path):
    folder = tmp_path / "out" / "runs" / "digits-digits-0"
    program = (
        f'echo "$@" >> {tmp_path}/calls; mkdir -p {folder}; '
        f'case "$*" in *--resume*) echo {{}} > {folder}/results.json; exit 0 ;; esac; '
        f"touch {folder}/recipe.json; exit 1"
    )
    python = standing_in(tmp_path, program)
    assert [run(tmp_path / "out", python, ["accuracy"]).returncode for _ in range(3)] == [1, 0, 0]
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert first.endswith(f"train digits --run {folder} --recipe digits --epochs 3 --seed 0")
    assert second.endswith(f"train digits --run {folder} --resume")
    assert (tmp_path / "out" / "digits-digits-0.json").is_file()


def test_the_wheels_are_all_that_the_package_and_its_tests_need_beside_pytorch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = needed_by([*project["dependencies"], "pytest", "pytest-xdist"]) - needed_by(["torch", "numpy"])
    listed = {line for line in (SCRIPT.parent / "gpu-wheels.txt").read_text().splitlines() if not line.startswith("#")}
    assert needed - listed == set()


def test_missing_packages_are_named_before_anything_runs(tmp_path):
    venv.create(tmp_path / "bare")
    done = run(tmp_path / "out", tmp_path / "bare" / "bin" / "python")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"this Python lacks torch, .*click, .*pytest: give a folder of wheels in WHEELS\n", done.stderr)


def test_its_tests_are_there():
    named = set(re.findall(r"tests/[\w/]+\.py", SCRIPT.read_text()))
    assert named >= {"tests/ops/test_triton.py", "tests/test_steps.py"}
    assert all((ROOT / path).is_file() for path in named)
