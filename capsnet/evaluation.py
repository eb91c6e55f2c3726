"""Predictions of a trained network: of data sets, with their errors counted, and of image files."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from einops import reduce
from torch import Tensor, nn

from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet, batches, image_paths, image_tensor
from capsnet.errors import InputError
from capsnet.losses import squared_errors
from capsnet.models import CapsNet

BATCH_SIZE = 500
MaskedBy = Literal["prediction", "label"]


@dataclass(frozen=True)
class Evaluation:
    """Errors of a network on n labelled images."""

    n: int
    errors: int
    confusion: list[list[int]]
    """Images by true class (row) and predicted class (column)."""
    reconstruction: float | None
    """Squared error of a reconstruction, summed over pixels and averaged over images; None without a decoder."""
    masked_by: MaskedBy
    """Which capsule was reconstructed: that of the predicted class, or that of the true label."""

    @property
    def accuracy(self) -> float:
        """Share of the images that were classified right."""
        return 1 - self.errors / self.n

    @property
    def per_class(self) -> list[float | None]:
        """Accuracy on the images of each class; None for a class without images."""
        return [row[k] / sum(row) if sum(row) else None for k, row in enumerate(self.confusion)]


@dataclass(frozen=True)
class Scored:
    """Scores of n images."""

    scores: Tensor
    """[n, j]: capsule lengths, or a baseline's class probabilities."""

    @property
    def predictions(self) -> Tensor:
        """The class with the highest score, int64 [n]."""
        return self.scores.argmax(dim=-1)  # over classes j


@dataclass(frozen=True)
class BatchPredictions(Scored):
    """A network's predictions for a batch of n images."""

    reconstructions: Tensor | None
    """[n, c, h, w] in [0, 1]; None without a decoder."""


@dataclass(frozen=True)
class Predictions(Scored):
    """A network's predictions for a set of n labelled images."""

    labels: Tensor
    """[n]."""
    reconstruction_errors: Tensor | None
    """[n]: squared error of each reconstruction, summed over pixels; None without a decoder."""
    masked_by: MaskedBy

    def evaluation(self) -> Evaluation:
        """Count the errors."""
        n, classes = self.scores.shape
        confusion = torch.bincount(self.labels * classes + self.predictions, minlength=classes**2)
        errors = int((self.predictions != self.labels).sum())
        mean = None
        if self.reconstruction_errors is not None:
            mean = float(self.reconstruction_errors.double().mean())  # over images
        return Evaluation(n, errors, confusion.view(classes, classes).tolist(), mean, self.masked_by)


@dataclass(frozen=True)
class FilePrediction:
    """A network's prediction for one image file."""

    image: str
    predicted: str
    """The predicted class."""
    lengths: dict[str, float]
    """Length of each class's capsule, in [0, 1); a baseline's class probabilities."""
    reconstruction_error: float | None
    """Squared error of the reconstruction, summed over pixels; None without a decoder."""
    threshold: float | None
    """The reconstruction error above which a detector flags an image; None without a detector."""
    suspicious: bool | None
    """Whether the image is flagged: attacked, or of none of the classes. None without a threshold."""


def predict_batch(network: CapsNet | ConvBaseline, images: Tensor, classes: Tensor | None = None) -> BatchPredictions:
    """Predict a batch of images in [0, 1], and reconstruct them from the capsules of `classes` or the longest ones.

    Raises InputError for a score that is NaN or infinite; the message says whether images or weights are the cause.

    images [b, c, h, w], classes [b] → scores [b, j], reconstructions [b, c, h, w]
    """
    with torch.inference_mode():
        if isinstance(network, CapsNet):
            scores, _, reconstructions = network(images, classes)
        else:
            scores, reconstructions = network(images).softmax(dim=-1), None  # over classes j
        if not scores.isfinite().all():
            raise InputError(_cause(network, images))
    return BatchPredictions(scores, reconstructions)


