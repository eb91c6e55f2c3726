"""Run folders: all files of one training run.

recipe.json       the recipe, the data set with a checksum of each part, and its classes
environment.json  hardware, versions, commit and command of each part of the training, from a start to a stop
log.jsonl         one measurement per line; next to it TensorBoard's event files
checkpoints/      the last two checkpoints, to resume from
best/             the network with the fewest validation errors: config.json and model.safetensors
detector.json     the reconstruction error above which an image is suspicious to that network
results.json      the evaluation of that network on the test images
figures/          pictures of that network, with their numbers
report.html       the numbers, the recipe and the pictures, in one file
torchrun.txt      the name of the torchrun that started the run: processes that it restarts resume the run
run.lock          locked by the process that trains
"""

import hashlib
import logging
import shlex
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, with_config

from capsnet.baselines import ConvBaseline
from capsnet.build import build_network
from capsnet.checks import STRICT, parse_json, read_json
from capsnet.data import Data, Fingerprint, ImageSet, PartFingerprint, load_data
from capsnet.data.sources import NAMES
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.files import atomic_files, is_leftover, locked, make_folder, remove, write_json
from capsnet.models import CapsNet
from capsnet.recipes import Recipe, name_of, recorded_recipe

log = logging.getLogger(__name__)


@with_config(STRICT)
@dataclass(frozen=True)
class RunFile:
    """Content of recipe.json."""

    recipe: str
    data: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    image_shape: tuple[
        Annotated[int, Field(ge=1)],
        Annotated[int, Field(ge=1)],
        Annotated[int, Field(ge=1)],
    ]
    fingerprint: Fingerprint
    fields: dict[str, JsonValue]

    def __post_init__(self) -> None:
        if repeated := next((name for name in self.classes if self.classes.count(name) > 1), None):
            raise InputError(f"classes: {repeated!r} occurs more than once")


@with_config(STRICT)
@dataclass(frozen=True)
class TrainingPart:
    """Hardware, versions and command of a training, from its start or a resumption to the next."""

    from_step: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)]
    """Steps of the whole training, as planned at that time."""
    device: str
    cores: int
    platform: str
    python: str
    torch: str
    capsnet: str
    commit: str | None
    command: str
    precision: str
    processes: Annotated[int, Field(ge=1)] = 1
    """Number of processes, each with a device of its own."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Number of machines."""


@with_config(STRICT)
@dataclass(frozen=True)
class EnvironmentFile:
    """Content of environment.json."""

    parts: tuple[TrainingPart, ...]


