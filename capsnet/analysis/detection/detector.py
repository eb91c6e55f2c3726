"""A detector of attacks by the reconstruction error: Frosst, Sabour and Hinton, "DARCCC" (2018, arXiv 1811.06969).

An image is flagged if the reconstruction from its longest capsule is worse than those of nearly all validation images.
"""

from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, with_config
from torch import Tensor

from capsnet.analysis.subject import Network
from capsnet.checks import STRICT, read_json
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluation_mode, predict_batch
from capsnet.files import write_json
from capsnet.losses import squared_errors
from capsnet.models import CapsNet
from capsnet.runs import Run

VALIDATION = 2_000  # images that set the threshold, at most


@dataclass(frozen=True)
class Detector:
    """A reconstruction error above which an image is flagged."""

    threshold: Annotated[float, Field(ge=0)]  # squared error of a reconstruction, summed over pixels
    percentile: Annotated[float, Field(gt=0, le=100)]  # of the validation images' errors
    n: Annotated[int, Field(ge=1)]  # validation images that set the threshold

    def flags(self, errors: Tensor) -> Tensor:
        """Which reconstruction errors [n] are above the threshold: bool [n]."""
        return errors > self.threshold


@with_config(STRICT)
@dataclass(frozen=True)
class DetectorFile(Detector):
    """The content of detector.json."""

    weights: str  # SHA-256 of the weights that it was made for


def fit_detector(network: Network, validation: ImageSet, percentile: float = 95.0) -> Detector:
    """Set the threshold on validation images, the first 2,000 where there are more.

    It is the smallest of their errors that at least `percentile` % of the images do not exceed.
    Raises InputError for a network without decoder, no images, and a percentile outside (0, 100].
    """
    if not len(validation):
        raise InputError("there are no validation images to set a threshold on: train with --validation above 0")
    if not 0 < percentile <= 100:
        raise InputError(f"a percentile is above 0 and at most 100, not {percentile:g}")
    errors = reconstruction_errors(network, validation.images[:VALIDATION] / 255)
    threshold = errors.sort().values[ceil(percentile * len(errors) / 100) - 1]
    return Detector(float(threshold), percentile, len(errors))


def reconstruction_errors(network: Network, images: Tensor) -> Tensor:
    """Squared error of each image's reconstruction from its longest capsule, summed over pixels.

    Raises InputError for a network without decoder.

    images [n, c, h, w] in [0, 1] → errors [n], on the CPU
    """
    return reconstruct(network, images)[2]


def reconstruct(network: Network, images: Tensor, batch_size: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Classify images and reconstruct them from their longest capsules.

    Raises InputError for a network without decoder.

    images [n, c, h, w] in [0, 1] → predictions [n], reconstructions [n, c, h, w], squared errors [n], all on the CPU
    """
    network = with_decoder(network)
    with evaluation_mode(network) as device:
        given = [predict_batch(network, batch.to(device)) for batch in images.split(batch_size)]
    predictions = torch.cat([batch.predictions for batch in given]).cpu()
    reconstructions = torch.cat([batch.reconstructions for batch in given if batch.reconstructions is not None]).cpu()
    return predictions, reconstructions, squared_errors(reconstructions, images.cpu())


def with_decoder(network: Network) -> CapsNet:
    """Return the network if it is a CapsNet with a decoder; else raise InputError."""
    if isinstance(network, CapsNet) and network.decoder is not None:
        return network
    raise InputError("this network has no decoder, so nothing is reconstructed: train a CapsNet with --decoder dense")


def save_detector(run: Run, detector: Detector) -> Path:
    """Write a run's detector.json, with the checksum of the weights that it belongs to."""
    return write_json(run.folder / "detector.json", asdict(detector) | {"weights": run.weights_checksum()})


def load_detector(run: Run) -> Detector | None:
    """Return the detector of the run's best network, or None if there is none or it belongs to other weights.

    Raises InputError if it cannot be read.
    """
    path = run.folder / "detector.json"
    if not path.exists():
        return None
    try:
        kept = read_json(path, DetectorFile)
    except InputError as error:
        raise InputError(f"{error}; `capsnet detection {run.folder}` makes it again") from error
    return Detector(kept.threshold, kept.percentile, kept.n) if kept.weights == run.weights_checksum() else None
