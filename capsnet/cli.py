"""The command line: a verb is a dataclass, its fields are the flags, and it imports what it needs when called."""

import argparse
import contextlib
import io
import json
import logging
import re
import sys
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from capsnet.errors import InputError
from capsnet.recipes import Fast, Recipe, find_recipe

if TYPE_CHECKING:
    from capsnet.evaluate import Evaluation
    from capsnet.runs import Run

ABOUT = "Capsule networks: train, evaluate, predict, look."
RunFolder = Annotated[Positional[Path], arg(metavar="RUN")]
DataDir = Annotated[Path | None, arg(metavar="FOLDER")]


@dataclass(frozen=True)
class Train:
    """Train a network into a run folder, judge it on the test images and draw its report."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """mnist, fashion_mnist, digits, a folder with one sub-folder of images per class, or an .npz file."""
    recipe: str = "fast"
    """Where the settings below start from: paper, official, fast, digits, chainer, tensorflow, pytorch, notebook."""
    run: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """The run folder; runs/DATA-RECIPE by default."""
    data_dir: DataDir = None
    """Where mnist and fashion_mnist lie or are downloaded to; else $CAPSNET_DATA, else the user's cache."""
    resume: bool = False
    """Go on from the run's checkpoint, by its own recipe."""
    overwrite: bool = False
    """Replace a run folder that exists."""
    settings: OmitArgPrefixes[Recipe] = field(default_factory=Fast)

    def __call__(self) -> None:
        """Train, evaluate and report."""
        from capsnet.data import load_data
        from capsnet.evaluate import evaluate
        from capsnet.runs import load_run, start_run
        from capsnet.train import train

        settings, folder = self.settings, self.run or run_folder(self.data, self.recipe)
        data = load_data(
            self.data,
            data_dir=self.data_dir,
            validation=settings.validation,
            seed=settings.seed,
            image_size=settings.image_size,
        )
        if self.resume:
            run = load_run(folder).extended(self.data, settings)
        else:
            run = start_run(folder, settings, self.recipe, data, overwrite=self.overwrite)
        print(f"{folder}: recipe {self.recipe}, {len(data.train):,} training images of {data.image_shape}", flush=True)
        try:
            network = train(settings, data, run, resume=self.resume)
        except KeyboardInterrupt:
            print(f"\nstopped; go on with: capsnet train {self.data} --run {folder} --resume", file=sys.stderr)
            raise
        result = evaluate(network, data.test)
        print_evaluation(result, data.classes)
        report(run, network, data, result)


@dataclass(frozen=True)
class Evaluate:
    """Judge a run's network on test images: errors, accuracy per class, confusions, drawing error."""

    run: RunFolder
    """A run folder."""
    data: str | None = None
    """Other data with the same classes: a name, a folder or an .npz file; its test images count."""
    data_dir: DataDir = None
    """Where mnist and fashion_mnist lie."""
    masked_by: Literal["prediction", "label"] = "prediction"
    """Whose capsule is drawn: the network's answer's, or the true label's."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> None:
        """Evaluate and print."""
        from capsnet.evaluate import evaluate
        from capsnet.hardware import default_device
        from capsnet.runs import load_run

        run = load_run(self.run)
        data = run.load_data(self.data, self.data_dir)
        result = evaluate(run.load_network().to(default_device()), data.test, masked_by=self.masked_by)
        if self.json:
            print(json.dumps({"data": data.name, "accuracy": result.accuracy} | asdict(result)))
        else:
            print_evaluation(result, data.classes)


@dataclass(frozen=True)
class Predict:
    """Classify image files: class, length of each capsule and error of the drawing.

    An image is converted to the network's colours and resized to its shape. The networks of mnist, fashion_mnist and
    digits know light strokes on black: for dark ones on white say --invert.
    """

    run: RunFolder
    """A run folder."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE...")]
    """Image files of any format and size."""
    invert: bool = False
    """Swap light and dark first."""
    json: bool = False
    """Print JSON, an object an image."""

    def __call__(self) -> None:
        """Classify and print."""
        from capsnet.predict import predict
        from capsnet.runs import load_run

        if not self.images:
            raise InputError("name at least one image: capsnet predict RUN image.png ...")
        predictions = predict(load_run(self.run), self.images, invert=self.invert)
        if self.json:
            print(json.dumps([asdict(prediction) for prediction in predictions]))
        else:
            print_predictions(predictions, self.invert)


