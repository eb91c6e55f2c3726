"""Times training from a cold start, with all that is compiled for it, to 99.0, 99.5 and 99.65 % of MNIST's validation.

python benchmarks/epoch_to_accuracy.py               the recipe fast, into results/epoch_to_accuracy/
python benchmarks/epoch_to_accuracy.py --epochs 12   a longer run; its one-cycle rate is stretched over it
python benchmarks/epoch_to_accuracy.py --quick       the bundled digits for three epochs, into build/

Takes a whole training. The marks are of the validation images. The test images are looked at
once, at the end, with the network that has the fewest validation errors. Every second counts from when the process
was asked for: Python, imports, data, compilation into empty caches, and validation.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from running import places, words

from capsnet.benchmarks.bench import keep, show
from capsnet.benchmarks.measuring import machine_kind
from capsnet.benchmarks.using import CACHES
from capsnet.data import load_data
from capsnet.data.sources import data_folder
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.hardware import default_device, environment, keep_freed_memory
from capsnet.recipes import Digits, Fast, Recipe, find_recipe, name_of
from capsnet.runs import start_run
from capsnet.training import train

MARKS = (0.99, 0.995, 0.9965)
PROGRAM = "import sys; sys.path.insert(0, {!r}); from epoch_to_accuracy import learn; learn(sys.argv[1])"


@dataclass(frozen=True)
class Trained:
    """What a training in a process of its own left."""

    validation: list[dict[str, Any]]  # the lines of its log, each with the `since` at which it was there
    test: dict[str, Any]
    seconds: float


def learn(asked: str) -> None:
    """Train and judge in this process: a run in the folder, and beside it what the test images say."""
    keep_freed_memory()  # as `capsnet train` does
    given = json.loads(asked)
    data_of, recipe = given["data"], find_recipe(given["recipe"])(**given["fields"])
    data = load_data(data_of, validation=recipe.validation, seed=recipe.seed)
    folder = Path(given["folder"])
    test = evaluate(train(start_run(folder, recipe, data), data), data.test)
    told = {"n": test.n, "errors": test.errors, "accuracy": test.accuracy}
    (folder / "test.json").write_text(json.dumps(told))


def learn_elsewhere(data: str, recipe: Recipe, place: Path) -> Trained:
    """Train in a new process with empty caches, and note when each validation was done, in seconds since its start."""
    fields = {"epochs": recipe.epochs, "steps": recipe.steps}
    asked = {"recipe": name_of(recipe), "fields": fields, "data": data, "folder": str(place / "run")}
    program = PROGRAM.format(str(Path(__file__).parent))
    cold = os.environ | {name: str(place / name) for name in CACHES}
    if data != "digits":
        cold["CAPSNET_DATA"] = str(data_folder())  # which may lie in a cache
    log = place / "run" / "log.jsonl"
    seen: list[dict[str, Any]] = []
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program, json.dumps(asked)], env=cold) as process:
        while process.poll() is None:
            time.sleep(0.02)
            since = time.perf_counter() - start
            seen += [record | {"since": since} for record in validations(log)[len(seen) :]]
    if process.returncode:
        sys.exit(f"the training ended with exit status {process.returncode}")
    return Trained(seen, json.loads((place / "run" / "test.json").read_text()), time.perf_counter() - start)


def validations(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that tell of a validation."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    return [json.loads(line) for line in lines if line.startswith('{"kind": "validation"') and line.endswith("\n")]


def results_of(trained: Trained, data: str, recipe: Recipe) -> dict[str, Any]:
    """When each mark was first passed, and what each epoch took."""
    begun, epochs = 0.0, []
    for one in trained.validation:
        took = {"seconds": one["since"], "took": one["since"] - begun}
        epochs.append({"epoch": one["epoch"], "accuracy": one["accuracy"]} | took)
        begun = one["since"]
    marks = []
    for mark in MARKS:
        first = next((one for one in epochs if one["accuracy"] >= mark), {"seconds": None, "epoch": None})
        marks.append({"accuracy": mark, "seconds": first["seconds"], "epoch": first["epoch"]})
    device = default_device()
    about = {"environment": environment(device), "kind": machine_kind(device), "data": data, "recipe": name_of(recipe)}
    asked = {"epochs_asked": recipe.epochs, "steps_asked": recipe.steps, "validation_n": trained.validation[0]["n"]}
    return about | asked | {"marks": marks, "epochs": epochs, "test": trained.test, "seconds": trained.seconds}


def main() -> None:
    """Train, and leave what came out."""
    parser = words(__doc__)
    parser.add_argument("--epochs", type=int, help="not as many as the recipe has")
    asked = parser.parse_args()
    try:
        data, recipe = ("digits", Digits(epochs=3)) if asked.quick else ("mnist", Fast())
        if asked.epochs is not None:
            recipe = replace(recipe, epochs=asked.epochs, steps=None)
        load_data(data)  # what is missing is said, or downloaded, before the clock runs
    except InputError as error:
        parser.error(str(error))
    folder, picture = places("epoch_to_accuracy", asked.quick, asked.folder)
    with tempfile.TemporaryDirectory() as place:
        results = results_of(learn_elsewhere(data, recipe, Path(place)), data, recipe)
    path = folder / "epoch_to_accuracy" / f"{machine_kind(default_device())}.json"
    keep(path, results | {"quick": asked.quick})
    show("epoch_to_accuracy", path, picture)


if __name__ == "__main__":
    main()
