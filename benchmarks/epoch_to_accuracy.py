"""Times training from a cold start, compilation included, to 99.0, 99.5 and 99.65 % of MNIST's validation images.

python benchmarks/epoch_to_accuracy.py               the recipe fast, into results/epoch_to_accuracy/
python benchmarks/epoch_to_accuracy.py --epochs 12   another number of epochs, over which the one-cycle schedule extends
python benchmarks/epoch_to_accuracy.py --quick       the bundled digits for three epochs, into build/

Takes a whole training. The target accuracies are on validation images. The test images are evaluated once, at the end,
with the network that has the fewest validation errors. Seconds count from the start of the process: Python, imports,
data, compilation into empty caches, and validation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsnet.analysis.style import BLUE, GREY, LABEL, SMALL, round_numbers
from capsnet.data import load_data
from capsnet.data.sources import data_folder
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.hardware import default_device, environment, keep_freed_memory
from capsnet.recipes import Digits, Fast, Recipe, find_recipe, name_of
from capsnet.runs import start_run
from capsnet.training import train
from goals import NOT_RUN, Results
from latency import CACHES
from measuring import machine_kind
from report import Benchmark, Table, parser, plain_axes, plot_title, run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGETS = (0.99, 0.995, 0.9965)
PROGRAM = "import sys; sys.path.insert(0, {!r}); from epoch_to_accuracy import learn; learn(sys.argv[1])"


@dataclass(frozen=True)
class Trained:
    """The results of a training in a new process."""

    validation: list[dict[str, Any]]  # the records of its log, each with the second `since` the start
    test: dict[str, Any]
    seconds: float


def learn(asked: str) -> None:
    """Train and evaluate in this process, and write a run and test.json to the folder."""
    keep_freed_memory()  # as `capsnet train` does
    given = json.loads(asked)
    recipe = find_recipe(given["recipe"])(**given["fields"])
    data = load_data(given["data"], validation=recipe.validation, seed=recipe.seed)
    folder = Path(given["folder"])
    test = evaluate(train(start_run(folder, recipe, data), data), data.test)
    (folder / "test.json").write_text(json.dumps({"n": test.n, "errors": test.errors, "accuracy": test.accuracy}))


def learn_elsewhere(data: str, recipe: Recipe, place: Path) -> Trained:
    """Train in a new process with empty caches, and record the second of each validation since its start."""
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
    """Return the validation records of a log, without a last line that is not complete."""
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    return [json.loads(line) for line in lines if line.startswith('{"kind": "validation"') and line.endswith("\n")]


def results_of(trained: Trained, data: str, recipe: Recipe) -> Results:
    """Return when each target was first reached, and the seconds of each epoch."""
    begun, epochs = 0.0, []
    for one in trained.validation:
        took = {"seconds": one["since"], "took": one["since"] - begun}
        epochs.append({"epoch": one["epoch"], "accuracy": one["accuracy"]} | took)
        begun = one["since"]
    targets = []
    for target in TARGETS:
        first = next((one for one in epochs if one["accuracy"] >= target), {"seconds": None, "epoch": None})
        targets.append({"accuracy": target, "seconds": first["seconds"], "epoch": first["epoch"]})
    device = default_device()
    about = {"environment": environment(device), "kind": machine_kind(device), "data": data, "recipe": name_of(recipe)}
    asked = {"epochs_asked": recipe.epochs, "steps_asked": recipe.steps, "validation_n": trained.validation[0]["n"]}
    return about | asked | {"targets": targets, "epochs": epochs, "test": trained.test, "seconds": trained.seconds}


def tables(results: Results) -> list[Table]:
    """Return the tables of targets and of epochs."""
    return [_target_table(results), _epoch_table(results)]


def _target_table(results: Results) -> Table:
    rows = []
    for target in results["targets"]:
        reached = target["seconds"] is not None
        when = (f"{target['seconds']:.1f}", str(target["epoch"])) if reached else (NOT_RUN, NOT_RUN)
        rows.append((f"{100 * target['accuracy']:.2f} %", *when))
    test = results["test"]
    title = (
        f"Time from a cold start to an accuracy on {results['validation_n']:,} validation images of {results['data']} "
        f"(recipe {results['recipe']}, n = 1 run); on the test images {100 * test['accuracy']:.2f} %, "
        f"{test['errors']} errors of n = {test['n']:,}, evaluated once, at the end"
    )
    return Table(title, ("validation accuracy", "seconds", "epoch"), rows)


def _epoch_table(results: Results) -> Table:
    rows = [
        (str(one["epoch"]), f"{one['took']:.1f}", f"{one['seconds']:.1f}", f"{100 * one['accuracy']:.2f} %")
        for one in results["epochs"]
    ]
    title = "Seconds of each epoch with its validation; the first includes the start of the process and compilation"
    return Table(title, ("epoch", "seconds", "since the start", "validation accuracy"), rows)


def plot(figure: Figure, results: Results) -> None:
    """Plot validation errors against seconds, with the targets."""
    plot_title(figure, f"From a cold start on {results['data']}, n = 1 run")
    axes, epochs = figure.subplots(), results["epochs"]
    errors = [100 * (1 - epoch["accuracy"]) for epoch in epochs]
    axes.plot([epoch["seconds"] for epoch in epochs], errors, "-", color=BLUE, marker="o", markersize=4, linewidth=1.4)
    axes.set_yscale("log")
    style: dict[str, Any] = {"va": "center", "fontsize": SMALL, "color": GREY}
    for target in results["targets"]:
        height = 100 * (1 - target["accuracy"])
        axes.axhline(height, color=GREY, linestyle=":", linewidth=1)
        axes.text(1.01, height, f"{100 * target['accuracy']:g} %", transform=axes.get_yaxis_transform(), **style)
    axes.set_xlim(left=0)
    axes.set_yticks(round_numbers(min(0.3, *errors), max(1, *errors)))
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds since the start of the process", fontsize=LABEL)
    axes.set_ylabel("validation errors in %", fontsize=LABEL)
    plain_axes(axes, "y")


BENCHMARK = Benchmark("epoch_to_accuracy", "Time to an accuracy", tables, plot)


def main() -> None:
    """Train, and show what was measured."""
    flags = parser(__doc__)
    flags.add_argument("--epochs", type=int, help="instead of the recipe's")
    asked = flags.parse_args()
    try:
        data, recipe = ("digits", Digits(epochs=3)) if asked.quick else ("mnist", Fast())
        if asked.epochs is not None:
            recipe = replace(recipe, epochs=asked.epochs, steps=None)
        load_data(data)  # missing files are reported or downloaded before the clock runs
    except InputError as error:
        flags.error(str(error))
    with tempfile.TemporaryDirectory() as place:
        results = results_of(learn_elsewhere(data, recipe, Path(place)), data, recipe)
    run(BENCHMARK, [results], asked)


if __name__ == "__main__":
    main()
