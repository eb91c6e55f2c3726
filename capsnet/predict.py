"""What a run's network sees in image files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from capsnet.analysis.detection.detector import load_detector
from capsnet.data import image_tensor
from capsnet.evaluation import predict_batch
from capsnet.hardware import default_device
from capsnet.losses import squared_errors
from capsnet.runs import Run

BATCH = 100


@dataclass(frozen=True)
class Prediction:
    """A network's answer for one image file."""

    image: str
    answer: str
    lengths: dict[str, float]
    """Length of each class's capsule, in [0, 1); a baseline's class probabilities."""
    drawing_error: float | None
    """Squared error of the answer's drawing, summed over pixels; None for a network that does not draw."""
    threshold: float | None
    """The drawing error above which the run's detector flags an image; None for a run without detector."""
    suspicious: bool | None
    """Whether the image is flagged: attacked, or of none of the classes. None where there is nothing to tell it by."""


def predict(run: Run, images: Iterable[str | Path], *, invert: bool = False) -> list[Prediction]:
    """Classify image files of any format and size, converted to the network's colours and resized to its shape.

    `invert` swaps light and dark first. Raises InputError for a file that is missing or no image.
    """
    network, detector = run.load_network().to(default_device()), load_detector(run)
    threshold = None if detector is None else detector.threshold
    files, predictions = list(images), []
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        read = [image_tensor(image, run.image_shape, invert=invert) for image in some]
        pixels = torch.stack(read).to(default_device()) / 255  # [b, c, h, w]
        given = predict_batch(network, pixels)
        errors: list[float | None] = [None] * len(some)
        if given.reconstructions is not None:
            errors = squared_errors(given.reconstructions, pixels).tolist()
        answers = [run.classes[k] for k in given.predictions.tolist()]
        for image, named, scores, error in zip(some, answers, given.scores.tolist(), errors, strict=True):
            suspicious = None if error is None or threshold is None else error > threshold
            lengths = dict(zip(run.classes, scores, strict=True))
            predictions.append(Prediction(str(image), named, lengths, error, threshold, suspicious))
    return predictions
