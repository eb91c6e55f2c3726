"""Times training steps of the paper's network in one process with all cores, and in two that divide them.

python benchmarks/scaling.py    prints a table and writes results/scaling/cpu.json; tables.py puts it in docs/SCALING.md

Takes about a minute. The global batch size is the same in both cases, so that each of two processes has half of it. A
whole step is timed: forward, backward, the mean of the gradients over the processes (gloo) and Adam.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch

from capsnet.build import build_network
from capsnet.data.batches import share
from capsnet.hardware import environment, keep_freed_memory
from capsnet.processes import join, share_cores
from capsnet.recipes import Fast
from capsnet.steps import Step
from goals import NOT_RUN, Results
from report import ROOT, Table, machine, markdown, write_results

RESULT = ROOT / "results" / "scaling" / "cpu.json"
COUNTS, ROUNDS, WARM, STEPS = (1, 2), 3, 2, 8


def measure_here() -> Results:
    """Measure the seconds of a step in all processes that torchrun started, and of the mean of the gradients alone."""
    keep_freed_memory()
    share_cores()
    fabric, recipe = join(), Fast(precision="32-true", compile=False)
    network = build_network(recipe, (1, 28, 28), 10)
    step = Step(network, recipe, fabric, compiled=False)
    ours = share(recipe.batch_size, fabric.global_rank, fabric.world_size)
    images, labels = torch.rand(recipe.batch_size, 1, 28, 28)[ours], torch.arange(recipe.batch_size)[ours] % 10
    gradients = torch.zeros(sum(weight.numel() for weight in network.parameters()))
    steps = times(lambda: step(images, labels, 1e-3, recipe.batch_size))
    reductions = times(lambda: fabric.all_reduce(gradients)) if fabric.world_size > 1 else []
    about = {"batch_size": recipe.batch_size, "parameters": len(gradients), "threads": torch.get_num_threads()}
    return about | {"steps": steps, "reductions": reductions}


def times(call: Callable[[], Any]) -> list[float]:
    """Return the seconds of each call, after some that do not count."""
    found = []
    for _ in range(WARM + STEPS):
        begun = perf_counter()
        call()
        found.append(perf_counter() - begun)
    return found[WARM:]


def measure_in(processes: int) -> Results:
    """Start this number of processes and return what the first one measures."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    out = subprocess.run([*command, __file__, "--worker"], check=True, stdout=subprocess.PIPE, text=True).stdout
    found: Results = json.loads(out)
    return found


def measure() -> Results:
    """Measure one process and several, in turns."""
    rounds = [[measure_in(processes) for processes in COUNTS] for _ in range(ROUNDS)]
    rows = []
    for processes, found in zip(COUNTS, zip(*rounds, strict=True), strict=True):
        steps = [seconds for one in found for seconds in one["steps"]]
        reductions = [seconds for one in found for seconds in one["reductions"]]
        about = {name: found[0][name] for name in ("batch_size", "parameters", "threads")}
        medians = {"seconds": median(steps), "reduction": median(reductions) if reductions else None}
        rows.append({"processes": processes, **about, **medians, "steps": steps, "reductions": reductions})
    return {"environment": environment(torch.device("cpu")), "quick": False, "rows": rows}


def table(results: Results) -> Table:
    """Return the table of steps by the number of processes."""
    first, rows = results["rows"][0], []
    for row in results["rows"]:
        seconds, reduction = row["seconds"], NOT_RUN if row["reduction"] is None else f"{row['reduction']:.3f}"
        rates = (f"{seconds:.3f}", f"{row['batch_size'] / seconds:.0f}", f"{first['seconds'] / seconds:.2f} x")
        rows.append((str(row["processes"]), str(row["threads"]), *rates, reduction))
    title = (
        f"Global batch size {first['batch_size']}, float32, medians of {len(first['steps'])} steps; {machine(results)}"
    )
    head = ("processes", "threads each", "step, s", "images/s", "speed-up", "mean of gradients alone, s")
    return Table(title, head, rows)


def main() -> None:
    """Measure, print the table and write the results; a process that this one started only measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().worker:
        found = measure_here()
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return
    results = measure()
    write_results(RESULT, results)
    print(markdown(table(results)))
    print(RESULT)


if __name__ == "__main__":
    main()
