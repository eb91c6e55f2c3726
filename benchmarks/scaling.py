"""Times training steps of the paper's network in one process with all cores, and in several that share them out.

python benchmarks/scaling.py            prints a table, writes results/scaling/cpu.json and the table in docs/SCALING.md
python benchmarks/scaling.py --write    makes the table in docs/SCALING.md anew from results/scaling/cpu.json

Takes about a minute. The global batch is the same in both cases, so that each of two processes has half of it. What is
timed is a whole step: forward, backward, the mean of the gradients over the processes (gloo) and Adam.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from capsnet.build import build_network
from capsnet.data.batches import share
from capsnet.files import atomic_write
from capsnet.hardware import environment, keep_freed_memory
from capsnet.processes import join, share_cores
from capsnet.recipes import Fast
from capsnet.steps import Step

ROOT = Path(__file__).parent.parent
RESULT, PAGE = ROOT / "results" / "scaling" / "cpu.json", ROOT / "docs" / "SCALING.md"
BLOCK = re.compile(r"(?<=<!-- scaling -->\n).*?(?=<!-- /scaling -->)", re.DOTALL)
COUNTS, ROUNDS, WARM, STEPS = (1, 2), 3, 2, 8


def measure() -> dict[str, Any]:
    """Seconds a step in this process and those that torchrun started with it, and of the mean of gradients alone."""
    keep_freed_memory()
    share_cores()
    fabric, recipe = join(), Fast(precision="32-true", compile=False)
    network = build_network(recipe, (1, 28, 28), 10)
    step = Step(network, recipe, fabric, compiled=False)
    ours = share(recipe.batch_size, fabric.global_rank, fabric.world_size)
    images, labels = torch.rand(recipe.batch_size, 1, 28, 28)[ours], torch.arange(recipe.batch_size)[ours] % 10
    gradients = torch.zeros(sum(weight.numel() for weight in network.parameters()))
    steps = times(lambda: step(images, labels, 1e-3, recipe.batch_size))
    reduced = times(lambda: fabric.all_reduce(gradients)) if fabric.world_size > 1 else []
    threads, parameters = torch.get_num_threads(), len(gradients)
    return {
        "batch": recipe.batch_size,
        "parameters": parameters,
        "threads": threads,
        "steps": steps,
        "reductions": reduced,
    }


def times(call: Any) -> list[float]:
    """Seconds of each call, once libraries are warm."""
    found = []
    for _ in range(WARM + STEPS):
        begun = perf_counter()
        call()
        found.append(perf_counter() - begun)
    return found[WARM:]


def measured(processes: int) -> dict[str, Any]:
    """What the first of so many processes measures."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    out = subprocess.run([*command, __file__, "--worker"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)


def write_table(result: dict[str, Any]) -> str:
    """Put the table into the page, and return it."""
    alone = result["rows"][0]["seconds"]
    lines = ["| processes | threads each | step, s | images/s | against one process | mean of gradients alone, s |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in result["rows"]:
        reduction = "—" if row["reduction"] is None else f"{row['reduction']:.3f}"
        lines.append(
            f"| {row['processes']} | {row['threads']} | {row['seconds']:.3f} | {row['batch'] / row['seconds']:.0f} "
            f"| {alone / row['seconds']:.2f} x | {reduction} |"
        )
    about = result["environment"]
    where = f"{about['device']}, {about['cores']} cores, torch {about['torch']}, commit {(about['commit'] or '—')[:7]}"
    n = ROUNDS * STEPS
    lines += ["", f"Global batch {result['rows'][0]['batch']}, float32, medians of {n} steps; {where}.", ""]
    table = "\n".join(lines)
    with atomic_write(PAGE) as part:
        part.write_text(BLOCK.sub(lambda _: table, PAGE.read_text()))
    return table


def main() -> None:
    """Measure, in turns, or what else the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="only make the table anew")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        found = measure()
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return
    if not asked.write:
        rounds = [[measured(processes) for processes in COUNTS] for _ in range(ROUNDS)]
        rows = []
        for processes, found in zip(COUNTS, zip(*rounds, strict=True), strict=True):
            steps = [seconds for one in found for seconds in one["steps"]]
            reductions = [seconds for one in found for seconds in one["reductions"]]
            kept = {name: found[0][name] for name in ("batch", "parameters", "threads")}
            seconds = {"seconds": median(steps), "reduction": median(reductions) if reductions else None}
            rows.append({"processes": processes, **kept, **seconds, "steps": steps, "reductions": reductions})
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(RESULT) as part:
            part.write_text(
                json.dumps({"environment": environment(torch.device("cpu")), "rows": rows}, indent=2) + "\n"
            )
    print(write_table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