class Record(BaseModel):
    """A line of log.jsonl: the time of a measurement, and the measured values by name."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, int | float] = Field(init=False)
    kind: Literal["train", "validation"]
    step: Annotated[int, Field(ge=0)]
    epoch: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Run:
    """A run folder, and the recipe and data that it was started with."""

    folder: Path
    recipe: Recipe
    data: str
    """The name of a data set, or the absolute path of the user's own."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: Fingerprint
    """Identifies the run's data, part by part."""

    @property
    def recipe_name(self) -> str:
        """The name of the recipe that the run started from."""
        return name_of(self.recipe)

    @property
    def best(self) -> Path:
        """The folder of the best network."""
        return self.folder / "best"

    @property
    def log(self) -> Path:
        """The log: one JSON object per line, see `capsnet.logs`."""
        return self.folder / "log.jsonl"

    @property
    def seconds(self) -> float:
        """Training time up to the last line of the log; 0 without one."""
        return max((record["seconds"] for record in self.records()), default=0)

    @property
    def training_parts(self) -> tuple[TrainingPart, ...]:
        """Hardware, versions and command of each part of the training, in order.

        Raises InputError for a damaged environment.json.
        """
        path = self.folder / "environment.json"
        try:
            return read_json(path, EnvironmentFile).parts if path.exists() else ()
        except InputError as error:
            raise InputError(f"{error}; remove it to continue without it") from error

    def weights_checksum(self) -> str | None:
        """Return the SHA-256 of the best network's weights file, or None without one."""
        path = self.best / "model.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def resume_command(self, data_dir: Path | None = None) -> str:
        """Return the command that resumes the training."""
        words = ["capsnet", "train", self.data, "--run", str(self.folder), "--resume"]
        return shlex.join(words + (["--data-dir", str(data_dir)] if data_dir else []))

    def load_network(self) -> CapsNet | ConvBaseline:
        """Load the best network, on the CPU and in evaluation mode.

        Raises InputError if the run has none yet, or if its weights are those of another network.
        """
        if not (self.best / "model.safetensors").exists():
            raise InputError(f"{self.folder} has no trained network yet: train it with `{self.resume_command()}`")
        network_class = CapsNet if self.recipe.network == "capsnet" else ConvBaseline
        network = network_class.from_pretrained(self.best)
        if (network.image_shape, network.classes) != (self.image_shape, len(self.classes)):
            raise InputError(
                f"{self.best} is a network for {network.classes} classes and images {network.image_shape}, but "
                f"{self.folder} has {len(self.classes)} and {self.image_shape}"
            )
        return network

    def load_data(self, name: str | None = None, data_dir: str | Path | None = None) -> Data:
        """Load the run's data set, split as in training, or another data set whose classes the network has.

        The classes of another data set are matched by name. Raises InputError if the data cannot be loaded, if
        the run's data have changed since training, and for a class or an image shape that the network does not have.
        """
        recipe = self.recipe
        if name is None or _located(name) == self.data:
            if self.data not in NAMES and not Path(self.data).exists():
                raise InputError(
                    f"{self.data}, which {self.folder} was trained on, does not exist: if it has moved, "
                    f"`capsnet train NEW_PLACE --run {self.folder} --resume` records its new place"
                )
            validation, size = recipe.validation, recipe.image_size
            data = load_data(self.data, data_dir=data_dir, validation=validation, seed=recipe.seed, image_size=size)
            self.check_data(data)
            return data
        data = load_data(name, data_dir=data_dir, image_size=self.image_shape[1:])
        if data.image_shape != self.image_shape:
            raise InputError(f"{name} has images {data.image_shape} (c, h, w), {self.folder} takes {self.image_shape}")
        return self._relabelled(data)

    def check_data(self, data: Data, parts: tuple[str, ...] = ("train", "validation", "test")) -> None:
        """Raise InputError if parts of these data are not those that the run was started with."""
        changed = []
        for part in parts:
            kept: PartFingerprint = getattr(self.fingerprint, part)
            found = data.parts[part].fingerprint()
            if found.n != kept.n:
                changed.append(f"{part} had {kept.n:,} images and has {found.n:,}")
            elif found != kept:
                changed.append(f"{part} has other images or labels ({kept.n:,})")
        if data.classes != self.classes:
            changed.append(f"classes were {', '.join(self.classes)} and are {', '.join(data.classes)}")
        if changed:
            raise InputError(
                f"{data.name} is not what {self.folder} was trained on: {'; '.join(changed)}: "
                "bring back the data of the run, or start a new one"
            )

    def extended(self, data: Data, recipe: Recipe) -> "Run":
        """Return the run to resume, with a recipe that may be longer, and with the present place of its data.

        Nothing is written: `train` writes it once it has the lock. Raises InputError if the data differ or the
        recipe differs in more than its length, and for a longer one-cycle schedule, which is planned over all steps.
        """
        self.check_data(data)
        run = replace(self, recipe=recipe, data=_located(data.name))
        same = replace(recipe, epochs=self.recipe.epochs, steps=self.recipe.steps)
        changed = [f.name for f in fields(same) if getattr(same, f.name) != getattr(self.recipe, f.name)]
        if changed:
            raise InputError(
                f"{self.folder} was trained with other options ({', '.join(changed)}): "
                "only --epochs and --steps may change"
            )
        if recipe.schedule == "one-cycle" and recipe != self.recipe:
            raise InputError(
                f"{self.folder} was planned as one cycle of the learning rate over all its steps, so its length cannot "
                "change: leave out --epochs and --steps, or start a new run"
            )
        return run

    def is_like(self, other: "Run") -> bool:
        """Whether both train the same network on the same data, whatever the number of steps and the recipe's class."""
        names = [f.name for f in fields(Recipe) if f.name not in ("epochs", "steps")]
        settings = [[getattr(run.recipe, name) for name in names] for run in (self, other)]
        return settings[0] == settings[1] and self.fingerprint == other.fingerprint

    def description(self) -> dict[str, Any]:
        """Return the content of recipe.json."""
        return {
            "recipe": self.recipe_name,
            "data": self.data,
            "classes": self.classes,
            "image_shape": self.image_shape,
            "fingerprint": asdict(self.fingerprint),
            "fields": asdict(self.recipe),
        }

    def write_results(self, network: CapsNet | ConvBaseline, data: Data, result: Evaluation) -> Path:
        """Write results.json: the evaluation on the test images, and how the network was trained."""
        parts = [asdict(part) for part in self.training_parts]
        measured = {"accuracy": result.accuracy, "per_class": result.per_class} | asdict(result)
        about = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "training_images": len(data.train),
            "validation_images": len(data.validation),
            "training_seconds": self.seconds,
            "validation": self.records("validation"),
            "environment": parts[-1] if parts else {},
            "training_parts": parts,
        }
        return write_json(self.folder / "results.json", {"test": measured} | about | self.description())

    def records(self, kind: Literal["train", "validation"] | None = None) -> list[dict[str, Any]]:
        """Return the records of log.jsonl, or those of one kind, in order.

        An incomplete last line is left out. Damaged lines are left out too, and a warning has their number. In old logs
        the learning rate is called "rate".
        """
        lines = self.log.read_bytes().split(b"\n")[:-1] if self.log.is_file() else []
        records, damaged = [], 0
        for line in lines:
            try:
                record = parse_json(line, Record, str(self.log)).model_dump()
                records.append({"lr" if name == "rate" else name: value for name, value in record.items()})
            except InputError:
                damaged += 1
        if damaged:
            log.warning("%s: %d damaged lines are left out", self.log, damaged)
        return [record for record in records if kind in (None, record["kind"])]

    def _relabelled(self, data: Data) -> Data:
        """Return other data with the network's labels, matched by class name; InputError for an unknown class."""
        if unknown := [name for name in data.classes if name not in self.classes]:
            raise InputError(
                f"{data.name} has classes that {self.folder} does not have: {', '.join(unknown[:5])}"
                f"{', ...' if len(unknown) > 5 else ''}; it has {', '.join(self.classes)}"
            )
        label = torch.tensor([self.classes.index(name) for name in data.classes])
        parts = (ImageSet(part.images, label[part.labels]) for part in data.parts.values())
        return Data(data.name, self.classes, *parts)


