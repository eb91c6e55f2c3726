"""The verbs that draw and measure what a run's network does: pictures as PNG, their numbers beside them as JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from capsnet.errors import InputError
from capsnet.verbs.run import DataDir, RunFolder, check_data_dir

if TYPE_CHECKING:
    from capsnet.data import Data

Runs = Annotated[tuple[Path, ...], arg(metavar="RUN")]


@dataclass(frozen=True)
class Look:
    """What every look at a run takes."""

    run: RunFolder
    """A run folder."""
    data_dir: DataDir = None
    """Where mnist and fashion_mnist lie."""

    @property
    def pictures(self) -> Path:
        """Where the pictures go."""
        return self.run / "figures"

    def load(self) -> tuple[Any, "Data"]:
        """Load the run's network and its data."""
        from capsnet.hardware import default_device, keep_freed_memory
        from capsnet.runs import load_run

        keep_freed_memory()
        run = load_run(self.run)
        check_data_dir(self.data_dir, run.data, getattr(self, "other", None))
        return run.load_network().to(default_device()), run.load_data(data_dir=self.data_dir)

    def capsules(self) -> tuple[Any, "Data"]:
        """Load a network of capsules and its data; InputError for a baseline, which has none."""
        from capsnet.models import CapsNet

        network, data = self.load()
        if not isinstance(network, CapsNet):
            raise InputError(f"{self.run} is a baseline without capsules: name the run of a CapsNet")
        return network, data


@dataclass(frozen=True)
class Compare(Look):
    """What a comparison of runs takes."""

    beside: Runs = ()
    """Runs to compare with, trained on the same data: baselines, say."""

    def networks(self, network: Any, data: "Data") -> dict[str, Any]:
        """The run's network and those beside it, by the names of their folders."""
        return {self.run.resolve().name: network} | load_beside(self.run, self.beside, data)


def load_beside(beside: Path, folders: tuple[Path, ...], data: "Data") -> dict[str, Any]:
    """Load the networks of runs to compare a run with; InputError for other data, or for a name that is taken."""
    from capsnet.hardware import default_device
    from capsnet.runs import load_run

    networks: dict[str, Any] = {}
    for folder in folders:
        run = load_run(folder)
        if (run.data, run.classes, run.image_shape) != (data.name, data.classes, data.image_shape):
            raise InputError(f"{folder} was trained on {run.data}: only runs on {data.name} can stand beside this one")
        if folder.resolve().name in (beside.resolve().name, *networks):
            raise InputError(f"two runs are named {folder.resolve().name}: a picture tells them apart by folder name")
        networks[folder.resolve().name] = run.load_network().to(default_device())
    return networks


def load_other(name: str | None, data_dir: Path | None) -> "Data | None":
    """Load data that a network should not know, if any is named."""
    from capsnet.data import load_data

    return None if name is None else load_data(name, data_dir=data_dir)


@dataclass(frozen=True)
class Figures(Compare):
    """Judge a run's network anew and draw its pictures and its report."""

    only: tuple[str, ...] = ()
    """Only these pictures: drawings, errors, masks, tweaks, couplings, targeted, detection, affine, lengths,
    confusion, curves, or attacks, which takes minutes and is drawn only when named."""
    other: str | None = None
    """Other data for the detection, of images of the same shape: fashion_mnist, say."""

    def __call__(self) -> None:
        """Draw, and say where."""
        from capsnet.analysis.report import ALL, make_report
        from capsnet.analysis.subject import Context
        from capsnet.runs import load_run

        network, data = self.load()
        beside, other = load_beside(self.run, self.beside, data), load_other(self.other, self.data_dir)
        context = Context(load_run(self.run), network, data, beside, other)
        path = make_report(context, self.only or ALL)
        context.run.write_results(network, data, context.predictions.evaluation())
        print(f"report: {path}")


@dataclass(frozen=True)
class Drawings(Look):
    """Draw test images and the network's drawings of them."""

    errors_only: bool = False
    """Only misclassified images, each with the drawings of the predicted and of the true class."""
    count: int = 20
    """How many images."""
    columns: int = 10
    """How many images stand side by side."""

    def __call__(self) -> None:
        """Draw, and say where."""
        from capsnet.analysis.reconstructions import plot_reconstructions
        from capsnet.evaluation import predict_set

        network, data = self.capsules()
        path = self.pictures / ("errors.png" if self.errors_only else "reconstructions.png")
        options: dict[str, Any] = {"count": self.count, "columns": self.columns}
        if self.errors_only:
            options["predictions"] = predict_set(network, data.test).predictions
        print(plot_reconstructions(network, data.test, data.classes, path, **options))


@dataclass(frozen=True)
class Masks(Look):
    """Draw the mask matrix: for test images, what every class's capsule draws in turn."""

    per_class: int = 2
    """Images of each class."""

    def __call__(self) -> None:
        """Draw, and say where."""
        from capsnet.analysis.masks import plot_masks

        network, data = self.capsules()
        path = self.pictures / "masks.png"
        print(plot_masks(network, data.test, data.classes, path, per_class=self.per_class))


@dataclass(frozen=True)
class Tweaks(Look):
    """Draw what each dimension of a class's capsule does: a sheet and an animation for a class (Figure 4)."""

    class_: Annotated[str | None, arg(name="class")] = None
    """The class whose capsule is drawn; all of them if none is given."""
    range: float = 0.25
    """The largest number added to a dimension, and taken from it."""
    step: float = 0.05
    """From one number to the next."""
    image: int | None = None
    """The place of a test image; else the first of the class that the network knows."""
    dimensions: tuple[int, ...] = ()
    """Only these dimensions, counted from 0."""

    def __call__(self) -> None:
        """Draw, and say where."""
        from capsnet.analysis.perturbations import animate_perturbations, measure_perturbations, plot_perturbations

        network, data = self.capsules()
        if self.class_ is not None and self.class_ not in data.classes:
            raise InputError(f"no class {self.class_!r} in {data.name}: its classes are {', '.join(data.classes)}")
        names = data.classes if self.class_ is None else (self.class_,)
        for k in map(data.classes.index, names):
            options: dict[str, Any] = {"label": k, "image": self.image, "extent": self.range, "step": self.step}
            options["dimensions"] = self.dimensions or None
            path = self.pictures / f"perturbations-{k}.png"
            measured = measure_perturbations(network, data.test, **options)
            print(plot_perturbations(measured, data.classes, path))
            print(animate_perturbations(measured, data.classes, path.with_suffix(".gif")))


@dataclass(frozen=True)
class Couplings(Look):
    """Draw what was routed where for a test image, iteration by iteration."""

    image: int = 0
    """The place of the test image."""

    def __call__(self) -> None:
        """Draw, and say where."""
        from capsnet.analysis.couplings import plot_couplings

        network, data = self.capsules()
        path = self.pictures / "couplings.png"
        print(plot_couplings(network, data.test, data.classes, path, image=self.image))
