"""What tells a badly drawn image: a threshold on the error of the winning capsule's drawing, set on validation images.

Frosst, Sabour and Hinton, "DARCCC" (2018, arXiv 1811.06969).
"""

from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field, with_config
from torch import Tensor

from capsnet.baselines import ConvBaseline
from capsnet.checks import STRICT, read_json
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluation_mode, predict_batch
from capsnet.files import write_json
from capsnet.losses import squared_errors
from capsnet.models import CapsNet
from capsnet.runs import Run

VALIDATION = 2_000  # at most so many images set the threshold
BATCH = 100


@dataclass(frozen=True)
class Detector:
    """An error above which a drawing is suspicious."""

    threshold: float
    """Squared error of the winning capsule's drawing, summed over pixels."""
    percentile: float
    """How many of a hundred validation images have an error of at most the threshold."""
    n: int
    """Validation images that set the threshold."""

    def flags(self, errors: Tensor) -> Tensor:
        """Tell which drawing errors [n] are suspicious: bool [n]."""
        return errors > self.threshold


def fit_detector(network: CapsNet | ConvBaseline, validation: ImageSet, percentile: float = 95.0) -> Detector:
    """Set the threshold on validation images, the first 2,000 where there are more.

    It is the least of their errors that at least `percentile` of a hundred do not exceed.
    Raises InputError for a network that does not draw, no images, and a percentile outside (0, 100].
    """
    if not len(validation):
        raise InputError("there are no validation images to set a threshold on: train with --validation above 0")
    if not 0 < percentile <= 100:
        raise InputError(f"a percentile is above 0 and at most 100, not {percentile:g}")
    errors = reconstruction_errors(network, validation.images[:VALIDATION] / 255)
    threshold = errors.sort().values[ceil(percentile * len(errors) / 100) - 1]
    return Detector(float(threshold), percentile, len(errors))


def reconstruction_errors(network: CapsNet | ConvBaseline, images: Tensor) -> Tensor:
    """Squared error of the winning capsule's drawing of each image, summed over pixels.

    Raises InputError for a network that does not draw.

    images [n, c, h, w] in [0, 1] → errors [n], on the CPU
    """
    return look(network, images).errors


class Look(NamedTuple):
    """What a network makes of n images, on the CPU."""

    images: Tensor  # [n, c, h, w] in [0, 1]
    answers: Tensor  # [n], classes
    drawings: Tensor  # [n, c, h, w] in [0, 1], each of the answer's capsule
    errors: Tensor  # [n], squared and summed over pixels


def look(network: CapsNet | ConvBaseline, images: Tensor) -> Look:
    """Have a network answer and draw images [n, c, h, w] in [0, 1].

    Raises InputError for a network that does not draw.
    """
    network = that_draws(network)
    with evaluation_mode(network) as device:
        given = [predict_batch(network, batch.to(device)) for batch in images.split(BATCH)]
    answers = torch.cat([batch.predictions for batch in given]).cpu()
    drawings = torch.cat([batch.reconstructions for batch in given if batch.reconstructions is not None]).cpu()
    images = images.cpu()
    return Look(images, answers, drawings, squared_errors(drawings, images))


@with_config(STRICT)
@dataclass(frozen=True)
class DetectorFile:
    """What detector.json holds."""

    threshold: Annotated[float, Field(ge=0)]
    percentile: Annotated[float, Field(gt=0, le=100)]
    n: Annotated[int, Field(ge=1)]
    weights: str
    """The SHA-256 of the weights that it was made for."""


def save_detector(run: Run, detector: Detector) -> Path:
    """Write a run's detector.json, which says of which weights it is."""
    return write_json(run.folder / "detector.json", asdict(detector) | {"weights": run.weights_checksum()})


def load_detector(run: Run) -> Detector | None:
    """The detector of the run's best network, or None where there is none or it is that of other weights.

    Raises InputError where it cannot be read.
    """
    path = run.folder / "detector.json"
    if not path.exists():
        return None
    try:
        kept = read_json(path, DetectorFile)
    except InputError as error:
        raise InputError(f"{error}; `capsnet detection {run.folder}` makes it anew") from error
    return Detector(kept.threshold, kept.percentile, kept.n) if kept.weights == run.weights_checksum() else None


def that_draws(network: CapsNet | ConvBaseline) -> CapsNet:
    """The network, if it is one that draws; else InputError."""
    if isinstance(network, CapsNet) and network.decoder is not None:
        return network
    raise InputError("this network does not draw, so no drawing can give an attack away: train one with a decoder")
