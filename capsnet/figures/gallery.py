"""Every picture of a run, by name: how it is drawn, and what the report says of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from capsnet.baselines import ConvBaseline
from capsnet.data import Data
from capsnet.errors import InputError
from capsnet.evaluation import Predictions
from capsnet.figures.confusion import draw_confusion
from capsnet.figures.couplings import draw_couplings
from capsnet.figures.curves import draw_curves
from capsnet.figures.drawings import draw_drawings
from capsnet.figures.lengths import draw_lengths
from capsnet.figures.masks import draw_masks
from capsnet.figures.robustness import attack, change, detect
from capsnet.figures.targeted import draw_targeted
from capsnet.figures.tweaks import animate_tweaks, draw_tweaks
from capsnet.models import CapsNet
from capsnet.runs import Run

Network = CapsNet | ConvBaseline


@dataclass(frozen=True)
class Subject:
    """What a run's pictures are drawn from."""

    run: Run
    network: Any  # a Network; each exhibit says which
    data: Data
    judgement: Predictions
    """The network's answers for the test images."""
    beside: dict[str, Network] = field(default_factory=dict)
    """Networks to compare with, trained on the same data, by name."""
    other: Data | None = None
    """Data that the network should not know, for the detection."""

    @property
    def networks(self) -> dict[str, Network]:
        """The run's network and those beside it, by name."""
        return {self.run.folder.resolve().name: self.network} | self.beside

    @property
    def on_test(self) -> tuple[Any, Any, tuple[str, ...]]:
        """What most pictures are drawn from: network, test images, names of the classes."""
        return self.network, self.data.test, self.data.classes


class Exhibit(NamedTuple):
    """One kind of picture."""

    files: str
    """Which files it draws: a name, with * where there is one for each class."""
    draw: Callable[[Subject, Path], object]
    """Draws a subject's pictures into a folder."""
    caption: str
    needs: str = "a network"
    """What it is drawn from: a network, capsules or a decoder."""


OWN = "The drawing is made from the capsule of the predicted class alone; the label takes no part in it."


def _sheets(subject: Subject, folder: Path) -> None:
    for k in subject.data.test.labels.unique().tolist():
        draw_tweaks(*subject.on_test, folder / f"tweaks-{k}.png", label=k)
        animate_tweaks(*subject.on_test, folder / f"tweaks-{k}.gif", label=k)


def _lengths(subject: Subject, folder: Path) -> None:
    told = subject.judgement
    kind: Literal["length", "probability"] = "length" if isinstance(subject.network, CapsNet) else "probability"
    draw_lengths(told.scores, told.labels, subject.data.classes, folder / "lengths.png", kind=kind)


GALLERY: dict[str, Exhibit] = {
    "drawings": Exhibit(
        "drawings.png",
        lambda s, folder: draw_drawings(*s.on_test, folder / "drawings.png"),
        f"The first test images and, below each, the network's drawing of it. {OWN}",
        "a decoder",
    ),
    "errors": Exhibit(
        "errors.png",
        lambda s, folder: draw_drawings(*s.on_test, folder / "errors.png", errors_only=True),
        "The first misclassified test images: the drawing of what the network took each for, and that of what it is.",
        "a decoder",
    ),
    "masks": Exhibit(
        "masks.png",
        lambda s, folder: draw_masks(*s.on_test, folder / "masks.png"),
        "The mask matrix: test images and, below, what every class's capsule draws when it alone is kept.",
        "a decoder",
    ),
    "tweaks": Exhibit(
        "tweaks-*.png",
        _sheets,
        "Dimensions of one capsule: each is changed by adding to it, and all else stays as it is. Rows are sorted by "
        "how much ink they move; a word names the effect where the drawings show a clear one.",
        "a decoder",
    ),
    "couplings": Exhibit(
        "couplings.png",
        lambda s, folder: draw_couplings(*s.on_test, folder / "couplings.png"),
        "What was routed where: the share that the primary capsules at each place give to each class, by iteration.",
        "capsules",
    ),
    "targeted": Exhibit(
        "targeted*.png",
        lambda s, folder: draw_targeted(*s.on_test, folder / "targeted.png"),
        "Targeted attacks: for each pair of classes, gradient ascent on the target's score until it wins.",
    ),
    "detection": Exhibit(
        "detection.png",
        lambda s, folder: detect(s.run, s.network, s.data, folder / "detection.png", other=s.other),
        "Telling attacks by their drawings: an image is flagged whose winning capsule's drawing is worse than 95 % of "
        "the validation images' drawings.",
        "a decoder",
    ),
    "affine": Exhibit(
        "affine*.png",
        lambda s, folder: change(s.networks, s.data.test, s.data.classes, folder / "affine.png"),
        "Accuracy on test images that are turned, shifted, scaled and sheared.",
    ),
    "attacks": Exhibit(
        "attacks*.png",
        lambda s, folder: attack(s.networks, s.data.test, folder / "attacks.png"),
        "Accuracy under the worst of all attacks, image by image, and what the checks of the attacks say.",
    ),
    "lengths": Exhibit(
        "lengths.png",
        _lengths,
        "Accuracy by class, the winning lengths of right and of wrong answers, and how far a length is a probability.",
    ),
    "confusion": Exhibit(
        "confusion.png",
        lambda s, folder: draw_confusion(s.judgement.evaluation(), s.data.classes, folder / "confusion.png"),
        "Test images by true class (row) and predicted class (column). Errors, off the diagonal, are coloured.",
    ),
    "curves": Exhibit(
        "curves.png",
        lambda s, folder: draw_curves(s.run, folder / "curves.png"),
        "Losses, error rates and learning rate over the training. Training errors are counted while the weights still "
        "move, and on shifted images where the recipe shifts them: they are no measure of the finished network.",
    ),
}

ALL = tuple(name for name in GALLERY if name != "attacks")  # which takes minutes: drawn only when it is named
QUICK = ("drawings", "errors", "masks", "lengths", "confusion", "curves")  # what a training ends with


def draw_gallery(subject: Subject, names: Sequence[str]) -> None:
    """Draw the pictures of these names into the run's folder `figures`.

    Raises InputError for an unknown name, and for the name of a picture that needs what the network has not.
    """
    for name in names:
        if name not in GALLERY:
            raise InputError(f"no picture {name!r}: choose from {', '.join(GALLERY)}")
        if lacking := _lacking(subject, name):
            raise InputError(f"{name} cannot be drawn: {lacking}")
    for name in names:
        GALLERY[name].draw(subject, subject.run.folder / "figures")


def fitting(subject: Subject, names: Iterable[str]) -> list[str]:
    """Those of the names whose pictures the subject can have."""
    return [name for name in names if not _lacking(subject, name)]


def _lacking(subject: Subject, name: str) -> str:
    """What keeps a picture from being drawn, in words; nothing where it can be."""
    needs = GALLERY[name].needs
    if needs != "a network" and not isinstance(subject.network, CapsNet):
        return "the network is a baseline without capsules"
    if needs == "a decoder" and subject.network.decoder is None:
        return "the network has no decoder: train one with --decoder dense"
    if name == "detection" and not len(subject.data.validation):
        return "there are no validation images to set a threshold on: train with --validation above 0"
    if name in ("detection", "attacks") and find_spec("foolbox") is None:
        return "attacks are foolbox's, which is not installed: pip install foolbox"
    return ""


def drawn(folder: Path) -> Iterator[tuple[Path, str]]:
    """Go through the pictures that lie in a folder, in the order of the gallery, with their captions."""
    for exhibit in GALLERY.values():
        for path in sorted(folder.glob(exhibit.files)):
            yield path, exhibit.caption