def start_run(folder: str | Path, recipe: Recipe, data: Data, *, overwrite: bool = False) -> Run:
    """Make a new run folder.

    Raises InputError if the recipe's network cannot be built for these data, if another process trains in the
    folder, and if the folder cannot be made or exists. With `overwrite`, an existing run is replaced.
    """
    folder = Path(folder)
    recipe.check_effects()
    with torch.device("meta"):
        build_network(recipe, data.image_shape, len(data.classes))
    _check_free(folder, overwrite)
    try:
        make_folder(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder} cannot be made: {reason}; choose another folder with --run") from error
    run = Run(folder, recipe, _located(data.name), data.classes, data.image_shape, data.fingerprint())
    with locked(folder):
        _check_free(folder, overwrite)  # again, as another process may have been faster
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "recipe.json"):  # it makes a run: last
            if path.name != "run.lock":
                remove(path)
        write_json(folder / "recipe.json", run.description())
    return run


def load_run(folder: str | Path) -> Run:
    """Open a run folder.

    Raises InputError if recipe.json is missing or cannot be used.
    """
    folder = Path(folder)
    path = folder / "recipe.json"
    if not path.exists():
        raise InputError(f"{folder} is not a run folder: it has no recipe.json (`capsnet train` makes one)")
    kept = read_json(path, RunFile)
    try:
        recipe = recorded_recipe(kept.recipe, kept.fields)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return Run(folder, recipe, kept.data, kept.classes, kept.image_shape, kept.fingerprint)


def save_network(run: Run, network: CapsNet | ConvBaseline) -> None:
    """Replace the run's best network; its weights are one file, so that at any time there is the old or the new one."""
    with atomic_files(run.best, last="model.safetensors") as folder:
        network.save_pretrained(folder)


def _located(data: str) -> str:
    """The name of a data set unchanged, or the absolute path of the user's own data."""
    return data if data in NAMES else str(Path(data).expanduser().resolve())


def _check_free(folder: Path, overwrite: bool) -> None:
    """Raise InputError for a folder that holds something, unless it is a run and may be overwritten."""
    try:
        held = [path.name for path in folder.iterdir()] if folder.is_dir() else [""] * folder.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if all(name == "run.lock" or is_leftover(name) for name in held):  # left by a process that was killed at its start
        return
    if "recipe.json" not in held:
        raise InputError(f"{folder} exists and is not a run folder: choose another one with --run")
    if not overwrite:
        raise InputError(f"{folder} exists: continue it with --resume, replace it with --overwrite, or choose another")
