"""The commands `evaluate`, `predict` and `import-weights`, and the tables that they print."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from capsnet.cli.options import DATA, PATH, check_data_dir, data_dir_option, device_option, run_argument
from capsnet.errors import InputError, printable

if TYPE_CHECKING:
    from rich.table import Table

    from capsnet.analysis.detection.detector import Detector
    from capsnet.evaluation import Evaluation, FilePrediction


@click.command()
@run_argument
@click.option("--data", type=DATA, help="Other data with the same classes; their test images are used.")
@data_dir_option
@click.option(
    "--masked-by",
    type=click.Choice(["prediction", "label"]),
    default="prediction",
    help="Reconstruct from the capsule of the predicted class or of the true one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@device_option
def evaluate(
    run: Path, data: str | None, data_dir: Path | None, masked_by: Literal["prediction", "label"], as_json: bool
) -> None:
    """Evaluate a run's network on test images: errors, accuracy and confusions by class, reconstruction error."""
    from capsnet.evaluation import evaluate
    from capsnet.hardware import default_device, keep_freed_memory
    from capsnet.runs import load_run

    keep_freed_memory()
    loaded = load_run(run)
    check_data_dir(data_dir, data or loaded.data)
    if masked_by == "label" and (loaded.recipe.network != "capsnet" or loaded.recipe.decoder == "none"):
        raise InputError(f"--masked-by label has no effect: the network of {run} has no decoder")
    tested = loaded.load_data(data, data_dir)
    result = evaluate(loaded.load_network().to(default_device()), tested.test, masked_by=masked_by)
    if as_json:
        print(json.dumps({"data": tested.name, "accuracy": result.accuracy} | asdict(result)))
    else:
        print_evaluation(result, tested.classes)


@click.command()
@run_argument
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
@click.option("--invert", is_flag=True, help="Swap light and dark before the prediction.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per image.")
@device_option
def predict(run: Path, images: tuple[Path, ...], invert: bool, as_json: bool) -> None:
    """Classify image files: predicted class, length of each capsule and reconstruction error.

    IMAGE is an image of any format and size, or a folder of images. Images are converted to the network's colours and
    resized to its shape. The networks of mnist, fashion_mnist and digits expect light strokes on black: for dark
    strokes on white, use --invert.
    """
    from capsnet.analysis.detection.detector import load_detector
    from capsnet.evaluation import predict
    from capsnet.hardware import default_device
    from capsnet.runs import load_run

    loaded = load_run(run)
    detector, network = load_detector(loaded), loaded.load_network().to(default_device())
    threshold = None if detector is None else detector.threshold
    predictions = predict(network, loaded.classes, images, threshold=threshold, invert=invert)
    if as_json:
        print(json.dumps([asdict(prediction) for prediction in predictions]))
    else:
        print_predictions(predictions, detector, inverted=invert)


@click.command()
@click.argument("source", type=PATH, metavar="FILE")
@click.argument("folder", type=PATH)
@click.option("--iterations", default=3, help="Routing iterations, as the other implementation counts them.")
def import_weights(source: Path, folder: Path, iterations: int) -> None:
    """Convert another implementation's weights to a network: see docs/coming-from.md.

    FILE is a PyTorch state dict (.pt or .pth) or the arrays of a Keras model (.npz). FOLDER is created;
    CapsNet.from_pretrained reads it.
    """
    from capsnet.weights import import_weights

    print(import_weights(source, folder, iterations=iterations))


def print_evaluation(result: "Evaluation", classes: tuple[str, ...]) -> None:
    """Print a table of the classes, and a line for all of them."""
    from rich.table import Table

    table = Table("class", "n", "right", "accuracy", "mistaken for")
    for k, (name, row) in enumerate(zip(classes, result.confusion, strict=True)):
        wrong = sorted(((count, c) for c, count in enumerate(row) if count and c != k), reverse=True)
        mistaken = ", ".join(f"{printable(classes[c])} ({count})" for count, c in wrong[:3])
        share = result.per_class[k]
        accuracy = "-" if share is None else f"{share:.2%}"
        table.add_row(printable(name), f"{sum(row):,}", f"{row[k]:,}", accuracy, mistaken)
    print_table(table)
    reconstruction = ""
    if result.reconstruction is not None:
        reconstruction = f"; reconstruction error {result.reconstruction:.2f} (squared, summed over pixels)"
        reconstruction += f", from the {result.masked_by}'s capsule"
    print(f"test accuracy {result.accuracy:.2%}: {result.errors} errors of n = {result.n:,}{reconstruction}")


def print_predictions(predictions: list["FilePrediction"], detector: "Detector | None", *, inverted: bool) -> None:
    """Print a row per image, the detector's threshold of the reconstruction error, and whether images were inverted.

    Nothing is said of a threshold for networks without a decoder.
    """
    from rich.table import Table

    table = Table("image", "class", "length", "others", "reconstruction error", "suspicious")
    for p in predictions:
        others = sorted(((length, name) for name, length in p.lengths.items() if name != p.predicted), reverse=True)
        rest = ", ".join(f"{printable(name)} {length:.2f}" for length, name in others[:3])
        error = "-" if p.reconstruction_error is None else f"{p.reconstruction_error:.2f}"
        flag = {None: "-", False: "no", True: "yes"}[p.suspicious]
        table.add_row(printable(p.image), printable(p.predicted), f"{p.lengths[p.predicted]:.2f}", rest, error, flag)
    print_table(table)
    if detector is not None:
        print(
            f"suspicious: the reconstruction error is above {detector.threshold:.2f}, as for "
            f"{100 - detector.percentile:g} % of the validation images; such an image may be of no known class, or "
            "attacked"
        )
    elif predictions[0].reconstruction_error is not None:
        print("there is no detector of suspicious images for these weights: `capsnet detection RUN` makes one")
    print("light and dark were swapped" if inverted else "images were read as they are (--invert swaps light and dark)")


def print_table(table: "Table") -> None:
    """Print a table without cutting cells: on a terminal they are wrapped, elsewhere rows have any length."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    width = None if sys.stdout.isatty() else 2**20
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