@dataclass(frozen=True)
class Figures:
    """Draw a run's pictures and its report anew."""

    run: RunFolder
    """A run folder."""
    data_dir: DataDir = None
    """Where mnist and fashion_mnist lie."""
    errors_only: bool = False
    """Only the drawings of misclassified test images."""
    count: int = 20
    """How many images that picture shows."""

    def __call__(self) -> None:
        """Draw, and say where."""
        from capsnet.evaluate import evaluate
        from capsnet.figures.drawings import draw_drawings
        from capsnet.hardware import default_device
        from capsnet.models import ConvBaseline
        from capsnet.runs import load_run

        run = load_run(self.run)
        data, network = run.load_data(data_dir=self.data_dir), run.load_network().to(default_device())
        if self.errors_only and isinstance(network, ConvBaseline):
            raise InputError(f"{self.run} is a baseline, which does not draw: leave --errors-only out")
        if self.errors_only:
            path = run.folder / "figures" / "errors.png"
            print(draw_drawings(network, data.test, data.classes, path, count=self.count, errors_only=True))
        else:
            report(run, network, data, evaluate(network, data.test))


VERBS: dict[str, Any] = {"train": Train, "evaluate": Evaluate, "predict": Predict, "figures": Figures}


def run_folder(data: str, recipe: str) -> Path:
    """Where a run goes that is given no folder: runs/mnist-fast."""
    return Path("runs") / f"{Path(data).stem}-{recipe}"


def report(run: "Run", network: Any, data: Any, result: "Evaluation") -> None:
    """Write a run's results.json and report.html, and say where they lie."""
    from capsnet.figures.report import write_report

    run.write_results(network, data, result)
    print(f"report: {write_report(run, network, data, result)}")


def print_evaluation(result: "Evaluation", classes: tuple[str, ...]) -> None:
    """Print a table of classes and a line for all of them."""
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "n", "right", "accuracy", "taken for")
    for k, (name, row) in enumerate(zip(classes, result.confusion, strict=True)):
        wrong = sorted(((count, c) for c, count in enumerate(row) if count and c != k), reverse=True)
        mistaken = ", ".join(f"{classes[c]} ({count})" for count, c in wrong[:3])
        share = result.per_class[k]
        table.add_row(name, f"{sum(row):,}", f"{row[k]:,}", "-" if share is None else f"{share:.2%}", mistaken)
    Console().print(table)
    drawing = ""
    if result.reconstruction is not None:
        drawing = f"; drawing of the {result.masked_by}'s capsule off by {result.reconstruction:.2f} (squared, summed)"
    print(f"test accuracy {result.accuracy:.2%}: {result.errors} errors of n = {result.n:,}{drawing}")


def print_predictions(predictions: list[Any], inverted: bool) -> None:
    """Print a row an image, and which polarity was read."""
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "class", "length", "others", "drawing error")
    for p in predictions:
        others = sorted(((length, name) for name, length in p.lengths.items() if name != p.answer), reverse=True)
        rest = ", ".join(f"{name} {length:.2f}" for length, name in others[:3])
        error = "-" if p.drawing_error is None else f"{p.drawing_error:.2f}"
        table.add_row(p.image, p.answer, f"{p.lengths[p.answer]:.2f}", rest, error)
    Console().print(table)
    print("read with light and dark swapped" if inverted else "read as they are (--invert swaps light and dark)")


def settings_of(arguments: list[str]) -> tuple[str, Recipe]:
    """The recipe that a command line of `train` starts from, by name, before its flags change it."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--recipe", default="digits" if "digits" in arguments else "fast")
    peek.add_argument("--run", type=Path)
    peek.add_argument("--resume", action="store_true")
    known, rest = peek.parse_known_args(arguments)
    if known.resume:
        from capsnet.runs import load_run

        run = load_run(known.run or run_folder(rest[0] if rest else "", known.recipe))
        return run.recipe_name, run.recipe
    return known.recipe, find_recipe(known.recipe)()


def parse(arguments: list[str]) -> Any:
    """The verb that a command line asks for, with its flags.

    Raises InputError, in one line, for what cannot be understood.
    """
    train = subcommand("train")
    if arguments[:1] == ["train"]:
        name, settings = settings_of(arguments[1:])
        train = subcommand("train", default=Train(data=tyro.MISSING, recipe=name, settings=settings))
    others = (Annotated[VERBS[name], subcommand(name)] for name in VERBS if name != "train")
    verbs: Any = reduce(or_, others, Annotated[Train, train])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(verbs, prog="capsnet", args=arguments, description=ABOUT)
    except SystemExit as stop:
        if stop.code != 2:
            raise
    raise InputError(one_line(said.getvalue()))


def one_line(box: str) -> str:
    """What tyro prints in a box with a title, as one line without the title."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+", " ", line) for line in box.splitlines()[1:]]
    words = " ".join(" ".join(lines).split())
    return re.sub(r"^Error parsing __\S+: ", "", words)  # a dataclass's own words need no such preface


def main() -> None:
    """Run a command line; what a user can put right becomes one line on stderr and exit status 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("capsnet").setLevel(logging.INFO)
    try:
        parse(sys.argv[1:])()
    except InputError as error:
        print(f"capsnet: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
