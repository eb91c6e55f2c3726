"""Run folders: everything that belongs to one training run, from its recipe to its report.

recipe.json       the recipe, the data set and its classes
environment.json  hardware, versions and the commit
log.jsonl         every measurement, a line each; beside it TensorBoard's event files
last.ckpt         the state of training, to resume from
best/             the network with the fewest validation errors: config.json and model.safetensors
detector.json     above which error that network's drawing is suspicious
results.json      what it did on the test images
report.html       the numbers, the recipe and the pictures, in one file
"""

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from capsnet.baselines import ConvBaseline
from capsnet.build import build_network
from capsnet.data import Data, load_data
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.files import whole
from capsnet.models import CapsNet
from capsnet.recipe import Recipe
from capsnet.recipes import name_of, recorded_recipe


@dataclass(frozen=True)
class Run:
    """A run folder and what it was started with."""

    folder: Path
    recipe: Recipe
    data: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def recipe_name(self) -> str:
        """The name of the recipe that the run's own started from."""
        return name_of(self.recipe)

    @property
    def checkpoint(self) -> Path:
        """The state of training after the last epoch, or where it was interrupted."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The folder of the best network's weights."""
        return self.folder / "best"

    @property
    def log(self) -> Path:
        """One JSON object a line: see `capsnet.logs`."""
        return self.folder / "log.jsonl"

    @property
    def seconds(self) -> float:
        """Time spent on the run up to the last line of its log; 0 without one."""
        return max((record["seconds"] for kind in ("train", "validation") for record in self.records(kind)), default=0)

    def load_network(self) -> CapsNet | ConvBaseline:
        """Load the best network, on the CPU and in evaluation mode.

        Raises InputError where the run has none yet, or weights that are not this network's.
        """
        if not (self.best / "model.safetensors").is_file():
            raise InputError(f"{self.folder} has no trained network yet: finish it with `capsnet train --resume`")
        kind = CapsNet if self.recipe.network == "capsnet" else ConvBaseline
        try:
            with redirect_stdout(io.StringIO()):  # the mixin prints where it reads from
                return kind.from_pretrained(self.best).eval()
        except (RuntimeError, SafetensorError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.best} does not hold the weights of its config.json: {reason}") from error

    def load_data(self, name: str | None = None, data_dir: str | Path | None = None) -> Data:
        """Load the run's data set as it was split for training, or another one with as many classes.

        Raises InputError where the data cannot be had, or the number of its classes or the shape of its images is not
        the network's.
        """
        recipe = self.recipe
        if name in (None, self.data):
            validation, size = recipe.validation, recipe.image_size
            return load_data(self.data, data_dir=data_dir, validation=validation, seed=recipe.seed, image_size=size)
        data = load_data(name, data_dir=data_dir, image_size=self.image_shape[1:])
        if len(data.classes) != len(self.classes) or data.image_shape != self.image_shape:
            raise InputError(
                f"{name} has {len(data.classes)} classes and images {data.image_shape}, but the network of "
                f"{self.folder} knows {len(self.classes)} classes and images {self.image_shape} (c, h, w)"
            )
        return data

    def extended(self, data: str, recipe: Recipe) -> "Run":
        """The run with a recipe that may train for longer, to go on with.

        Raises InputError where the data or anything else in the recipe is another.
        """
        same = replace(recipe, epochs=self.recipe.epochs, steps=self.recipe.steps)
        changed = [f.name for f in fields(same) if getattr(same, f.name) != getattr(self.recipe, f.name)]
        if data != self.data or changed:
            what = ", ".join(changed) or f"data {data}"
            raise InputError(
                f"{self.folder} was trained on {self.data} otherwise ({what}): only --epochs and --steps may change"
            )
        run = replace(self, recipe=recipe)
        run.write_json("recipe.json", run.about())
        return run

    def about(self) -> dict[str, Any]:
        """What recipe.json holds."""
        about = {"recipe": self.recipe_name, "data": self.data, "classes": self.classes}
        return about | {"image_shape": self.image_shape, "fields": asdict(self.recipe)}

    def write_results(self, network: CapsNet | ConvBaseline, data: Data, result: Evaluation) -> Path:
        """Write results.json: the evaluation on the test images, and everything that it stands on."""
        environment = self.folder / "environment.json"
        measured = {"accuracy": result.accuracy, "per_class": result.per_class} | asdict(result)
        about = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "training_images": len(data.train),
            "validation_images": len(data.validation),
            "training_seconds": self.seconds,
            "validation": self.records("validation"),
            "environment": json.loads(environment.read_text()) if environment.is_file() else {},
        }
        return self.write_json("results.json", {"test": measured} | about | self.about())

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The lines of log.jsonl of one kind, "train" or "validation", in order, without one that was cut short."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.is_file() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if record["kind"] == kind]

    def write_json(self, name: str, content: dict[str, Any]) -> Path:
        """Write one of the folder's JSON files whole or not at all."""
        path = self.folder / name
        with whole(path) as part:
            part.write_text(json.dumps(content, indent=2) + "\n")
        return path


def start_run(folder: str | Path, recipe: Recipe, data: Data, *, overwrite: bool = False) -> Run:
    """Make a new run folder.

    Raises InputError where the recipe's network cannot be built for these data, and where the folder cannot be made or
    exists, unless it is a run and `overwrite` says that it may go.
    """
    folder = Path(folder)
    recipe.check_effects()
    with torch.device("meta"):
        build_network(recipe, data.image_shape, len(data.classes))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not (folder / "recipe.json").is_file():
            raise InputError(f"{folder} exists and is no run folder: name another one with --run")
        if not overwrite:
            raise InputError(f"{folder} exists: go on with it by --resume, replace it by --overwrite, or name another")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}; name another folder with --run") from error
    run = Run(folder, recipe, data.name, data.classes, data.image_shape)
    run.write_json("recipe.json", run.about())
    return run


def load_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises InputError where it is none, or its recipe cannot be read.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "recipe.json").read_text())
        recipe = recorded_recipe(about["recipe"], about["fields"])
        classes, image_shape = tuple(about["classes"]), tuple(about["image_shape"])
        return Run(folder, recipe, about["data"], classes, image_shape)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is no run folder: it has no recipe.json (`capsnet train` makes one)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'recipe.json'} cannot be read: {error}") from error


def save_checkpoint(run: Run, state: dict[str, Any]) -> None:
    """Replace the run's checkpoint, whole or not at all."""
    with whole(run.checkpoint) as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # how torch says, without these words, that the disk is full
            left = shutil.disk_usage(run.folder).free >> 20
            raise OSError(f"the disk is full or the file too large ({left} MiB left)") from error


def load_checkpoint(run: Run) -> dict[str, Any]:
    """The state of training that was saved last.

    Raises InputError where there is none or it is damaged.
    """
    if not run.checkpoint.is_file():
        raise InputError(f"{run.folder} has no checkpoint to resume from: start it anew with --overwrite")
    try:
        return torch.load(run.checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:
        raise InputError(
            f"{run.checkpoint} is damaged ({type(error).__name__}): start anew with --overwrite"
        ) from error


def save_network(run: Run, network: CapsNet | ConvBaseline) -> None:
    """Replace the run's best network, whole or not at all."""
    with whole(run.best) as part:
        network.save_pretrained(part)
