"""The script for a machine with a GPU goes from its first part to its last and says which failed."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


def run(folder, python=sys.executable):
    told = os.environ | {"OUT": str(folder), "PYTHON": str(python), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", str(SCRIPT)], env=told, capture_output=True, text=True, check=False)


def standing_in(folder, program):
    """A Python whose tests and benchmarks are `program`, in the shell's words; all else is this one's."""
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *benchmarks/*|*pytest*) {program} ;; esac\nexec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return python


def test_the_script_is_understood_by_the_shell():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_its_exit_status_counts_the_parts_that_failed_and_names_them(tmp_path):
    program = 'case "$*" in *steps*|*benchmarks/training*) exit 3 ;; esac; exit 0'
    done = run(tmp_path / "out", standing_in(tmp_path, program))
    assert done.returncode == 2, done.stderr
    assert done.stdout.rstrip().endswith("failed: steps (status 3),training (status 3)")
    parts = json.loads((tmp_path / "out" / "parts.json").read_text())["parts"]
    assert {part["part"] for part in parts if part["status"]} == {"steps", "training"}
