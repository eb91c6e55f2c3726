"""A short run of the soak test finds nothing, and docs/RELIABILITY.md is up to date."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_short_soak_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.soak", "all", "--count", "1", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = {path.stem: json.loads(path.read_text())["findings_in_total"] for path in tmp_path.glob("*.json")}
    assert found == {"kills": 0, "power": 0, "inputs": 0, "commands": 0}


def test_the_page_on_reliability_is_up_to_date():
    check = [sys.executable, "benchmarks/reliability.py", "--check"]
    ended = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
