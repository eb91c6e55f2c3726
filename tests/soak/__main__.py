"""Soak test: tries to break the package by killed processes, power losses, damaged files and random command lines.

python -m tests.soak kills      trainings killed at random times and at every change of their folder
python -m tests.soak power      every state that a power loss can leave, by what was not yet flushed to disk
python -m tests.soak inputs     100,000 damaged files of every kind that the package reads
python -m tests.soak commands   command lines of random flags and odd values
python -m tests.soak all        all of them

The counts are written to results/reliability/; benchmarks/reliability.py makes docs/RELIABILITY.md of them. The exit
status is 1 if there are findings. On two busy cores of an AMD EPYC, all of it took 28 minutes.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from capsnet.hardware import default_device, environment
from tests.soak.commands import commands
from tests.soak.inputs import inputs
from tests.soak.kills import kills
from tests.soak.power import power

PARTS = {"kills": kills, "power": power, "inputs": inputs, "commands": commands}


def findings(counted: Any) -> int:
    """Number of findings in nested counts."""
    if not isinstance(counted, dict):
        return 0
    return sum(sum(inner.values()) if name == "findings" else findings(inner) for name, inner in counted.items())


def main() -> int:
    """Run the parts that the command line names, and write the counts of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--count", type=int, help="limit of the number of tries of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "results" / "reliability")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # so that the process can be forked
    found = 0
    for name in PARTS if asked.part == "all" else [asked.part]:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-") as room:
            counted = PARTS[name](Path(room).resolve(), random.Random(asked.seed), asked.count)
        about = environment(default_device()) | {"command": shlex.join(["python", "-m", "tests.soak", *sys.argv[1:]])}
        about |= {"seed": asked.seed, "seconds": round(time.monotonic() - begun)}
        asked.out.mkdir(parents=True, exist_ok=True)
        written = {"environment": about, "findings_in_total": findings(counted)} | counted
        (asked.out / f"{name}.json").write_text(json.dumps(written, indent=1) + "\n")
        print(f"{name}: {json.dumps(written, indent=1)}", flush=True)
        found += findings(counted)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
