"""Measures how a run's network holds out beside others, and leaves what came out in results/robustness/.

python benchmarks/robustness.py runs/mnist-fast --beside runs/mnist-small-cnn --other fashion_mnist
"""

import argparse
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from capsnet.figures.robustness import attack, change, detect
from capsnet.robustness.attacks import Networks

from capsnet.data import Data, load_data
from capsnet.evaluation import evaluate
from capsnet.hardware import default_device, environment, keep_freed_memory
from capsnet.runs import Run, load_run

RESULTS = Path(__file__).parent.parent / "results" / "robustness"


def networks_measured(runs: list[Run], networks: Networks, data: Data) -> dict[str, Any]:
    """Which networks they are: what trained each, its weights, and its own errors on the test images."""
    measured = {}
    for run in runs:
        network = networks[run.folder.resolve().name]
        errors = evaluate(network, data.test).errors
        measured[run.folder.resolve().name] = {
            "recipe": run.recipe_name,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "test": {"n": len(data.test), "errors": errors},
            "weights_sha256": sha256((run.best / "model.safetensors").read_bytes()).hexdigest(),
        }
    return measured


def keep(run: str, what: str, networks: dict[str, Any], path: Path, draw: Callable[[Path], Any]) -> None:
    """Time a measurement, whose picture has its numbers beside it, and keep those with what they stand on."""
    where, start = environment(default_device()), perf_counter()  # the commit may be another one at the end
    draw(path)
    seconds = perf_counter() - start
    about = {"run": run, "networks": networks, "seconds": round(seconds, 1), "environment": where}
    RESULTS.mkdir(parents=True, exist_ok=True)
    numbers = json.loads(path.with_suffix(".json").read_text())
    (RESULTS / f"{run}-{what}.json").write_text(json.dumps(about | numbers, indent=1) + "\n")
    print(f"{what}: {seconds:.0f} s, {path}")


def words() -> argparse.ArgumentParser:
    """What the program takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    parser.add_argument("--other", help="data that the network should not know")
    parser.add_argument("--only", nargs="*", choices=["affine", "detection", "attacks"], help="not all three")
    parser.add_argument("--images", type=int, default=1000, help="test images to change (%(default)s)")
    parser.add_argument("--attacked", type=int, default=100, help="test images to attack (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="of the attacks to be detected (%(default)s)")
    return parser


def main() -> None:
    """Attack, detect, turn."""
    asked = words().parse_args()
    keep_freed_memory()
    runs = [load_run(path) for path in (asked.run, *asked.beside)]
    run, device, folder = runs[0], default_device(), runs[0].folder / "figures"
    data, name = run.load_data(), run.folder.resolve().name
    networks = {one.folder.resolve().name: one.load_network().to(device) for one in runs}
    other = load_data(asked.other) if asked.other else None
    measurements: dict[str, Callable[[Path], Any]] = {
        "affine": lambda path: change(networks, data.test, data.classes, path, count=asked.images),
        "detection": lambda path: detect(
            run, networks[name], data, path, other=other, count=asked.attacked, steps=asked.steps
        ),
        "attacks": lambda path: attack(networks, data.test, path, count=asked.attacked),
    }
    about = networks_measured(runs, networks, data)
    for what in asked.only or measurements:
        only = {name: about[name]} if what == "detection" else about
        keep(name, what, only, folder / f"{what}.png", measurements[what])


if __name__ == "__main__":
    main()
