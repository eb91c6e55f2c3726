"""How well a network does on images that it has not seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import reduce
from torch import Tensor

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.models import CapsNet

MaskedBy = Literal["prediction", "label"]


@dataclass(frozen=True)
class Evaluation:
    """What a network did with n labelled images."""

    n: int
    errors: int
    confusion: list[list[int]]
    """Images by true class (row) and predicted class (column)."""
    reconstruction: float | None
    """Squared error of a drawing, summed over pixels and averaged over images; None without drawings."""
    masked_by: MaskedBy
    """Which capsule was drawn: that of the network's answer, or that of the true label."""

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified right."""
        return 1 - self.errors / self.n

    @property
    def per_class(self) -> list[float | None]:
        """Share classified right of each class's images; None for a class without images."""
        return [row[k] / sum(row) if sum(row) else None for k, row in enumerate(self.confusion)]


@dataclass(frozen=True)
class Scored:
    """What a network thinks of n images."""

    scores: Tensor
    """[n, j]: capsule lengths, or a baseline's class probabilities."""

    @property
    def predictions(self) -> Tensor:
        """The class with the highest score, int64 [n]."""
        return self.scores.argmax(dim=-1)  # over classes j


@dataclass(frozen=True)
class BatchPredictions(Scored):
    """A network's answers for n images."""

    reconstructions: Tensor | None
    """[n, c, h, w] in [0, 1]."""


@dataclass(frozen=True)
class Predictions(Scored):
    """A network's answers for n labelled images, and how far off its drawings are."""

    labels: Tensor
    """[n]."""
    reconstruction_errors: Tensor | None
    """[n]: squared error of each drawing, summed over pixels; None without drawings."""
    masked_by: MaskedBy

    def evaluation(self) -> Evaluation:
        """Count what was right."""
        n, classes = self.scores.shape
        confusion = torch.bincount(self.labels * classes + self.predictions, minlength=classes**2)
        errors = int((self.predictions != self.labels).sum())
        drawn = (
            None if self.reconstruction_errors is None else float(self.reconstruction_errors.double().mean())
        )  # over images
        return Evaluation(n, errors, confusion.view(classes, classes).tolist(), drawn, self.masked_by)


def predict_batch(network: CapsNet | ConvBaseline, images: Tensor, classes: Tensor | None = None) -> BatchPredictions:
    """A network's answers for a batch of images in [0, 1]; it draws the capsules of `classes`, or the longest ones.

    Raises InputError where a score is NaN or infinite, which says whether the images or the weights are at fault.

    images [b, c, h, w], classes [b] → scores [b, j], drawings [b, c, h, w]
    """
    with torch.inference_mode():
        output = network(images, classes) if isinstance(network, CapsNet) else network(images)
        scores = output.lengths if isinstance(network, CapsNet) else output.softmax(dim=-1)  # over classes j
        if not scores.isfinite().all():
            raise InputError(_fault(network, images))
    return BatchPredictions(scores, output.reconstruction if isinstance(network, CapsNet) else None)


def _fault(network: CapsNet | ConvBaseline, images: Tensor) -> str:
    """Why a network's scores for images [b, c, h, w] are not all finite."""
    finite = reduce(images.isfinite(), "b c h w -> b", "all")
    if not finite.all():
        return f"image {int(finite.int().argmin())} of {len(images)} has pixels that are NaN or infinite: leave it out"
    for name, weight in network.state_dict().items():
        if not weight.isfinite().all():
            return f"the network's {name} has numbers that are NaN or infinite: train it again, at a lower rate"
    return "the network's scores are NaN or infinite, though its weights are not: evaluate it in float32"


def predict_batches(
    network: CapsNet | ConvBaseline, images: ImageSet, *, masked_by: MaskedBy = "prediction", batch: int = 500
) -> Iterator[tuple[Tensor, Tensor, BatchPredictions]]:
    """Go through a set in order, on the network's device and in evaluation mode: images, labels, answers by batch."""
    device, training = next(network.parameters()).device, network.training
    network.eval()
    try:
        for some in batches(images, batch):
            pixels, labels = (part.to(device) for part in some)
            yield pixels, labels, predict_batch(network, pixels, labels if masked_by == "label" else None)
    finally:
        network.train(training)


def predict_set(
    network: CapsNet | ConvBaseline, images: ImageSet, *, masked_by: MaskedBy = "prediction"
) -> Predictions:
    """Keep a network's answer for each image of a set.

    Raises InputError for a set without images.
    """
    if not len(images):
        raise InputError("there are no images to evaluate on")
    scores, errors = [], []
    for pixels, _, given in predict_batches(network, images, masked_by=masked_by):
        scores.append(given.scores.float().cpu())
        if given.reconstructions is not None:
            squares = (given.reconstructions.float() - pixels).square()
            errors.append(reduce(squares, "b c h w -> b", "sum").cpu())
    return Predictions(torch.cat(scores), images.labels.cpu(), torch.cat(errors) if errors else None, masked_by)


def evaluate(network: CapsNet | ConvBaseline, images: ImageSet, *, masked_by: MaskedBy = "prediction") -> Evaluation:
    """Judge a network on a set of images.

    Raises InputError for a set without images.
    """
    return predict_set(network, images, masked_by=masked_by).evaluation()