def _cause(network: CapsNet | ConvBaseline, images: Tensor) -> str:
    """Say why a network's scores for images [b, c, h, w] are not all finite."""
    finite = reduce(images.isfinite(), "b c h w -> b", "all")
    if not finite.all():
        return f"image {int(finite.int().argmin())} of {len(images)} has pixels that are NaN or infinite: leave it out"
    for name, weight in network.state_dict().items():
        if not weight.isfinite().all():
            return f"the network's {name} has numbers that are NaN or infinite: train it again with a lower --lr"
    return "the network's scores are NaN or infinite, though its weights are not: evaluate it in float32"


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[torch.device]:
    """Put a network in evaluation mode for a while, and then back in its own mode → the network's device."""
    training = network.training
    network.eval()
    try:
        yield next(network.parameters()).device
    finally:
        network.train(training)


def predict_batches(
    network: CapsNet | ConvBaseline,
    images: ImageSet,
    *,
    masked_by: MaskedBy = "prediction",
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[Tensor, Tensor, BatchPredictions]]:
    """Predict a set in order, on the network's device and in evaluation mode.

    Yields images [b, c, h, w] in [0, 1], labels [b] and predictions of each batch.
    """
    with evaluation_mode(network) as device:
        for batch in batches(images, batch_size):
            pixels, labels = (part.to(device) for part in batch)
            yield pixels, labels, predict_batch(network, pixels, labels if masked_by == "label" else None)


def predict_set(
    network: CapsNet | ConvBaseline, images: ImageSet, *, masked_by: MaskedBy = "prediction"
) -> Predictions:
    """Predict each image of a set.

    Raises InputError for a set without images.
    """
    if not len(images):
        raise InputError("there are no images to evaluate on")
    scores, errors = [], []
    for pixels, _, predicted in predict_batches(network, images, masked_by=masked_by):
        scores.append(predicted.scores.float().cpu())
        if predicted.reconstructions is not None:
            errors.append(squared_errors(predicted.reconstructions.float(), pixels).cpu())
    return Predictions(torch.cat(scores), images.labels.cpu(), torch.cat(errors) if errors else None, masked_by)


def evaluate(network: CapsNet | ConvBaseline, images: ImageSet, *, masked_by: MaskedBy = "prediction") -> Evaluation:
    """Evaluate a network on a set of images.

    Raises InputError for a set without images.
    """
    return predict_set(network, images, masked_by=masked_by).evaluation()


def predict(
    network: CapsNet | ConvBaseline,
    classes: Sequence[str],
    images: Iterable[str | Path],
    *,
    threshold: float | None = None,
    invert: bool = False,
) -> list[FilePrediction]:
    """Classify image files of any format and size, converted to the network's colours and resized to its shape.

    A folder stands for all images in it and in its sub-folders. `classes` are the names of the network's classes. Above
    `threshold`, a reconstruction error is suspicious. `invert` swaps light and dark first.

    Raises InputError for a file that is missing or no image, and for a folder without images.
    """
    paths, predictions = image_paths(images), []
    channels, height, width = network.image_shape
    with evaluation_mode(network) as device:
        for start in range(0, len(paths), BATCH_SIZE):
            some = paths[start : start + BATCH_SIZE]
            read = [image_tensor(path, (channels, height, width), invert=invert) for path in some]
            pixels = torch.stack(read).to(device) / 255  # [b, c, h, w]
            predicted = predict_batch(network, pixels)
            errors: list[float | None] = [None] * len(some)
            if predicted.reconstructions is not None:
                errors = squared_errors(predicted.reconstructions, pixels).tolist()
            for path, k, scores, error in zip(
                some, predicted.predictions.tolist(), predicted.scores.tolist(), errors, strict=True
            ):
                suspicious = None if error is None or threshold is None else error > threshold
                lengths = dict(zip(classes, scores, strict=True))
                predictions.append(FilePrediction(str(path), classes[k], lengths, error, threshold, suspicious))
    return predictions
