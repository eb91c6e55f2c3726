"""The soak runs: a few of everything that it tries, in which nothing is found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = {"kills": 1, "power": 2, "inputs": 60, "commands": 30}


@pytest.mark.parametrize("part", PARTS)
def test_a_little_of_the_soak_finds_nothing(part, tmp_path):
    command = [sys.executable, "-m", "tests.soak", part, "--count", str(PARTS[part]), "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / f"{part}.json").read_text())["findings_in_all"] == 0


def test_the_page_on_reliability_is_what_the_results_say():
    check = [sys.executable, "benchmarks/reliability.py", "--check"]
    ended = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
