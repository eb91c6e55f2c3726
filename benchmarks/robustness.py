"""Measures how a run's network holds out beside others, and leaves what came out in results/robustness/.

python benchmarks/robustness.py runs/mnist-fast --beside runs/mnist-small-cnn --other fashion_mnist
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from capsnet.data import load_data
from capsnet.figures.robustness import attack, change, detect
from capsnet.hardware import default_device, environment, keep_freed_memory
from capsnet.runs import load_run

RESULTS = Path(__file__).parent.parent / "results" / "robustness"


def keep(run: str, what: str, path: Path, draw: Callable[[Path], Any]) -> None:
    """Time a measurement, whose picture has its numbers beside it, and keep those with what they stand on."""
    start = perf_counter()
    draw(path)
    seconds = perf_counter() - start
    about = {"run": run, "seconds": round(seconds, 1), "environment": environment(default_device())}
    RESULTS.mkdir(parents=True, exist_ok=True)
    numbers = json.loads(path.with_suffix(".json").read_text())
    (RESULTS / f"{run}-{what}.json").write_text(json.dumps(about | numbers, indent=1) + "\n")
    print(f"{what}: {seconds:.0f} s, {path}")


def main() -> None:
    """Attack, detect, turn."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", type=Path)
    words.add_argument("--beside", type=Path, nargs="*", default=[])
    words.add_argument("--other", help="data that the network should not know")
    words.add_argument("--only", nargs="*", choices=["affine", "detection", "attacks"], help="not all three")
    words.add_argument("--images", type=int, default=1000, help="test images to change and to attack (%(default)s)")
    asked = words.parse_args()
    keep_freed_memory()
    run = load_run(asked.run)
    data, device, folder = run.load_data(), default_device(), run.folder / "figures"
    networks = {path.name: load_run(path).load_network().to(device) for path in (asked.run, *asked.beside)}
    network, name = networks[asked.run.name], asked.run.name
    other = load_data(asked.other) if asked.other else None
    measurements: dict[str, Callable[[Path], Any]] = {
        "affine": lambda path: change(networks, data.test, data.classes, path, count=asked.images),
        "detection": lambda path: detect(run, network, data, path, other=other),
        "attacks": lambda path: attack(networks, data.test, path, count=asked.images),
    }
    for what in asked.only or measurements:
        keep(name, what, folder / f"{what}.png", measurements[what])


if __name__ == "__main__":
    main()
