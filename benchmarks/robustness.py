"""Measure the robustness of a run's network and of networks to compare with; write it to results/robustness/.

python benchmarks/robustness.py runs/mnist-fast --compare runs/mnist-small-cnn --ood fashion_mnist
"""

import argparse
import json
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from capsnet.analysis import find_subject
from capsnet.analysis.subject import Context, Network
from capsnet.data import Data, load_data
from capsnet.evaluation import evaluate
from capsnet.hardware import default_device, environment, keep_freed_memory
from capsnet.runs import Run, load_run

RESULTS = Path(__file__).parent.parent / "results" / "robustness"


def networks_measured(runs: list[Run], networks: dict[str, Network], data: Data) -> dict[str, Any]:
    """Return the recipe, the weights and the test errors of each network."""
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


def measure(name: str, context: Context, networks: dict[str, Any], **options: Any) -> None:
    """Make a subject, time it, and write its numbers with the networks and the environment."""
    where, start = environment(default_device()), perf_counter()  # the commit may be another one at the end
    path, *_ = find_subject(name)(context, **options)
    seconds = perf_counter() - start
    run = context.run.folder.resolve().name
    about = {"run": run, "networks": networks, "seconds": round(seconds, 1), "environment": where}
    RESULTS.mkdir(parents=True, exist_ok=True)
    numbers = json.loads(path.with_suffix(".json").read_text())
    (RESULTS / f"{run}-{name}.json").write_text(json.dumps(about | numbers, indent=1) + "\n")
    print(f"{name}: {seconds:.0f} s, {path}")


def parser() -> argparse.ArgumentParser:
    """Return the program's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--compare", type=Path, nargs="*", default=[], help="runs to compare with")
    parser.add_argument("--ood", help="out-of-distribution data")
    parser.add_argument("--only", nargs="*", choices=["affine", "detection", "attacks"], help="not all three")
    parser.add_argument("--images", type=int, default=1000, help="test images to change (%(default)s)")
    parser.add_argument("--attacked", type=int, default=100, help="test images to attack (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="of the attacks to be detected (%(default)s)")
    return parser


def main() -> None:
    """Measure accuracy under affine changes, detection, and accuracy under attack."""
    asked = parser().parse_args()
    keep_freed_memory()
    runs, device = [load_run(path) for path in (asked.run, *asked.compare)], default_device()
    run, *others = runs
    ood = load_data(asked.ood) if asked.ood else None
    compare = {other.folder.resolve().name: other.load_network().to(device) for other in others}
    context = Context(run, run.load_network().to(device), run.load_data(), compare, ood)
    about = networks_measured(runs, context.networks, context.data)
    options = {
        "affine": {"images": asked.images},
        "detection": {"images": asked.attacked, "steps": asked.steps},
        "attacks": {"images": asked.attacked},
    }
    for name in asked.only or options:
        measured = {run.folder.resolve().name} if name == "detection" else {*about}
        measure(name, context, {each: about[each] for each in about if each in measured}, **options[name])


if __name__ == "__main__":
    main()
